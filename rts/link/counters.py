"""This process's counters, sent to Redis along with other commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from rts import health
from rts.link.scripts import pack


class TakenCounts:
    """Counts taken for delivery. Call one of the two methods afterwards, unless the server
    accepted them all.
    """

    def __init__(self, key: str) -> None:
        self._counts = health.take_counts()
        #: One command per count.
        self.commands = [pack("HINCRBY", key, name, n) for name, n in self._counts.items()]

    def give_back_refused(self, replies: Sequence[Any]) -> None:
        """Put back what the server (out of memory, or a read-only replica) has refused."""
        health.give_back(
            {
                name: n
                for (name, n), reply in zip(self._counts.items(), replies, strict=True)
                if isinstance(reply, ResponseError)
            }
        )

    def give_back(self) -> None:
        """Put all counts back: none has reached Redis."""
        health.give_back(self._counts)
