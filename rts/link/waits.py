"""Connections that wait only so long in each exchange, however the reply trickles in.

The timeout of a socket starts anew with each piece that comes: a slow or lossy network would
keep a publisher waiting many times as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds to wait if there are none left: a thread that has waited for the GIL, not for Redis,
#: finds its reply.
LEAST_S = 1e-3
#: The socket's timeout is left alone while the seconds left are at least this share of it: to
#: change it is a system call, after which a thread may have to wait for the GIL.
CLOSE_RATIO = 0.9


class BoundedSocket:
    """A connected socket *sock* that waits for replies for about *timeout_s* seconds in each
    exchange, at most; the first one begins now. Time that the caller takes for itself does not
    count, nor does sending, which hardly ever waits for more than the GIL.
    """

    def __init__(self, sock: Any, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._left_s = timeout_s
        sock.settimeout(timeout_s)
        #: The timeout that the socket has now.
        self._set_s = timeout_s

    def begin(self) -> None:
        """Begin an exchange."""
        self._left_s = self._timeout_s

    def sendall(self, data: bytes) -> None:
        """See :meth:`socket.socket.sendall`."""
        self._set_timeout(self._timeout_s)
        self._sock.sendall(data)

    def recv(self, *args: Any) -> bytes:
        """See :meth:`socket.socket.recv`."""
        received: bytes = self._wait(self._sock.recv, *args)
        return received

    def recv_into(self, *args: Any) -> int:
        """See :meth:`socket.socket.recv_into`."""
        count: int = self._wait(self._sock.recv_into, *args)
        return count

    def _wait(self, call: Callable[..., Any], *args: Any) -> Any:
        self._set_timeout(max(self._left_s, LEAST_S))
        began = time.monotonic()
        try:
            return call(*args)
        finally:
            self._left_s -= time.monotonic() - began

    def _set_timeout(self, seconds: float) -> None:
        if not CLOSE_RATIO * self._set_s <= seconds <= self._set_s:
            self._sock.settimeout(seconds)
            self._set_s = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Bounded:
    """Mixin for redis-py's connections, whose ``socket_timeout`` is a number."""

    _sock: Any
    socket_timeout: float

    def _connect(self) -> BoundedSocket:
        return BoundedSocket(super()._connect(), self.socket_timeout)  # type: ignore[misc]  # redis-py's

    def begin(self) -> None:
        """Begin an exchange. (With a new connection, its first one begins once it is there.)"""
        if self._sock is not None:
            self._sock.begin()


def bounded(connection_class: type) -> type:
    """Return a class like redis-py's *connection_class* whose waits are bounded."""
    return type(f"Bounded{connection_class.__name__}", (_Bounded, connection_class), {})
