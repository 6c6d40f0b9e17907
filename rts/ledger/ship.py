"""Brings spooled records to Redis once it is back.

Each batch file is a writer of its own and each line has its number there, so that
a crash anywhere, and starting over, teaches nothing twice (see ``finish.lua``).
"""

from __future__ import annotations

import json

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.spool import Batch, Spool
from rts.link.link import Link
from rts.link.scripts import pack
from rts.records import Execution
from rts.settings import Settings
from rts.tau.finish import FinishCall

#: Records per round trip. They are applied in one go, about 40 µs each, in which
#: Redis serves nobody else.
CHUNK = 50

_MULTI, _EXEC = pack("MULTI"), pack("EXEC")


class Shipper:
    """Ships the spool of this host."""

    def __init__(self, spool: Spool, link: Link, settings: Settings) -> None:
        self._spool = spool
        self._link = link
        self._call = FinishCall(settings)

    def ship(self) -> int:
        """Ship all that waits and return the number of records.

        Raises:
            StoreUnavailable: Redis is away (again); what is left waits on.
            OSError: the spool cannot be read or cleaned up.
        """
        shipped = 0
        while (batch := self._spool.take()) is not None:
            try:
                shipped += self._ship_batch(batch)
            finally:
                batch.close()
        return shipped

    def _ship_batch(self, batch: Batch) -> int:
        commands: list[bytes] = []
        numbers: list[int] = []
        shipped = 0
        done = batch.shipped
        lines = batch.lines()
        for number, line in enumerate(lines, start=1):
            if number > done and line:
                command = self._command(batch.producer, number, line, whole=not commands)
                if command is not None:
                    commands.append(command)
                    numbers.append(number)
            if commands and (len(commands) == CHUNK or number == len(lines)):
                shipped += self._send(batch, commands, [lines[n - 1] for n in numbers])
                self._mark(batch, number)
                commands, numbers = [], []
        batch.remove()
        return shipped

    def _send(self, batch: Batch, commands: list[bytes], lines: list[bytes]) -> int:
        """Send a chunk; return the number of records that Redis took.

        In a transaction, because what refuses one record (memory, a replica)
        nearly always refuses all, and numbers must not go in with gaps. A record
        that is refused all the same, between others, waits as a new one.

        Raises:
            StoreUnavailable: Redis is away or refuses all of them.
        """
        answers = self._link.call(_MULTI, *commands, _EXEC)[-1]
        refused = [
            (line, answer)
            for line, answer in zip(lines, answers, strict=True)
            if isinstance(answer, Exception)
        ]
        if refused and len(refused) == len(lines):
            raise StoreUnavailable(f"Redis refuses records: {refused[0][1]}")
        if refused:
            health.count("spool_retried", len(refused))
            self._spool.append_lines([line for line, _ in refused])
        return len(lines) - len(refused)

    def _mark(self, batch: Batch, lines: int) -> None:
        try:
            batch.mark(lines)
        except OSError:
            # A full disk must not keep the spool from being emptied. Should this
            # process die now, Redis recognises what comes again.
            health.count("spool_unmarked")

    def _command(self, producer: str, number: int, line: bytes, *, whole: bool) -> bytes | None:
        """Return the call for one line; *whole*: a server that is back may be new."""
        try:
            document = json.loads(line)
            suspect = document["suspect"]
            return self._call.pack(
                Execution.from_mapping(document["execution"]),
                producer,
                number,
                elsewhere=bool(document["elsewhere"]),
                suspect=None if suspect is None else (str(suspect[0]), int(suspect[1])),
                whole=whole,
            )
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
            self._spool.refuse(line)
            return None
