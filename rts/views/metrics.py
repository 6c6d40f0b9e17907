"""The metrics, for Prometheus: a collector over Redis, MongoDB and the broker.

Counters live in Redis, for the whole fleet (:mod:`rts.ledger.counting`), so one exporter serves
them all and no restart resets them. Objectives come from the ledger, by :mod:`rts.views.slo`.
Each of the three servers is queried in a thread of its own: one that is down costs its own
metrics, and delays a scrape by a few seconds at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rts.ledger.connection import LedgerDatabase, connect
from rts.link.link import Link
from rts.settings import Settings
from rts.views import families
from rts.views.background import BackgroundQuery
from rts.views.fleet_time import FleetTime
from rts.views.queue_state import WaitingQueue
from rts.views.readings import read
from rts.views.slo import ObjectiveStatus, standings

#: Seconds for Redis to accept a connection, and to answer.
CONNECT_TIMEOUT_S, TIMEOUT_S = 0.5, 1.0
#: Seconds that a scrape waits for all of them. MongoDB may take longer when a large ledger has
#: to be recounted; the next scrape then finds the stored sums.
PATIENCE_S = 2.5
#: Where an answer takes longer than a scrape may wait, the last one is shown, up to this age in
#: seconds: longer than the time between two scrapes, and as long as Prometheus shows a value.
MAX_AGE_S = 300.0


class RtsCollector:
    """A collector of prometheus_client. Never raises, and does not register itself.

    *queues* returns what waits in the broker, or nothing at all where it is not Redis.
    *patience_s* is how long a scrape waits for answers, *max_age_s* how old an answer may be
    that replaces a late one (of the objectives: ``MAX_AGE_S``, as a large ledger takes long).
    """

    def __init__(
        self,
        settings: Settings,
        queues: Callable[[], Sequence[WaitingQueue]] | None = None,
        *,
        patience_s: float = PATIENCE_S,
        max_age_s: float = 0.0,
    ) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._link = Link.with_timeouts(settings, CONNECT_TIMEOUT_S, TIMEOUT_S)
        self._time = FleetTime(self._link, patience_s / 4)
        self._database: LedgerDatabase | None = None
        self._queries: dict[str, BackgroundQuery[Any]] = {
            "redis": BackgroundQuery("Redis", lambda: read(self._link, settings), max_age_s),
            "mongodb": BackgroundQuery("MongoDB", self._standings, MAX_AGE_S),
        }
        if queues is not None:
            self._queries["broker"] = BackgroundQuery("the broker", queues, max_age_s)

    def describe(self) -> Iterable[Any]:
        """Return nothing, so that registering queries no server."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the current metrics. Concurrent scrapes share one set of queries instead of
        waiting for each other.
        """
        until = time.monotonic() + self._patience_s
        for query in self._queries.values():
            query.ask()
        answers = {name: query.answer(until)[0] for name, query in self._queries.items()}
        reading, stands, waiting = map(answers.get, ("redis", "mongodb", "broker"))
        yield families.info()
        up = {name: answer is not None for name, answer in answers.items()}
        # Where it refuses what rts writes, its counts stand still, as if all were well.
        up["redis"] = reading is not None and reading.refusal is None
        if waiting is not None and not waiting:  # not Redis: it was not even contacted
            del up["broker"]
        yield families.up(up)
        yield families.targets(self._settings)
        if reading is not None:
            yield from families.counts(reading)
            yield families.verdicts(reading, self._settings)
            yield from families.gauges(reading)
        if stands is not None:
            yield from families.objectives(stands)
        if waiting is not None:
            yield from families.queues(waiting)

    def close(self) -> None:
        """Close the connections."""
        self._link.close()
        if self._database is not None:
            self._database.client.close()

    def _standings(self) -> list[ObjectiveStatus]:
        if self._database is None:
            self._database = connect(self._settings.mongo_url)
        return standings(self._database, self._settings, self._time.measured())
