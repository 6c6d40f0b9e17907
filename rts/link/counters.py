"""What this process has counted, on its way to Redis beside other commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from rts import health
from rts.link.scripts import pack


class Counted:
    """Counts that were taken to be delivered. One of the two methods must follow, unless
    the server has taken all.
    """

    def __init__(self, key: str) -> None:
        self._counts = health.take_counts()
        #: One for each count.
        self.commands = [pack("HINCRBY", key, name, n) for name, n in self._counts.items()]

    def answered(self, answers: Sequence[Any]) -> None:
        """Put back what the server, which has no memory or is a replica, has refused."""
        health.give_back(
            {
                name: n
                for (name, n), answer in zip(self._counts.items(), answers, strict=True)
                if isinstance(answer, ResponseError)
            }
        )

    def give_back(self) -> None:
        """Put all of it back: nothing has reached Redis."""
        health.give_back(self._counts)
