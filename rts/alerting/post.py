"""Send one message to a webhook, over HTTP."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from rts.webhooks import Webhook

#: Seconds to connect, and then for each part of the response. A receiver that is slow rather
#: than down would get the same message again and again if the limit were short; nothing else
#: waits for it.
TIMEOUT_S = 20.0


class NotDelivered(Exception):
    """The receiver did not take the message; the text says why, without its URL."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is a failure: it could lead anywhere, and would lose the body."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def post(hook: Webhook, body: bytes, headers: dict[str, str]) -> None:
    """Send *body* to *hook*; any 2xx response acknowledges it.

    Certificates are verified. Proxies are those of the environment. The body of the response is
    not read.

    Raises:
        NotDelivered: there was no such response.
    """
    url, authorization = without_credentials(hook.url)
    headers = {"Content-Type": "application/json", "User-Agent": "rts", **headers}
    if authorization is not None:
        headers["Authorization"] = authorization
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as exc:  # any status but 2xx
        exc.close()
        raise NotDelivered(f"it answers {exc.code}") from None
    except (OSError, HTTPException, ValueError) as exc:
        # The text of the error may hold the URL; its type does not.
        cause = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        name = type(cause).__name__ if isinstance(cause, BaseException) else "URLError"
        raise NotDelivered(f"it does not answer ({name})") from None


def without_credentials(url: str) -> tuple[str, str | None]:
    """Return *url* without user and password, and the header that carries them.

    >>> without_credentials("https://joe:x%40y@example.org/hook")
    ('https://example.org/hook', 'Basic am9lOnhAeQ==')
    >>> without_credentials("https://token@example.org/hook")
    ('https://example.org/hook', 'Basic dG9rZW46')
    """
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return bare.geturl(), "Basic " + base64.b64encode(pair.encode()).decode()
