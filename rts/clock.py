"""One clock for the fleet: the Redis server's.

Each process measures the offset between its own clock and the server's when it
refreshes its taus, so that a host with a wrong clock does not corrupt lateness.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

#: Offsets below this are measurement noise on hosts that keep time.
DEADBAND_S = 0.005


class FleetClock:
    """Wall-clock seconds since the epoch, as the Redis server counts them."""

    #: This host's. Kept here, since a task, or a test, may replace ``time.time``, as freezegun
    #: does: a deadline counts from when a task is really published.
    local = staticmethod(time.time)

    def __init__(self) -> None:
        #: Server time minus local time, seconds, as measured here; 0.0 until then.
        self.offset_s = 0.0
        self._followed: Sequence[float] | None = None

    def now(self) -> float:
        """Return the fleet's time now."""
        followed = self._followed
        return self.local() + (self.offset_s if followed is None else followed[0])

    def follow(self, offset_s: Sequence[float]) -> None:
        """From now on, use the offset that is in *offset_s*, a view of shared memory, not this
        process's own measurements.
        """
        self._followed = offset_s

    def measured(self, sent_at: float, server_at: float, received_at: float) -> None:
        """Take a measurement: local send and receive instants around the server's.

        The server's reading is assumed to lie in the middle of the round trip
        (Cristian's algorithm, 1989); the error is at most half the round trip. What is known
        stays if it may be right: a server that stalled reads its clock at the end.
        """
        offset = server_at - (sent_at + received_at) / 2
        error = (received_at - sent_at) / 2
        if abs(offset - self.offset_s) > error + DEADBAND_S:
            self.offset_s = 0.0 if abs(offset) <= max(DEADBAND_S, error) else offset
