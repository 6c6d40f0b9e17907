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

#: Unreadable messages that are kept for each queue, the last ones.
MOST_REFUSED = 1000

#: TTL in milliseconds of a bell that is rung though nobody may consume the queue in order.
BELL_TTL_MS = 10_000


class QueueLayout:
    """Mixin for kombu's Redis channels: key names, and a queue's size, purge and deletion.

    Sizes and purges use no transactions, which Redis refuses when it is out of memory, reads
    included.
    """

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
            # With the provider, whose new tokens it passes on to the pool (redis-py >= 6).
            provider = pool.connection_kwargs.get("credential_provider")
            self._plain = redis.Redis(connection_pool=pool, credential_provider=provider)
        return self._plain

    def _message_keys(self: Any, queue: str) -> list[str]:
        """Return the keys that messages wait in: hopeful, demoted, then the lists."""
        lists: list[str] = self._prefixed(self._lists(queue))
        return [*self._keys(queue, HOPEFUL, DEMOTED), *lists]

    def _size(self: Any, queue: str) -> int:
        return int(self._count(queue))

    def _purge(self: Any, queue: str) -> int:
        return int(self._count(queue, delete=True))

    def _count(self: Any, queue: str, delete: bool = False) -> int:
        keys: list[str] = self._message_keys(queue)
        with self.plain.pipeline(transaction=False) as pipe:
            for key in keys[:2]:
                pipe.zcard(key)
            for key in keys[2:]:
                pipe.llen(key)
            if delete:
                pipe.delete(*keys, *self._keys(queue, BELL, TURNS))
            return sum(pipe.execute()[: len(keys)])

    def _renew(self: Any, queue: str, ttl_ms: int) -> None:
        """Reset the TTL of a queue that expires."""
        with self.plain.pipeline(transaction=False) as pipe:
            for key in [*self._message_keys(queue), *self._keys(queue, BELL, TURNS)]:
                pipe.pexpire(key, ttl_ms)
            pipe.execute()

    def _has_queue(self: Any, queue: str, **kwargs: Any) -> bool:
        return bool(self.plain.exists(*self._message_keys(queue)))

    def _delete(self: Any, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)  # type: ignore[misc]  # kombu's
        self.plain.delete(*self._keys(queue, HOPEFUL, DEMOTED, BELL, TURNS))
