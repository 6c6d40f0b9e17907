"""kombu's poller, for workers whose slots fill while a reply is awaited."""

from __future__ import annotations

import math
import time
from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from redis.connection import AbstractConnection

#: Seconds between polls while no slot is free: the first interval and the longest. Each
#: is twice the one before.
MIN_POLL_S, MAX_POLL_S = 0.0005, 0.01
#: Least seconds between attempts to restore unacknowledged messages.
RESTORE_S = 0.5


class Poller(stock.MultiChannelPoller):  # type: ignore[misc]  # kombu has no type information
    """kombu's; without an event loop (gevent, eventlet) it polls briefly while no slot is
    free, since no event says that a greenlet has ended.
    """

    #: Successive polls that found no free slot.
    _polls = 0
    _restored_at = -math.inf
    #: The event loop; ``None`` without one.
    hub: Any = None

    def wake_in(self, seconds: float) -> None:
        """Have the loop look again in so many seconds. (Without one, :meth:`get` does.)"""
        if self.hub is not None:
            self.hub.call_later(seconds, bool)  # any event wakes it

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for an event, only briefly while no slot is free.

        Raises:
            socket.timeout: the brief wait is over. Celery's loop then runs what the pool
                has queued for it, such as acknowledgements, without which kombu's prefetch
                limit would not let another message be taken.
        """
        # kombu does so only after *timeout* without any reply, and waits for bells are shorter.
        self.maybe_restore_messages()
        full = any(
            channel.slots is not None and not channel.qos.can_consume()
            for channel in self._channels
        )
        if not full:
            self._polls = 0
            return super().get(callback, timeout)
        wait_s = min(MAX_POLL_S, MIN_POLL_S * 2 ** min(self._polls, 10))
        self._polls += 1
        try:
            return super().get(callback, wait_s if timeout is None else min(timeout, wait_s))
        except Empty:
            raise TimeoutError() from None

    def on_readable(self, fileno: int) -> None:
        """Read what has come, also while no slot is free: the loop would spin until it is read.

        It may be the reply to a claim, if a task whose eta has come took the last free slot
        meanwhile (kombu >= 5.7 sees to that itself), a broadcast, or the end of an idle
        connection.
        """
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "BRPOP" and not channel._in_poll:
            self.let_go(channel)
        elif (kind == "BRPOP" and not hasattr(self, "_paused_brpop")) or (  # kombu < 5.7
            kind == "LISTEN" and virtual.QoS.can_consume(channel.qos)
        ):
            channel.handlers[kind]()
        else:
            super().on_readable(fileno)

    def let_go(self, channel: Any) -> None:
        """Close the connection over which *channel* claims; its next claim opens another."""
        client = channel.client
        self._chan_to_sock.pop((channel, client, "BRPOP"), None)
        for fileno, registered in list(self._fd_to_chan.items()):
            if registered == (channel, "BRPOP"):
                del self._fd_to_chan[fileno]
                self._unregister_from_poll(fileno)
        # Not kombu's own method: before 5.7 the event loop would poll no more after it, and
        # without an event loop the number stays in the poller, though another file may get it.
        AbstractConnection.disconnect(client.connection)  # type: ignore[no-untyped-call]  # in redis-py

    def _unregister_from_poll(self, fileno: int) -> None:
        """With an event loop its own method is in this one's place (see the transport)."""
        self.poller.unregister(fileno)

    def maybe_restore_messages(self) -> None:
        """Restore at a bounded rate, however often :meth:`get` is called."""
        now = time.monotonic()
        if now - self._restored_at >= RESTORE_S:
            self._restored_at = now
            super().maybe_restore_messages()
