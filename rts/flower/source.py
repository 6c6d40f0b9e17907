"""The data of the pages: MongoDB, Redis and the broker, over one client each.

Every method blocks and is called in a thread (:mod:`rts.flower.cache`). The numbers are those
of the commands: both get them from :mod:`rts.views`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

from pymongo.errors import PyMongoError

from rts.errors import StoreUnavailable, unusable
from rts.flower.history import Moment
from rts.ledger.connection import LedgerDatabase, connect
from rts.link.link import Link
from rts.scheduling.discovery import fleet_queues, queue_names
from rts.scheduling.queues import (
    WaitingTask,
    hopeless_in,
    next_waiting,
    ordered_channel,
    state_of,
)
from rts.settings import Settings
from rts.urls import shown_url
from rts.views.fleet_time import FleetTime
from rts.views.intervals import Window
from rts.views.lateness_causes import Why, why
from rts.views.queue_state import QueueState
from rts.views.report import Report, ReportRow, report, rows_of
from rts.views.runs import OneTask, late_runs, latest_misses, one_task, sample
from rts.views.series import series
from rts.views.slo import ObjectiveStatus, standings
from rts.views.status import RedisState, ask_redis
from rts.views.tally import FIELDS, Tally, add_all
from rts.views.taus import TauRow, tau_rows

#: Timeouts of MongoDB in milliseconds: a page should report an outage rather than wait for its
#: end.
MONGO_OPTIONS: Mapping[str, int] = {
    "serverSelectionTimeoutMS": 1000,
    "connectTimeoutMS": 1000,
    "socketTimeoutMS": 10000,
    "maxPoolSize": 16,
}
#: Seconds for Redis to accept a connection, and to answer.
CONNECT_TIMEOUT_S, TIMEOUT_S = 1.0, 2.0
#: Seconds that a query of MongoDB waits for the time by Redis: less than a page waits for it.
CLOCK_S = 0.5
#: Late runs of a type that are examined for its reason.
LATE_RUNS = 500
#: Misses that are listed.
MISSES = 100
#: Messages of a queue that are shown, and those whose mean tau stands for that of all.
IN_LINE, MEAN_OF = 25, 20


@dataclass(frozen=True)
class Counted:
    """A window, by type or by name: in total and over time."""

    window: Window
    rows: list[ReportRow]
    history: list[Moment]
    #: Buckets of lateness by key, as in the rows.
    lateness: Mapping[str, Mapping[int, int]]


@dataclass(frozen=True)
class QueueSummary:
    """One queue, and what is next in it."""

    state: QueueState
    #: In deadline order and not yet demoted, but hopeless.
    hopeless: int
    #: Mean tau of the tasks at its head; ``None`` if none is known, or nothing waits.
    mean_s: float | None
    line: list[WaitingTask]


class Source:
    """Queries the servers of one app.

    Each query raises :class:`rts.errors.StoreUnavailable`, with the URL of the server and the
    reason, if that does not answer.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self.settings = settings
        self._app = app
        self._link = Link.with_timeouts(settings, CONNECT_TIMEOUT_S, TIMEOUT_S)
        self._time = FleetTime(self._link, CLOCK_S)
        self._database: LedgerDatabase | None = None
        #: Held while its client is created.
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the time by the clock of Redis, as far as it is known. Does not block."""
        return self._time.now()

    def redis(self) -> RedisState:
        """Return the state of Redis, with workers, running tasks and the outbox."""
        state = ask_redis(self._link, self.settings)
        self._time.measured()  # now that it has answered
        return state

    def taus(self) -> list[TauRow]:
        """Return the learned taus."""
        return tau_rows(self._link, self.settings)

    def objectives(self) -> list[ObjectiveStatus]:
        """Return the state of the objectives."""
        with self._ledger() as database:
            return standings(database, self.settings, self._time.measured())

    def counted(self, since: timedelta, by: str, key: str | None = None) -> Counted:
        """Count the last *since*, grouped by *by*; only *key* if it is given."""
        window = self._last(since)
        tallies: dict[str, Tally] = {}
        history = []
        with self._ledger() as database:
            for point in series(database, window, by, key):
                add_all(tallies, point.tallies)
                history.append(Moment.of(point))
        lateness = {key: dict(counted.lateness) for key, counted in tallies.items()}
        return Counted(window, rows_of(tallies), history, lateness)

    def report(self, since: timedelta, by: str) -> Report:
        """Return the report of the last *since*."""
        with self._ledger() as database:
            return report(database, *self._last(since), by)

    def reasons(self, since: timedelta, types: tuple[str, ...]) -> dict[str, Why]:
        """Return why the latest late runs of each type were late."""
        window = self._last(since)
        with self._ledger() as database:
            return {t: why(late_runs(database, window, t, LATE_RUNS)) for t in types}

    def sample(self, since: timedelta, by: str, key: str | None) -> list[dict[str, Any]]:
        """Return some runs of the last *since*: all, or of the type, name or worker *key*."""
        with self._ledger() as database:
            return sample(database, self._last(since), **{FIELDS[by]: key})

    def misses(
        self, since: timedelta, types: tuple[str, ...], name: str | None
    ) -> list[dict[str, Any]]:
        """Return the latest tasks that missed their deadline, at most ``MISSES``."""
        window = self._last(since)
        with self._ledger() as database:
            return latest_misses(database, window, types, name=name, limit=MISSES)

    def task(self, task_id: str) -> OneTask | None:
        """Return one task; ``None`` if the ledger does not know it."""
        with self._ledger() as database:
            return one_task(database, task_id)

    def queues(self) -> list[QueueSummary] | None:
        """Return the queues; ``None`` if the broker is not Redis."""
        fleet = fleet_queues(self._link, self.settings)
        with ordered_channel(self._app, self.settings) as channel:
            if channel is None:
                return None
            found = queue_names(self._app, self.settings, channel, fleet)
            return [_summary(channel, name) for name in found]

    def close(self) -> None:
        """Close the connections."""
        self._link.close()
        if self._database is not None:
            self._database.client.close()

    def _last(self, span: timedelta) -> Window:
        """Return the window of that length which ends now."""
        now = self._time.measured()
        return now - span, now

    @contextmanager
    def _ledger(self) -> Iterator[LedgerDatabase]:
        """Yield the database; an outage is reported with the URL and the reason."""
        try:
            with self._lock:
                if self._database is None:
                    self._database = connect(self.settings.mongo_url, MONGO_OPTIONS)
            yield self._database
        except (StoreUnavailable, PyMongoError) as exc:
            server = f"MongoDB at {shown_url(self.settings.mongo_url)}"
            raise StoreUnavailable(unusable(server, exc)) from exc


def _summary(channel: Any, name: str) -> QueueSummary:
    state = state_of(channel, name)
    line = next_waiting(channel, name, IN_LINE)
    hopeless = hopeless_in(channel, name) if state.ordered else 0
    taus = [task.tau for task in line[:MEAN_OF] if task.tau is not None]
    return QueueSummary(state, hopeless, fmean(taus) if taus else None, line)
