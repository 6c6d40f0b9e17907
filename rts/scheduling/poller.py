"""Waiting for messages where there is no event loop: threads, gevent, solo."""

from __future__ import annotations

import math
import time
from queue import Empty
from typing import Any

from kombu.transport import redis as stock

#: Seconds between looks at the slots, in pools without an event loop: the first, and
#: at most. Each waits twice as long as the one before.
FIRST_LOOK_S, FULL_S = 0.0005, 0.01
#: Seconds between looks for what to put back, at least.
RESTORE_S = 0.5


class Poller(stock.MultiChannelPoller):  # type: ignore[misc]  # kombu has no type information
    """Waits for messages where there is no event loop (threads, gevent, solo)."""

    #: Looks in a row that found no free slot.
    _looks = 0
    _restored_at = -math.inf

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for an event; not long while slots may become free at any moment.

        Raises:
            socket.timeout: that moment is over. Celery's loop then does what its threads
                have left to it, acknowledgements for instance, without which kombu
                lets nothing more be taken.
        """
        full = any(
            channel.slots is not None and not channel.qos.can_consume()
            for channel in self._channels
        )
        if not full:
            self._looks = 0
            return super().get(callback, timeout)
        wait_s = min(FULL_S, FIRST_LOOK_S * 2 ** min(self._looks, 10))
        self._looks += 1
        try:
            return super().get(callback, wait_s if timeout is None else min(timeout, wait_s))
        except Empty:
            raise TimeoutError() from None

    def maybe_restore_messages(self) -> None:
        """Count a look for what to put back, however often :meth:`get` is called."""
        now = time.monotonic()
        if now - self._restored_at >= RESTORE_S:
            self._restored_at = now
            super().maybe_restore_messages()
