"""A link to Redis that records what is asked of it."""

from __future__ import annotations

from typing import Any

from rts.link.link import Link
from rts.settings import Settings


class RecordingLink(Link):
    """Sends commands like any other link, and keeps them in *asked*."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.asked: list[bytes] = []

    def call(self, *commands: bytes) -> list[Any]:
        """Send *commands* and return their replies."""
        self.asked.extend(commands)
        return super().call(*commands)
