"""What ``rts watch`` shows at one moment, gathered from all servers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from rts.alerting.alert import Alert
from rts.alerting.store import firing
from rts.cli.common import ledger_of, link_to_redis
from rts.cli.probes import PATIENCE_S, query_servers
from rts.cli.status import problems
from rts.errors import StoreUnavailable
from rts.scheduling import queues
from rts.scheduling.queues import FleetQueues, QueueState
from rts.settings import Settings
from rts.views.report import ReportRow, report
from rts.views.slo import ObjectiveStatus, standings
from rts.views.status import LedgerState, RedisState

#: What "now" means, and the other windows of a type's row.
WINDOWS = {"now": timedelta(minutes=5), "1h": timedelta(hours=1), "24h": timedelta(hours=24)}
#: The pause before the long windows are queried again, as a multiple of how long the last query
#: took: on a large ledger they cost more than they change.
PAUSE_FACTOR = 10.0


@dataclass(frozen=True)
class Snapshot:
    """What is shown."""

    at: datetime
    redis: RedisState
    ledger: LedgerState
    problems: Sequence[str] = ()
    standings: Sequence[ObjectiveStatus] = ()
    #: By window, then by type.
    types: dict[str, dict[str, ReportRow]] = field(default_factory=dict)
    queues: Sequence[QueueState] = ()
    alerts: Sequence[Alert] = ()


class Gatherer:
    """Queries the servers. What one of them does not answer is left out."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        #: Monotonic instant of the next query of the long windows.
        self._query_at = -1e9
        self._standings: Sequence[ObjectiveStatus] = ()
        self._day: dict[str, ReportRow] = {}

    def gather(self) -> Snapshot:
        """Take a snapshot."""
        at = datetime.now(timezone.utc)
        redis, ledger = query_servers(self._settings)
        objectives: Sequence[ObjectiveStatus] = ()
        types: dict[str, dict[str, ReportRow]] = {}
        waiting: Sequence[QueueState] = ()
        alerts: Sequence[Alert] = ()
        fleet = FleetQueues()
        wrong = problems(redis, ledger)
        if ledger.server.reachable:
            try:
                objectives, types = self._query_ledger(at)
            except StoreUnavailable as exc:
                wrong.append(str(exc))
        if redis.server.reachable:
            try:
                with link_to_redis(self._settings) as link:
                    alerts = firing(link, self._settings)
                    fleet = queues.fleet_queues(link, self._settings)
            except StoreUnavailable as exc:
                wrong.append(str(exc))
        try:
            waiting = self._query_broker(fleet)
        except StoreUnavailable as exc:
            wrong.append(str(exc))
        return Snapshot(at, redis, ledger, wrong, objectives, types, waiting, alerts)

    def _query_ledger(
        self, at: datetime
    ) -> tuple[Sequence[ObjectiveStatus], dict[str, dict[str, ReportRow]]]:
        with ledger_of(self._settings) as database:

            def rows(window: str) -> dict[str, ReportRow]:
                found = report(database, at - WINDOWS[window], at, "type")
                return {row.key: row for row in found}

            begin = time.monotonic()
            if begin >= self._query_at:
                self._standings = standings(database, self._settings, at)
                self._day = rows("24h")
                self._query_at = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - begin)
            types = {"now": rows("now"), "1h": rows("1h"), "24h": self._day}
            return self._standings, types

    def _query_broker(self, fleet: FleetQueues) -> Sequence[QueueState]:
        with queues.ordered_channel(self._app, self._settings, PATIENCE_S) as channel:
            if channel is None:
                return ()
            names = queues.queue_names(self._app, self._settings, channel, fleet)
            return [queues.state_of(channel, name) for name in names]


def document(snapshot: Snapshot) -> dict[str, Any]:
    """Return *snapshot* as plain values."""
    return {
        "at": snapshot.at,
        "problems": list(snapshot.problems),
        "objectives": [asdict(standing) for standing in snapshot.standings],
        "types": {
            window: {key: asdict(row) for key, row in rows.items()}
            for window, rows in snapshot.types.items()
        },
        "queues": [asdict(state) for state in snapshot.queues],
        "workers": [asdict(worker) for worker in snapshot.redis.workers],
        "outbox": {"length": snapshot.redis.outbox_length, "lag_s": snapshot.redis.lag_s},
        "open": {
            "tasks": snapshot.redis.open_tasks,
            "overdue": snapshot.redis.overdue_tasks,
        },
        "running": {"runs": snapshot.redis.running, "overdue": snapshot.redis.overdue},
        "alerts": [asdict(alert) for alert in snapshot.alerts],
    }
