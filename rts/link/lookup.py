"""Resolves the name of a server with a timeout.

A connection's timeouts start only once the address is known. While no name server
answers, the system's resolver takes many seconds to fail, each time.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Any

import redis


class Lookup:
    """Resolves the name of one server; *host* is ``None`` for one without, as on a Unix socket.

    The address is not kept: the driver resolves the name again, once that is known to work.
    """

    def __init__(self, host: Any, timeout_s: float) -> None:
        self._host = host if isinstance(host, str) and not is_address(host) else None
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Wait until the lookup has ended, whether or not it succeeded.

        Raises:
            redis.TimeoutError: it took longer than *timeout_s* seconds.
        """
        if self._host is None:
            return
        thread = self._thread
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=_look_up, args=(self._host,), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # too many threads, or the interpreter is shutting down
                return
            self._thread = thread
        thread.join(self._timeout_s)
        if thread.is_alive():
            raise redis.TimeoutError(
                f"the name {self._host} was not resolved within {self._timeout_s:g} s"
            )


def is_address(host: str) -> bool:
    """Return whether *host* can be used without a name server.

    >>> is_address("10.0.0.7"), is_address("::1"), is_address("redis.internal")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _look_up(host: str) -> None:
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        pass  # the driver will raise it as well
