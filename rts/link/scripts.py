"""The Lua scripts, and the wire format of commands.

Commands are packed here (RESP, the protocol of Redis: an array of bulk strings), so
that the constant parts of a frequent call are packed only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files


def bulks(*arguments: bytes) -> bytes:
    """Return *arguments* as packed bulk strings, without the array's header."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])


def pack(*arguments: str | bytes | float) -> bytes:
    """Return one complete command in wire format. Lone surrogates, which a stranger's text may
    have, become question marks.
    """
    encoded = [
        a if isinstance(a, bytes) else str(a).encode("utf-8", "replace") for a in arguments
    ]
    return b"*%d\r\n%b" % (len(encoded), bulks(*encoded))


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script. Each call sends its whole text, and serves many records."""

    text: bytes

    @classmethod
    def load(cls, *names: str) -> Script:
        """Read and join the files ``rts/lua/NAME.lua``, without comments and indentation: these
        would be a third of the bytes that each call sends and Redis hashes.
        """
        folder = files("rts.lua")
        text = b"\n".join(folder.joinpath(f"{name}.lua").read_bytes() for name in names)
        lines = [line.strip() for line in text.splitlines()]
        return cls(b"\n".join(line for line in lines if line and not line.startswith(b"--")))

    def head(self, arguments: int, keys: int) -> bytes:
        """Return the packed start of a call with so many arguments and keys."""
        return b"*%d\r\n%b" % (3 + keys + arguments, bulks(b"EVAL", self.text, b"%d" % keys))

    def pack(self, keys: Sequence[str], arguments: Sequence[str | bytes | float]) -> bytes:
        """Return a complete call in wire format."""
        return pack(b"EVAL", self.text, len(keys), *keys, *arguments)


FINISH = Script.load("remove_open", "finish")
RESTORE = Script.load("restore")
READ_OUTBOX = Script.load("groups", "outlasts", "read_outbox")
LEASE = Script.load("outlasts", "lease")
REGISTER_OPEN = Script.load("decode", "register_open")
MARK_OVERDUE = Script.load("decode", "count", "mark_overdue")
ACKNOWLEDGE = Script.load("decode", "count", "acknowledge")
UPDATE_ALERT = Script.load("update_alert")
NEXT_EVENT = Script.load("groups", "next_event")
