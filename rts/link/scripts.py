"""The Lua scripts, and the wire form of commands.

Commands are packed here (RESP, the protocol of Redis: an array of bulk strings),
since what never changes of a frequent call need be packed only once.
"""

from __future__ import annotations

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
    """A Lua script. It is sent whole with each call, which serve many records each."""

    text: bytes

    @classmethod
    def load(cls, *names: str) -> Script:
        """Read ``rts/lua/NAME.lua``, one behind the other."""
        folder = files("rts.lua")
        return cls(b"".join(folder.joinpath(f"{name}.lua").read_bytes() for name in names))

    def head(self, arguments: int, keys: int) -> bytes:
        """Return the packed start of a call with that many keys and arguments."""
        return b"*%d\r\n%b" % (3 + keys + arguments, bulks(b"EVAL", self.text, b"%d" % keys))

    def pack(self, keys: list[str], arguments: list[str | bytes | float]) -> bytes:
        """Return a whole call in wire form."""
        encoded = [a if isinstance(a, bytes) else str(a).encode() for a in (*keys, *arguments)]
        return self.head(len(arguments), len(keys)) + bulks(*encoded)


FINISH = Script.load("close", "finish")
RESTORE = Script.load("restore")
TAKE = Script.load("take")
LEAVE = Script.load("leave")
LEASE = Script.load("lease")
REAP = Script.load("close", "reap")
OPEN = Script.load("open")
JUDGE = Script.load("count", "judge")
DONE = Script.load("count", "done")
