"""The Redis keys of a queue in deadline order, and operations on a queue as a whole.

Tasks wait in two sorted sets, hopeful and demoted; other messages wait on the lists that
kombu uses. The *bell* is a list of at most one element, on which idle consumers block
and which publishers push to. Scripts get full key names, while kombu's own clients add
``global_keyprefix`` themselves.
"""

from __future__ import annotations

from typing import Any

import redis

#: Suffixes of a queue's keys, after its name and kombu's separator: hopeful and demoted
#: messages, the bell, the count of claims that the late share goes by, unreadable messages.
HOPEFUL, DEMOTED, BELL, TURNS, REFUSED = (
    "edf",
    "edf:demoted",
    "edf:bell",
    "edf:turns",
    "edf:refused",
)


class QueueLayout:
    """Mixin for kombu's Redis channels: key names, and a queue's size, purge and deletion."""

    _plain: Any = None

    def _part(self: Any, queue: str, part: str) -> str:
        return f"{queue}{self.sep}{part}"

    def _lists(self: Any, queue: str) -> list[str]:
        return [self._q_for_pri(queue, step) for step in self.priority_steps]

    def _prefixed(self: Any, names: list[str]) -> list[str]:
        prefix: str = self.global_keyprefix
        return [prefix + name for name in names]

    def _keys(self: Any, queue: str, *parts: str) -> list[str]:
        names: list[str] = self._prefixed([self._part(queue, part) for part in parts])
        return names

    @property
    def plain(self: Any) -> Any:
        """A client on kombu's connection pool that does not prefix keys."""
        pool = self.pool
        if self._plain is None or self._plain.connection_pool is not pool:
            self._plain = redis.Redis(connection_pool=pool)
        return self._plain

    def _size(self: Any, queue: str) -> int:
        with self.plain.pipeline(transaction=False) as pipe:
            for name in self._keys(queue, HOPEFUL, DEMOTED):
                pipe.zcard(name)
            on_lists: int = super()._size(queue)  # type: ignore[misc]  # kombu's
            return on_lists + int(sum(pipe.execute()))

    def _has_queue(self: Any, queue: str, **kwargs: Any) -> bool:
        exists = self.plain.exists(*self._keys(queue, HOPEFUL, DEMOTED))
        return bool(exists) or bool(super()._has_queue(queue, **kwargs))  # type: ignore[misc]  # kombu's

    def _purge(self: Any, queue: str) -> int:
        with self.plain.pipeline() as pipe:
            for name in self._keys(queue, HOPEFUL, DEMOTED):
                pipe.zcard(name)
            pipe.delete(*self._keys(queue, HOPEFUL, DEMOTED, BELL, TURNS))
            waiting = int(sum(pipe.execute()[:2]))
        on_lists: int = super()._purge(queue)  # type: ignore[misc]  # kombu's
        return waiting + on_lists

    def _delete(self: Any, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)  # type: ignore[misc]  # kombu's
        self.plain.delete(*self._keys(queue, HOPEFUL, DEMOTED, BELL, TURNS))
