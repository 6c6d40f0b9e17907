"""What makes up a queue in Redis, and what is asked of a queue as a whole.

Its tasks wait in two sorted sets; other messages wait on the lists that kombu has for
it. Scripts get the names whole; kombu's clients add the prefix themselves.
"""

from __future__ import annotations

from typing import Any

import redis

#: What makes up a queue, behind its name and the separator.
HOPEFUL, DEMOTED, BELL, TURNS, REFUSED = (
    "edf",
    "edf:demoted",
    "edf:bell",
    "edf:turns",
    "edf:refused",
)


class QueueLayout:
    """The names of a queue's parts, and how kombu sizes, empties and removes it. Mixed
    into a channel, which is why *self* may be used as any of kombu's channels.
    """

    _plain: Any = None

    def _part(self: Any, queue: str, part: str) -> str:
        return f"{queue}{self.sep}{part}"

    def _lists(self: Any, queue: str) -> list[str]:
        return [self._q_for_pri(queue, step) for step in self.priority_steps]

    def _full(self: Any, names: list[str]) -> list[str]:
        prefix: str = self.global_keyprefix
        return [prefix + name for name in names]

    def _names(self: Any, queue: str, *parts: str) -> list[str]:
        names: list[str] = self._full([self._part(queue, part) for part in parts])
        return names

    @property
    def plain(self: Any) -> Any:
        """A client of kombu's pool that takes names as they are."""
        pool = self.pool
        if self._plain is None or self._plain.connection_pool is not pool:
            self._plain = redis.Redis(connection_pool=pool)
        return self._plain

    def _size(self: Any, queue: str) -> int:
        with self.plain.pipeline(transaction=False) as pipe:
            for name in self._names(queue, HOPEFUL, DEMOTED):
                pipe.zcard(name)
            there: int = super()._size(queue)  # type: ignore[misc]  # kombu's
            return there + int(sum(pipe.execute()))

    def _has_queue(self: Any, queue: str, **kwargs: Any) -> bool:
        there = self.plain.exists(*self._names(queue, HOPEFUL, DEMOTED))
        return bool(there) or bool(super()._has_queue(queue, **kwargs))  # type: ignore[misc]  # kombu's

    def _purge(self: Any, queue: str) -> int:
        with self.plain.pipeline() as pipe:
            for name in self._names(queue, HOPEFUL, DEMOTED):
                pipe.zcard(name)
            pipe.delete(*self._names(queue, HOPEFUL, DEMOTED, BELL, TURNS))
            waiting = int(sum(pipe.execute()[:2]))
        plain: int = super()._purge(queue)  # type: ignore[misc]  # kombu's
        return waiting + plain

    def _delete(self: Any, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)  # type: ignore[misc]  # kombu's
        self.plain.delete(*self._names(queue, HOPEFUL, DEMOTED, BELL, TURNS))
