"""One clock for the fleet: the Redis server's.

Each process measures the offset between its own clock and the server's when it
refreshes its taus, so that a host with a wrong clock does not corrupt lateness.
"""

from __future__ import annotations

import time
from typing import Protocol

#: Offsets below this are measurement noise on hosts that keep time.
DEADBAND_S = 0.005


class Cell(Protocol):
    """Storage of one number, such as a list or a view of shared memory."""

    def __getitem__(self, index: int, /) -> float: ...


class FleetClock:
    """Wall-clock seconds since the epoch, as the Redis server counts them."""

    def __init__(self) -> None:
        self._measured = [0.0]
        self._used: Cell = self._measured

    @property
    def offset_s(self) -> float:
        """Server time minus local time, seconds, as measured here; 0.0 until then."""
        return self._measured[0]

    @offset_s.setter
    def offset_s(self, offset_s: float) -> None:
        self._measured[0] = offset_s

    def now(self) -> float:
        """Return the fleet's time now."""
        return time.time() + self._used[0]

    def follow(self, offset_s: Cell) -> None:
        """Use the offset in *offset_s* from now on, not this process's own measurements."""
        self._used = offset_s

    def measured(self, sent_at: float, server_at: float, received_at: float) -> None:
        """Take a measurement: local send and receive instants around the server's.

        The server's reading is assumed to lie in the middle of the round trip
        (Cristian's algorithm, 1989); the error is at most half the round trip.
        Offsets within that error count as none.
        """
        offset = server_at - (sent_at + received_at) / 2
        error = (received_at - sent_at) / 2
        self.offset_s = 0.0 if abs(offset) <= max(DEADBAND_S, error) else offset
