"""The time of the fleet, by which the instants in the ledger are: the clock of Redis."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone

from rts.clock import FleetClock
from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack

#: Seconds for which a measurement is used: a Redis that hangs delays no more of the queries.
MEASURE_S = 60.0


class FleetTime:
    """This host's time, corrected by how far it was off that of Redis when last measured."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._clock = FleetClock()
        #: Monotonic instant of the next measurement.
        self._measure_at = -1e9
        #: Held while the clock is measured.
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the time (aware), by the last measurement. Waits for nothing."""
        return datetime.fromtimestamp(self._clock.now(), timezone.utc)

    def measured(self) -> datetime:
        """Return the time (aware); measure the clock first if that is due."""
        with self._lock:
            if time.monotonic() >= self._measure_at:
                self._measure()
                self._measure_at = time.monotonic() + MEASURE_S
        return self.now()

    def _measure(self) -> None:
        try:
            sent_at = time.time()
            (reply,) = self._link.call(pack("TIME"))
        except StoreUnavailable:
            return  # whoever asks it for more says so
        self._clock.measured(sent_at, as_instant(reply), time.time())
