"""One address in front of servers, as load balancers and failover pairs have it."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rts.testing.server import Server

#: Seconds that the clock behind :class:`Ahead` is ahead of this host's.
AHEAD_S = 1200.0


class Relay:
    """Takes each new connection to the *server* of that moment; older ones stay."""

    def __init__(self, listener: socket.socket, server: Server) -> None:
        self.server = server
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._ends: list[socket.socket] = []
        #: Of the connections that are there no more, though neither end was told.
        self._forgotten: set[socket.socket] = set()

    def forget(self) -> None:
        """Swallow what the connections of now send, as a firewall does that has taken them
        for idle.
        """
        self._forgotten.update(self._ends)

    def serve(self) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.server.port))
            self._ends += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for end in [self._listener, *self._ends]:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended
            end.close()

    def passed(self, data: bytes) -> bytes:
        """Return what arrives of *data*."""
        return data

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if source not in self._forgotten:
                    target.sendall(self.passed(data))
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed by the other direction


class Ahead(Relay):
    """Leads to a Redis whose clock is ahead."""

    def passed(self, data: bytes) -> bytes:
        """Return *data*, with other replies to TIME."""

        def later(reply: re.Match[bytes]) -> bytes:
            return reply[1] + b"%d" % (int(reply[2]) + AHEAD_S)

        return re.sub(rb"(\*2\r\n\$10\r\n)(\d{10})(?=\r\n\$\d\r\n\d+\r\n)", later, data)


@contextmanager
def relay(
    server: Server, kind: type[Relay] = Relay, tls: ssl.SSLContext | None = None
) -> Iterator[Relay]:
    """Give a relay that leads to *server* at first; with *tls* it is reached over that, which
    not every build of a server has.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if tls is not None:
            listener = tls.wrap_socket(
                listener, server_side=True, do_handshake_on_connect=False
            )
        made = kind(listener, server)
        thread = threading.Thread(target=made.serve, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.close()
            thread.join(5)
