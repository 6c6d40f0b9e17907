"""Brings spooled records to Redis once it is back.

Each batch file is a writer of its own and each line has its number there, so that
a crash anywhere, and starting over, teaches nothing twice (see ``finish.lua``).
"""

from __future__ import annotations

import json

from rts.ledger.spool import Batch, Spool
from rts.link.link import Link
from rts.records import Execution
from rts.settings import Settings
from rts.tau.finish import FinishCall

#: Records per round trip.
CHUNK = 100


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
        shipped = 0
        done = batch.shipped
        lines = batch.lines()
        for number, line in enumerate(lines, start=1):
            if number > done and line:
                command = self._command(batch.producer, number, line, whole=not commands)
                if command is not None:
                    commands.append(command)
            if commands and (len(commands) == CHUNK or number == len(lines)):
                self._link.call(*commands)
                batch.mark(number)
                shipped += len(commands)
                commands = []
        batch.remove()
        return shipped

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
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            self._spool.refuse(line)
            return None
