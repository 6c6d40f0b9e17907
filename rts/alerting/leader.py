"""The leader: the one companion of the fleet that evaluates alerts and sends their messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

from rts.alerting.conditions import (
    MAX_GROUPS,
    burning_conditions,
    overdue_conditions,
    overdue_tasks,
)
from rts.alerting.delivery import WebhookDelivery
from rts.alerting.store import AlertStore
from rts.clock import FleetClock
from rts.ledger.connection import LedgerDatabase, translate_outages
from rts.link.lease import Lease
from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.views.slo import standings
from rts.webhooks import SLO_BURNING, TASK_OVERDUE

#: Duration of the lease in seconds: how long a dead leader keeps others from taking over.
LEASE_S = 10.0
#: Seconds between renewals of the lease.
RENEW_S = 1.0
#: Seconds between evaluations of overdue tasks, and of the objectives.
OVERDUE_S, OBJECTIVES_S = 2.0, 15.0
#: The pause before the objectives are evaluated again: a multiple of how long the last
#: evaluation took, and the maximum in seconds. This must not keep a large ledger busy.
PAUSE_FACTOR, MAX_PAUSE_S = 10.0, 120.0
#: Seconds for which nothing of a kind may be overdue, or an objective burn, before its alert
#: ends: with ten tasks in five minutes, each one can take the burn rate across its threshold.
QUIET_S = {TASK_OVERDUE: 30.0, SLO_BURNING: 120.0}


class Leader:
    """Leads if no other companion does. :meth:`lead` and the evaluations are called
    periodically, from different threads: an evaluation may take longer than the lease lasts.

    Each of them raises :class:`rts.errors.StoreUnavailable` if a server is unavailable.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        clock: FleetClock,
        name: str,
        database: LedgerDatabase,
        *,
        quiet_s: dict[str, float] = QUIET_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._settings = settings
        self._keys = settings.keys
        self._clock = clock
        self._lease = Lease(link, settings.keys.alerting, name, LEASE_S)
        self._database = database
        self._now = now
        self._store = AlertStore(link, settings, clock, quiet_s=quiet_s, now=now)
        self._deliveries: list[WebhookDelivery] = []
        #: Monotonic instant of the next evaluation of the objectives.
        self._evaluate_from = -1e9
        #: Whether some worker has receivers of ``slo_burning``.
        self._listened = False
        #: Monotonic instant at which Redis last granted the lease.
        self._confirmed_at = -1e9

    def leads(self) -> bool:
        """Whether this companion leads now: no other one can have taken the lease yet."""
        return self._now() - self._confirmed_at < LEASE_S / 2

    def lead(self) -> bool:
        """Take or renew the lease, if there is anybody to notify; return whether it is held."""
        if not (self._settings.webhooks or self._listened):
            return False
        asked_at = self._now()
        if not self._lease.acquire():
            self._confirmed_at = -1e9
            self._stop_deliveries()
            return False
        self._confirmed_at = asked_at
        if not self._deliveries:
            self._deliveries = [
                WebhookDelivery(hook, self._link, self._keys, self._clock, self.leads)
                for hook in self._settings.webhooks
            ]
            for delivery in self._deliveries:
                delivery.start()
        return True

    def evaluate_objectives(self) -> int:
        """Start and end alerts of objectives, if anybody is notified of them; return how many.
        While a server is unavailable, firing alerts keep firing.
        """
        (listened,) = self._link.call(pack("EXISTS", self._keys.listening))
        self._listened = bool(listened)
        if not self.leads():
            return 0
        if not (self._listened or self._has_webhook(SLO_BURNING)):
            return self._store.update((SLO_BURNING,), ())  # left from earlier settings
        begin = self._now()
        if begin < self._evaluate_from:
            return 0
        now = datetime.fromtimestamp(self._clock.now(), timezone.utc)
        with translate_outages():
            found = standings(self._database, self._settings, now)
        end = self._now()
        self._evaluate_from = end + min(MAX_PAUSE_S, PAUSE_FACTOR * (end - begin))
        return (
            self._store.update((SLO_BURNING,), burning_conditions(found)) if self.leads() else 0
        )

    def evaluate_overdue(self) -> int:
        """Start and end alerts of overdue tasks, if a webhook is notified; return how many."""
        if not self.leads():
            return 0
        if not self._has_webhook(TASK_OVERDUE):
            return self._store.update((TASK_OVERDUE,), ())  # left from earlier settings
        tasks, are_all = overdue_tasks(self._link, self._keys)
        found = overdue_conditions(tasks, self._clock.now())
        alerted, others = found[:MAX_GROUPS], found[MAX_GROUPS:]
        return self._store.update((TASK_OVERDUE,) if are_all else (), alerted, others)

    def leave(self) -> None:
        """Release the lease, so that another companion can lead at once."""
        self._stop_deliveries()
        self._confirmed_at = -1e9
        self._lease.release()

    def _has_webhook(self, kind: str) -> bool:
        return any(kind in hook.events for hook in self._settings.webhooks)

    def _stop_deliveries(self) -> None:
        while self._deliveries:
            self._deliveries.pop().stop()
