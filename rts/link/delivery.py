"""Sends what a process has gathered to Redis, and keeps it unless Redis accepts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from rts import health
from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.link.scripts import pack


class Taken(NamedTuple):
    """Something that was taken out of a buffer of this process to be delivered."""

    command: bytes
    #: Puts it back.
    give_back: Callable[[], None]


def take_counters(key: str) -> list[Taken]:
    """Take this process's counters, for the hash *key*."""
    return [
        Taken(pack("HINCRBY", key, name, n), partial(health.give_back, {name: n}))
        for name, n in health.take_counts().items()
    ]


def deliver(link: Link, taken: Sequence[Taken], *commands: bytes) -> list[Any]:
    """Send *commands* and then what was *taken*, in one round trip, and return all replies.
    What the server refuses (out of memory, or a read-only replica) is given back, and its
    reply is a :class:`redis.ResponseError`.

    Raises:
        StoreUnavailable: no reply in time; all that was taken is given back.
    """
    try:
        replies = link.call_each(*commands, *(each.command for each in taken))
    except BaseException:  # including a soft time limit that strikes here
        for each in taken:
            each.give_back()
        raise
    for each, reply in zip(taken, replies[len(commands) :], strict=True):
        if isinstance(reply, ResponseError):
            each.give_back()
    return replies


def ask_for_room(link: Link, key: str) -> None:
    """Check that Redis takes heartbeats and the ends of runs, by a write to the sorted set
    *key* that changes nothing: while memory is short, Redis refuses it as it refuses them.

    Raises:
        StoreUnavailable: it is refused, or there is no reply in time.
    """
    # Not with call: a refusal must not open the breaker.
    (reply,) = link.call_each(pack("ZADD", key, "XX", 0, ""))
    if isinstance(reply, ResponseError):
        raise StoreUnavailable(f"Redis takes no ends: {reply}") from reply
