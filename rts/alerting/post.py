"""Sending one message to a webhook, over HTTP."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import unquote, urlsplit

from rts.webhooks import Webhook

#: Seconds for a connection, and for the answer. One that is slow rather than down
#: would get the same message again and again if it was not waited for; nobody else
#: waits for it.
CONNECT_S, ANSWER_S = 5.0, 20.0


class NotDelivered(Exception):
    """The receiver did not take the message; the text says why, without its URL."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is a failure: it could lead anywhere, and would lose the body."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _InTime(HTTPConnection):
    """Hangs up on a receiver that has not answered in time. A timeout of the socket alone
    is for each piece of an answer: one that trickles would hold its courier for ever.
    """

    _alarm: threading.Timer | None = None
    _is_late = False

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(ANSWER_S)
        self._alarm = threading.Timer(ANSWER_S, self._hang_up, (self.sock,))
        self._alarm.daemon = True
        self._alarm.start()

    def getresponse(self) -> HTTPResponse:
        try:
            answer = super().getresponse()
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
        if self._is_late:  # the end of a connection ends a header, too
            answer.close()
            raise TimeoutError
        return answer

    def _hang_up(self, connection: socket.socket) -> None:
        self._is_late = True
        try:
            # Of the socket below TLS, from which another thread reads at this moment.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        except OSError:  # it has ended
            pass


class _Connection(_InTime):
    pass


class _TLSConnection(_InTime, HTTPSConnection):
    pass


class _OverHTTP(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _OverTLS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_TLSConnection, req, context=ssl.create_default_context())


def post(hook: Webhook, body: bytes, headers: dict[str, str]) -> None:
    """Send *body* to *hook*; any answer 2xx is a receipt.

    Certificates are verified. Proxies are those of the environment. Nothing of the
    answer's body is read.

    Raises:
        NotDelivered: there was no such answer.
    """
    url, authorization = without_credentials(hook.url)
    headers = {"Content-Type": "application/json", "User-Agent": "rts", **headers}
    if authorization is not None:
        headers["Authorization"] = authorization
    request = urllib.request.Request(url, body, headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirects, _OverHTTP, _OverTLS)
    try:
        with opener.open(request, timeout=CONNECT_S) as answer:
            if not 200 <= answer.status < 300:
                raise NotDelivered(f"it answers {answer.status}")
    except urllib.error.HTTPError as exc:
        exc.close()
        raise NotDelivered(f"it answers {exc.code}") from None
    except (OSError, HTTPException, ValueError) as exc:
        # A driver's text may hold the URL; the kind of trouble does not.
        cause = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        name = type(cause).__name__ if isinstance(cause, BaseException) else "URLError"
        raise NotDelivered(f"it does not answer ({name})") from None


def without_credentials(url: str) -> tuple[str, str | None]:
    """Return *url* without user and password, and the header that carries them.

    >>> without_credentials("https://joe:x%40y@example.org/hook")
    ('https://example.org/hook', 'Basic am9lOnhAeQ==')
    """
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return bare.geturl(), "Basic " + base64.b64encode(pair.encode()).decode()
