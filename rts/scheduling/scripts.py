"""The Lua scripts that change a queue atomically, run through kombu's Redis client."""

from __future__ import annotations

import hashlib
from typing import Any

from redis.exceptions import NoScriptError

from rts.link.scripts import Script


class ScriptByHash:
    """A script that is called by its hash, or sent in full if Redis has not cached it."""

    def __init__(self, name: str) -> None:
        self.text = Script.load(name).text
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: list[str], arguments: list[Any]) -> Any:
        """Run it and return its reply. *client* must not prefix keys."""
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.execute_command("EVAL", self.text, len(keys), *keys, *arguments)


CLAIM, REFUSE, PUT, RING, MOVE, REQUEUE = (
    ScriptByHash(name) for name in ("claim", "refuse", "put", "ring", "move", "requeue")
)
