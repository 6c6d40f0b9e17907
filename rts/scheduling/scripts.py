"""The scripts that change a queue in one step, sent by a client of kombu's."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError


class ScriptByHash:
    """A script, to be called by its hash and sent whole where Redis does not know it."""

    def __init__(self, name: str) -> None:
        self.text = files("rts.lua").joinpath(f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: list[str], arguments: list[Any]) -> Any:
        """Call it. *client* must not prefix keys."""
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.execute_command("EVAL", self.text, len(keys), *keys, *arguments)


CLAIM, PUT, RING, MOVE, BACK = (
    ScriptByHash(name) for name in ("claim", "put", "ring", "move", "back")
)
