"""A circuit breaker: a server that failed is left alone for a while.

After Nygard, *Release It!* (2007). So a task, or a publish, waits for an absent
server at most once per period.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Breaker:
    """Closed while all is well; open for *period_s* seconds after a failure.

    After that one caller may try; the others go on failing fast until it is back.
    """

    def __init__(self, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        # Re-entrant: the app's signal handlers may publish while their thread is in here.
        self._lock = threading.RLock()
        #: Monotonic instant of the next attempt; ``None`` while closed.
        self._retry_at: float | None = None

    def allows(self) -> bool:
        """Return whether the caller may try."""
        if self._retry_at is None:
            return True
        with self._lock:
            now = self._clock()
            retry_at = self._retry_at or now  # another thread may have closed it
            if now < retry_at:
                return False
            # This caller is the one; if it never reports back, another comes later.
            self._retry_at = now + self._period_s
            return True

    def failed(self) -> bool:
        """Note a failure; returns whether it opened the breaker."""
        with self._lock:
            opened = self._retry_at is None
            self._retry_at = self._clock() + self._period_s
            return opened

    def succeeded(self) -> bool:
        """Note a success; returns whether it closed the breaker."""
        if self._retry_at is None:
            return False
        with self._lock:
            closed = self._retry_at is not None
            self._retry_at = None
            return closed
