"""A companion's work on the ledger: drain, roll up, find overdue tasks, alert.

All of it needs MongoDB, and uses connections of its own: a companion whose MongoDB
hangs, or cannot be used at all, keeps beating and shipping.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone

from rts.alerting.leader import Leader
from rts.clock import FleetClock
from rts.companion.attempts import attempt
from rts.health import Outages
from rts.ledger.connection import translate_outages
from rts.ledger.drain import Drain
from rts.ledger.mongo import MongoLedger
from rts.ledger.outbox import GATHER_S, RedisOutbox
from rts.link.lease import first_in
from rts.link.link import Link
from rts.settings import Settings
from rts.tau.snapshot import Snapshots
from rts.unfinished.overdue import OverdueSweep
from rts.views.counts import precompute
from rts.views.tally import CLASSES

#: Seconds between rollups of past hours.
ROLLUP_S = 300.0
#: Seconds for the final drain when the worker ends.
FINAL_DRAIN_S = 3.0


class LedgerChores:
    """The ledger chores of a companion, whose *name* is unique in the fleet. Its links share
    *outages*.

    Each raises :class:`rts.errors.StoreUnavailable` if Redis or MongoDB is unavailable.

    Raises:
        PyMongoError: rts_mongo_url cannot be used.
    """

    def __init__(
        self, settings: Settings, clock: FleetClock, name: str, outages: Outages
    ) -> None:
        ledger = MongoLedger(settings)
        self._database = ledger.database
        self._sums = settings.keys.sums
        self._budget_s = settings.budget_window_s
        # Links of their own: where Redis refuses one of them something each time, such as a key
        # of another type, that must not open the others' breaker. A batch of records is large,
        # and over a slow network takes long.
        self._link = Link(settings, piecewise=True, outages=outages)
        alert_link, look_link = (Link(settings, outages=outages) for _ in range(2))
        #: The records to drain.
        self.outbox = RedisOutbox(self._link, settings, name, gather_s=GATHER_S)
        #: Moves them into the ledger.
        self.drain = Drain(self.outbox, ledger)
        #: Saves the taus, and restores those of a Redis that was wiped.
        self.snapshots = Snapshots(self._link, settings, ledger)
        #: Finds tasks whose deadline has passed.
        self.overdue = OverdueSweep(look_link, settings, ledger, name)
        #: Decides on alerts and sends them, unless another companion does.
        self.leader = Leader(alert_link, settings, clock, name, self._database)
        links = (self._link, alert_link, look_link)
        self._closes = [*(link.close for link in links), ledger.close]

    def drain_all(self, seconds: float) -> None:
        """Drain until the outbox is empty, for about *seconds* at most."""
        give_up_at = time.monotonic() + seconds
        while self.drain.step() and time.monotonic() < give_up_at:
            pass

    def roll_up(self) -> None:
        """Roll up the past hours of busy days, unless another drain has done so lately, so
        that even the first report is fast.
        """
        if first_in(self._link, self._sums, ROLLUP_S):
            now = datetime.now(timezone.utc)
            with translate_outages():
                precompute(self._database, now)
                precompute(self._database, now, CLASSES, self._budget_s)

    def finish(self) -> None:
        """Drain what is left, save the taus, and let other companions take over at once. Each
        step may fail alone; none raises.
        """
        self.outbox.hurry()
        attempt("the last drain", lambda: self.drain_all(FINAL_DRAIN_S))
        attempt("the snapshot of the taus", self.snapshots.save)
        for chore in (self.leader, self.overdue):
            attempt("handing over", chore.leave)

    def close(self) -> None:
        """Close the connections."""
        for close in self._closes:
            close()
