"""The Redis keys of a queue in deadline order, and operations on a queue as a whole.

Tasks wait in two sorted sets, hopeful and demoted; other messages wait on the lists that
kombu uses. The *bell* is a list of at most one element, on which idle consumers block
and which publishers push to.

The functions return full names of keys, for clients that add no ``global_keyprefix`` (which
may be ``None``), and take any of kombu's Redis channels, in deadline order or not.
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


def keys_of(channel: Any, queue: str, *parts: str) -> list[str]:
    """Return the keys of these *parts* of a queue, such as ``BELL``."""
    # Not formatted: the name may be a member of an enum, which is another text then.
    begin = (channel.global_keyprefix or "") + queue + channel.sep
    return [begin + part for part in parts]


def list_keys(channel: Any, queue: str) -> list[str]:
    """Return the lists that kombu uses: one for each priority, in the order of service."""
    prefix = channel.global_keyprefix or ""
    return [prefix + channel._q_for_pri(queue, step) for step in channel.priority_steps]


def message_keys(channel: Any, queue: str) -> list[str]:
    """Return the keys that messages wait in: hopeful, demoted, then the lists."""
    return [*keys_of(channel, queue, HOPEFUL, DEMOTED), *list_keys(channel, queue)]


def unacked_keys(channel: Any) -> list[str]:
    """Return the keys of the unacknowledged messages of all queues: by tag, and the index of
    their tags by the instant of the claim.
    """
    prefix = channel.global_keyprefix or ""
    return [prefix + channel.unacked_key, prefix + channel.unacked_index_key]


def plain_client(channel: Any) -> redis.Redis:
    """Return a client on a channel's connection pool that does not prefix keys.

    A pool that replaces another one needs a new client, which passes the new tokens of a
    credential provider on to its pool (redis-py >= 6).
    """
    provider = channel.pool.connection_kwargs.get("credential_provider")
    return redis.Redis(connection_pool=channel.pool, credential_provider=provider)


class QueueLayout:
    """Mixin for kombu's Redis channels: a queue's size, purge and deletion.

    Sizes and purges use no transactions, which Redis refuses when it is out of memory, reads
    included.
    """

    _plain: Any = None

    @property
    def plain(self: Any) -> Any:
        """See :func:`plain_client`."""
        if self._plain is None or self._plain.connection_pool is not self.pool:
            self._plain = plain_client(self)
        return self._plain

    def _size(self: Any, queue: str) -> int:
        return int(self._count(queue))

    def _purge(self: Any, queue: str) -> int:
        return int(self._count(queue, delete=True))

    def _count(self: Any, queue: str, delete: bool = False) -> int:
        keys = message_keys(self, queue)
        with self.plain.pipeline(transaction=False) as pipe:
            for key in keys[:2]:
                pipe.zcard(key)
            for key in keys[2:]:
                pipe.llen(key)
            if delete:
                pipe.delete(*keys, *keys_of(self, queue, BELL, TURNS))
            return sum(pipe.execute()[: len(keys)])

    def _renew(self: Any, queue: str, ttl_ms: int) -> None:
        """Reset the TTL of a queue that expires."""
        with self.plain.pipeline(transaction=False) as pipe:
            for key in [*message_keys(self, queue), *keys_of(self, queue, BELL, TURNS)]:
                pipe.pexpire(key, ttl_ms)
            pipe.execute()

    def _has_queue(self: Any, queue: str, **kwargs: Any) -> bool:
        return bool(self.plain.exists(*message_keys(self, queue)))

    def _delete(self: Any, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)  # type: ignore[misc]  # kombu's
        self.plain.delete(*keys_of(self, queue, HOPEFUL, DEMOTED, BELL, TURNS))
