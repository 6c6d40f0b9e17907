"""One companion of the fleet decides on alerts and sends the messages: the leader."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from pymongo.database import Database

from rts.alerting.conditions import (
    SLO_BURNING,
    TASK_OVERDUE,
    burning_conditions,
    overdue_conditions,
    overdue_tasks,
)
from rts.alerting.delivery import WebhookDelivery
from rts.alerting.store import AlertStore
from rts.clock import FleetClock
from rts.link.lease import Lease
from rts.link.link import Link
from rts.link.scripts import pack
from rts.objectives import WINDOWS
from rts.settings import Settings
from rts.views.slo import standings

#: Seconds that a leader leads on without a word, so that a dead one is followed soon.
LEASE_S = 10.0
#: Seconds between looks at the lease.
LEAD_S = 1.0
#: Seconds between looks at what is overdue, and at the objectives.
OVERDUE_S, OBJECTIVES_S = 2.0, 15.0
#: The next look at the objectives comes after so many times what the last one took, but
#: no later than so many seconds: a large ledger is not kept busy with it.
SPARE, LONGEST_S = 10.0, 120.0
#: Seconds for which nothing of a kind may be overdue before its alert ends. Burn rates
#: have windows of their own.
QUIET_S = {TASK_OVERDUE: 30.0}


class Leader:
    """Leads if no other companion does. :meth:`lead` and the looks are called again and
    again, from different threads: looking takes longer than a lease may wait.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        clock: FleetClock,
        name: str,
        database: Database[dict[str, Any]],
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
        # A month is a lot to count; what burns shows in its windows.
        longest = max(WINDOWS.values())
        self._burning_only = replace(settings, slo_window=min(settings.slo_window, longest))
        #: Monotonic instant from which on to look at the objectives again.
        self._look_from = -1e9
        #: Whether some worker has receivers of alerts of objectives.
        self._listened = False
        #: Monotonic instant of the last word of Redis that this companion leads.
        self._led_at = -1e9

    def leads(self) -> bool:
        """Whether no other companion can lead now."""
        return self._now() - self._led_at < LEASE_S / 2

    def lead(self) -> bool:
        """Take or keep the lead, if it is free and there is anybody to tell; return
        whether this companion leads.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if not (self._settings.webhooks or self._listened):
            return False
        asked_at = self._now()
        if not self._lease.take():
            self._led_at = -1e9
            self._dismiss()
            return False
        self._led_at = asked_at
        if not self._deliveries:
            self._deliveries = [
                WebhookDelivery(hook, self._link, self._keys, self._clock, self.leads)
                for hook in self._settings.webhooks
            ]
            for delivery in self._deliveries:
                delivery.start()
        return True

    def look_at_objectives(self) -> int:
        """Begin and end alerts of objectives, where anybody is to be told of them; return
        how many.

        Raises:
            StoreUnavailable: a server is away; what fires goes on.
        """
        (listened,) = self._link.call(pack("EXISTS", self._keys.listening))
        self._listened = bool(listened)
        if not self.leads():
            return 0
        if not (self._listened or self._told(SLO_BURNING)):
            return self._store.update((SLO_BURNING,), ())  # what fires is from before
        begin = self._now()
        if begin < self._look_from:
            return 0
        now = datetime.fromtimestamp(self._clock.now(), timezone.utc)
        found = standings(self._database, self._burning_only, now)
        if any(standing.burning for standing in found):  # for what is left of the budget
            found = standings(self._database, self._settings, now)
        end = self._now()
        self._look_from = end + min(LONGEST_S, SPARE * (end - begin))
        return (
            self._store.update((SLO_BURNING,), burning_conditions(found)) if self.leads() else 0
        )

    def look_at_overdue(self) -> int:
        """Begin and end alerts of overdue tasks, where a webhook is told of them; return
        how many.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if not self.leads():
            return 0
        if not self._told(TASK_OVERDUE):
            return self._store.update((TASK_OVERDUE,), ())  # what fires is from before
        tasks, are_all = overdue_tasks(self._link, self._keys)
        found = overdue_conditions(tasks, self._clock.now())
        return self._store.update((TASK_OVERDUE,) if are_all else (), found)

    def leave(self) -> None:
        """Let another companion lead at once.

        Raises:
            StoreUnavailable: Redis is away.
        """
        self._dismiss()
        self._led_at = -1e9
        self._lease.leave()

    def _told(self, kind: str) -> bool:
        return any(kind in hook.events for hook in self._settings.webhooks)

    def _dismiss(self) -> None:
        while self._deliveries:
            self._deliveries.pop().stop()
