"""A circuit breaker: after a failure, leave the server alone for a while.

After Nygard, *Release It!* (2007). A task or a publish waits for an unreachable
server at most once per period.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Breaker:
    """Closed while calls succeed; open for *period_s* seconds after a failure.

    Then one caller may try (half-open); the others keep failing fast until it succeeds.
    """

    def __init__(self, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        # Re-entrant: a signal handler of the app may publish while its thread holds it.
        self._lock = threading.RLock()
        #: Monotonic instant of the next attempt; ``None`` while closed.
        self._retry_at: float | None = None

    def allows(self) -> bool:
        """Return whether the caller may try."""
        if self._retry_at is None:
            return True
        with self._lock:
            now = self._clock()
            retry_at = self._retry_at or now  # None if another thread has closed it meanwhile
            if now < retry_at:
                return False
            # This caller tries; should it never report back, another one may after a period.
            self._retry_at = now + self._period_s
            return True

    def try_now(self) -> None:
        """Let the next caller try, however recent the failure is."""
        with self._lock:
            if self._retry_at is not None:
                self._retry_at = self._clock()

    def failed(self) -> bool:
        """Record a failure; return whether it opened the breaker."""
        with self._lock:
            opened = self._retry_at is None
            self._retry_at = self._clock() + self._period_s
            return opened

    def succeeded(self) -> bool:
        """Record a success; return whether it closed the breaker."""
        if self._retry_at is None:
            return False
        with self._lock:
            closed = self._retry_at is not None
            self._retry_at = None
            return closed
