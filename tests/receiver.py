"""A webhook receiver in the test process: a real HTTP server that can be in trouble."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Message:
    """One request that came in."""

    path: str
    headers: dict[str, str]
    body: bytes
    #: What was answered; ``None``: nothing in time.
    status: int | None

    @property
    def document(self) -> dict[str, Any]:
        """The body as JSON."""
        document: dict[str, Any] = json.loads(self.body)
        return document


class Receiver:
    """Listens on a port of its own. ``status``: what it answers; ``None``: it takes the
    message and does not answer until it is something else.
    """

    def __init__(self) -> None:
        self.status: int | None = 200
        self.location: str | None = None
        self.messages: list[Message] = []
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def taken(self) -> list[Message]:
        """The messages that were answered with 200."""
        return [message for message in self.messages if message.status == 200]

    def up(self, tls: tuple[str, str] | None = None) -> None:
        """Listen, on the same port as before; with *tls* (certificate and key) over it."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status = receiver.status
                receiver.messages.append(
                    Message(self.path, dict(self.headers.items()), body, status)
                )
                if status is None:
                    receiver._released.wait(60)
                    return
                self.send_response(status)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # the other side has hung up
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections."""
        self._released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
