"""The Lua scripts that change or read a queue, run through kombu's Redis client."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from rts.link.scripts import Script


class ScriptByHash:
    """A script that is called by its hash, or sent in full if Redis has not cached it."""

    def __init__(self, *names: str) -> None:
        self.text = Script.load(*names).text
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: list[str], arguments: list[Any]) -> Any:
        """Run it and return its reply. *client* must not prefix keys."""
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.execute_command("EVAL", self.text, len(keys), *keys, *arguments)


CLAIM = ScriptByHash("decode", "claim")
REFUSE, PUT, RING, MOVE, REQUEUE, HOPELESS = map(
    ScriptByHash, ("refuse", "put", "ring", "move", "requeue", "hopeless")
)
_READ_MESSAGES = ScriptByHash("read_messages")

#: Size of the messages that a script reads at a time, bytes: Redis serves nobody else for
#: some ten milliseconds.
BYTES = 8 << 20


def read_messages(
    client: Any,
    ranges: Sequence[tuple[str, int, int]],
    unacked: str = "",
    tags: Sequence[bytes] = (),
    most_bytes: int = BYTES,
) -> tuple[list[list[bytes]], list[bytes | None]]:
    """Return the messages of *ranges* of ranks, each within a list or sorted set, and those in
    the hash *unacked* that have these *tags*, all without their bodies.

    The ranks are in the order of consumption, and so are the messages. A range of more than
    *most_bytes* is cut short.
    """
    keys = [key for key, _, _ in ranges] + ([unacked] if tags else [])
    ranks = [rank for _, first, last in ranges for rank in (first, last)]
    found = _READ_MESSAGES.run(client, keys, [len(ranges), most_bytes, *ranks, *tags])
    return found[: len(ranges)], found[len(ranges) :]
