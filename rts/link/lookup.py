"""Looking up the name of a server, without waiting for a resolver that does not answer.

The timeouts of a connection begin once the address is known. Where name servers are
away, the system's resolver takes many seconds to say so, each time.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Any

import redis


class Lookup:
    """The name of one server; *host* is ``None`` where it has none, such as a socket's path.

    What is found is not kept: the driver looks the name up again, when that is known to
    be possible.
    """

    def __init__(self, host: Any, timeout_s: float) -> None:
        self._host = host if isinstance(host, str) and not is_address(host) else None
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Wait until the name was looked up, whatever came of it.

        Raises:
            redis.TimeoutError: not within *timeout_s* seconds.
        """
        if self._host is None:
            return
        thread = self._thread
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=_look_up, args=(self._host,), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there are too many, or the interpreter ends
                return
            self._thread = thread
        thread.join(self._timeout_s)
        if thread.is_alive():
            raise redis.TimeoutError(
                f"the address of {self._host} was not found within {self._timeout_s:g} s"
            )
        self._thread = None


def is_address(host: str) -> bool:
    """Return whether *host* needs no look at a name server.

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
        pass  # the driver meets it as well, and tells
