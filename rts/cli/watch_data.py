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
from rts.cli.fleet import fleet_document
from rts.cli.probes import noted, query_broker, query_servers
from rts.settings import Settings
from rts.views.json_values import utc
from rts.views.problems import problems, queue_problems
from rts.views.queue_state import QueueState, queue_document
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

    @property
    def type_names(self) -> list[str]:
        """The types in any of the windows."""
        return sorted({name for rows in self.types.values() for name in rows})


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
        redis, ledger = query_servers(self._settings)
        # By the clock of Redis, as all instants are.
        known = utc(redis.vitals.now) if redis.server.reachable else None
        at = known or datetime.now(timezone.utc)
        objectives: Sequence[ObjectiveStatus] = ()
        types: dict[str, dict[str, ReportRow]] = {}
        waiting: Sequence[QueueState] = ()
        alerts: Sequence[Alert] = ()
        wrong = problems(redis, ledger)
        if ledger.server.reachable:
            with noted(wrong):
                objectives, types = self._query_ledger(at)
        if redis.server.reachable:
            with noted(wrong), link_to_redis(self._settings) as link:
                alerts = firing(link, self._settings)
        with noted(wrong):
            waiting = query_broker(self._app, self._settings, redis)
            wrong += queue_problems(waiting, redis, self._settings)
        return Snapshot(at, redis, ledger, wrong, objectives, types, waiting, alerts)

    def _query_ledger(
        self, at: datetime
    ) -> tuple[Sequence[ObjectiveStatus], dict[str, dict[str, ReportRow]]]:
        with ledger_of(self._settings) as database:

            def rows(window: str) -> dict[str, ReportRow]:
                found = report(database, at - WINDOWS[window], at, "type")
                return {row.key: row for row in found.rows}

            begin = time.monotonic()
            if begin >= self._query_at:
                self._standings = standings(database, self._settings, at)
                self._day = rows("24h")
                self._query_at = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - begin)
            types = {"now": rows("now"), "1h": rows("1h"), "24h": self._day}
            return self._standings, types


def document(snapshot: Snapshot) -> dict[str, Any]:
    """Return *snapshot* as JSON shows it."""
    return {
        "at": snapshot.at,
        "problems": snapshot.problems,
        "objectives": snapshot.standings,
        "types": snapshot.types,
        "queues": list(map(queue_document, snapshot.queues)),
        **fleet_document(snapshot.redis),
        "alerts": [
            {**asdict(alert), "started_at": utc(alert.started_at), "at": utc(alert.at)}
            for alert in snapshot.alerts
        ],
    }
