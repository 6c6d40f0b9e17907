"""A credential provider that hands out new tokens; needs redis-py >= 5.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.auth.token import SimpleToken
from redis.credentials import StreamingCredentialProvider


class Tokens(StreamingCredentialProvider):
    """Stands in for that of a cloud: the server takes any password."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Any], None]] = []

    def get_credentials(self) -> tuple[str, str]:
        return "default", "first"

    def on_next(self, callback: Callable[[Any], None]) -> None:
        self._listeners.append(callback)

    def on_error(self, callback: Callable[[Exception], None]) -> None:
        pass

    def is_streaming(self) -> bool:
        return True

    def renew(self) -> None:
        """Hand out a new token to all that listen."""
        for listener in self._listeners:
            listener(SimpleToken("second", -1, 0, {"oid": "default"}))
