"""Brings spooled records to Redis once it is back.

Each batch file is a writer of its own and each line has its number there, so that
a crash anywhere, and starting over, teaches nothing twice (see ``finish.lua``).
"""

from __future__ import annotations

from pathlib import Path

from rts import health
from rts.ledger.spool import Spool, SpoolRecord
from rts.link.link import Link
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
        """
        shipped = 0
        with self._spool.shipping() as mine:
            if mine:
                for batch in self._spool.batches():
                    shipped += self._ship_batch(batch)
        return shipped

    def _ship_batch(self, batch: Path) -> int:
        try:
            lines = batch.read_bytes().splitlines()
        except FileNotFoundError:  # dropped for its age, to make room
            return 0
        commands: list[bytes] = []
        shipped = 0
        for number, line in enumerate(lines, start=1):
            try:
                record = SpoolRecord.from_line(line)
            except ValueError:
                health.count("spool_unreadable")
                health.warn_once("spool-line", "rts: a torn record in the spool is left out")
                continue
            # The first brings the script itself: a server that is back may be new.
            commands.append(
                self._call.pack(
                    record.execution,
                    f"spool-{batch.stem}",
                    number,
                    elsewhere=record.elsewhere,
                    suspect=record.suspect,
                    whole=not commands,
                )
            )
            if len(commands) == CHUNK:
                self._link.call(*commands)
                shipped += len(commands)
                commands = []
        if commands:
            self._link.call(*commands)
            shipped += len(commands)
        batch.unlink(missing_ok=True)
        return shipped
