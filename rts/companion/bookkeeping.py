"""What a companion does with the ledger: fills it, sums it up, finds what is overdue, alerts.

All of it needs MongoDB, and is done on connections of its own: a companion whose MongoDB
hangs, or cannot be used at all, beats and ships as well as any other.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone

from rts.alerting.leader import Leader
from rts.clock import FleetClock
from rts.companion.attempts import attempt
from rts.ledger.connection import translate_outages
from rts.ledger.drain import Drain
from rts.ledger.mongo import MongoLedger
from rts.ledger.outbox import GATHER_S, RedisOutbox
from rts.ledger.overdue import OverdueSweep
from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.tau.snapshot import Snapshots
from rts.views.tallies import precompute
from rts.views.tally import CLASSES

#: Seconds between snapshots of the taus, and between sums of past hours.
SNAPSHOT_S, SUMS_S = 10.0, 300.0
#: Seconds of the last drain when the worker ends.
LAST_DRAIN_S = 3.0


class Bookkeeping:
    """These chores, of a companion called *name*; no other of the fleet has the same.

    Each raises :class:`rts.errors.StoreUnavailable` where Redis or MongoDB is away.

    Raises:
        PyMongoError: rts_mongo_url cannot be used.
    """

    def __init__(self, settings: Settings, clock: FleetClock, name: str) -> None:
        ledger = MongoLedger(settings)
        self._database = ledger.database
        self._sums = settings.keys.sums
        self._budget_s = settings.budget_window_s
        # Looking, and deciding on alerts, may take their time, and draining may not.
        self._link, alert_link, look_link = (Link(settings) for _ in range(3))
        #: Where the records wait.
        self.outbox = RedisOutbox(self._link, settings, name, gather_s=GATHER_S)
        #: Moves them.
        self.drain = Drain(self.outbox, ledger)
        self._snapshots = Snapshots(self._link, settings, ledger)
        #: Finds tasks whose deadline has passed.
        self.overdue = OverdueSweep(look_link, settings, ledger, name)
        #: Decides on alerts and sends them, if no other companion does.
        self.leader = Leader(alert_link, settings, clock, name, self._database)
        links = (self._link, alert_link, look_link)
        self._closes = [*(link.close for link in links), ledger.close]

    def drain_all(self, seconds: float) -> None:
        """Drain until nothing is left, for at most about *seconds*."""
        give_up_at = time.monotonic() + seconds
        while self.drain.drain(seconds) and time.monotonic() < give_up_at:
            pass

    def restore(self) -> None:
        """Restore the taus of a Redis that was wiped."""
        self._snapshots.restore()

    def snapshot(self, lease_s: float = SNAPSHOT_S) -> None:
        """Keep the taus, unless another drain has done so within *lease_s* seconds."""
        self._snapshots.save(lease_s=lease_s)

    def sum_up(self) -> None:
        """Sum up the past hours of a busy day, unless another drain has lately: so
        even the first report answers at once.
        """
        turn = pack("SET", self._sums, "1", "NX", "PX", int(SUMS_S * 1000))
        (mine,) = self._link.call(turn)
        if mine is not None:
            now = datetime.now(timezone.utc)
            with translate_outages():
                precompute(self._database, now)
                precompute(self._database, now, CLASSES, self._budget_s)

    def last(self) -> None:
        """Bring in what is left. Each step may fail on its own: none raises."""
        self.outbox.hurry()
        attempt("the last drain", lambda: self.drain_all(LAST_DRAIN_S))
        attempt("the snapshot of the taus", lambda: self.snapshot(0.0))

    def leave(self) -> None:
        """Let other companions take over at once. Never raises."""
        for chore in (self.leader, self.overdue, self.outbox):
            attempt("leaving", chore.leave)

    def close(self) -> None:
        """Close the connections."""
        for close in self._closes:
            close()
