"""The time of the fleet, by which the instants in the ledger are: the clock of Redis."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone

from rts.clock import FleetClock
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack
from rts.views.background import BackgroundQuery

#: Seconds for which a measurement is used: a Redis that hangs delays no more of the queries.
MEASURE_S = 60.0


class FleetTime:
    """This host's time, corrected by how far it was off that of Redis when last measured.
    *patience_s* is how long a query of MongoDB waits for a measurement, in case Redis hangs.
    """

    def __init__(self, link: Link, patience_s: float) -> None:
        self._link = link
        self._patience_s = patience_s
        self._clock = FleetClock()
        self._query = BackgroundQuery("the clock of Redis", self._measure)
        #: Monotonic instant of the next measurement.
        self._measure_at = -1e9
        #: Held while a measurement is started.
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the time (aware), by the last measurement. Waits for nothing."""
        return datetime.fromtimestamp(self._clock.now(), timezone.utc)

    def measured(self) -> datetime:
        """Return the time (aware); measure the clock first if that is due."""
        asked_at = time.monotonic()
        with self._lock:
            if asked_at >= self._measure_at:
                self._query.ask()
                self._measure_at = asked_at + MEASURE_S
        self._query.answer(asked_at + self._patience_s)
        return self.now()

    def _measure(self) -> None:
        sent_at = time.time()
        (reply,) = self._link.call(pack("TIME"))
        self._clock.measured(sent_at, as_instant(reply), time.time())
