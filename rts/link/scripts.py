"""The Lua scripts, and the wire form of commands.

Commands are packed here (RESP, the protocol of Redis: an array of bulk strings),
because a run's end is on the path of every task: what never changes of a call
is packed once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


def bulks(*arguments: bytes) -> bytes:
    """Return *arguments* as packed bulk strings, without the array's head."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])


def pack(*arguments: str | bytes | float) -> bytes:
    """Return one whole command in wire form."""
    encoded = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
    return b"*%d\r\n%b" % (len(encoded), bulks(*encoded))


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script."""

    text: bytes
    sha: bytes

    @classmethod
    def load(cls, name: str) -> Script:
        """Read ``rts/lua/NAME.lua``."""
        text = files("rts.lua").joinpath(f"{name}.lua").read_bytes()
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())

    def head(self, arguments: int, keys: int, *, whole: bool = False) -> bytes:
        """Return the packed start of a call with that many keys and arguments.

        *whole* sends the script itself, to a server that does not have it yet.
        """
        verb, script = (b"EVAL", self.text) if whole else (b"EVALSHA", self.sha)
        count = 3 + keys + arguments
        return b"*%d\r\n%b" % (count, bulks(verb, script, b"%d" % keys))

    def pack(
        self, keys: list[str], arguments: list[str | bytes | float], *, whole: bool = False
    ) -> bytes:
        """Return a whole call in wire form."""
        encoded = [a if isinstance(a, bytes) else str(a).encode() for a in (*keys, *arguments)]
        return self.head(len(arguments), len(keys), whole=whole) + bulks(*encoded)


FINISH = Script.load("finish")
RESTORE = Script.load("restore")
TAKE = Script.load("take")
REAP = Script.load("reap")
