"""What metrics and status both read from Redis: the outbox, counters, workers and runs in
flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rts.keys import Keys
from rts.link.link import Link
from rts.link.replies import as_counts, as_instant
from rts.link.scripts import pack
from rts.records import Execution, read_runs
from rts.unfinished.heartbeat import Heartbeat, read_heartbeats

#: Counters of lost records.
LOSSES = ("outbox_dropped", "spool_dropped", "records_lost")


@dataclass(frozen=True)
class Vitals:
    """Instants in epoch seconds, by the clock of Redis."""

    now: float
    outbox_length: int
    #: Instant of the oldest record in the outbox; ``None`` if it is empty.
    oldest_at: float | None
    #: By name, at least 0.
    counters: Mapping[str, int]
    #: Including workers that are gone, for a while.
    workers: Sequence[Heartbeat]
    #: How many runs in flight are noted, and those whose notes can be read.
    notes: int
    running: Sequence[Execution]

    @property
    def lag_s(self) -> float:
        """Age of the oldest record in the outbox, seconds; 0 if it is empty."""
        return 0.0 if self.oldest_at is None else max(0.0, self.now - self.oldest_at)

    @property
    def late(self) -> list[Execution]:
        """The runs in flight past their deadline."""
        return [run for run in self.running if run.deadline < self.now]


def ask_vitals(link: Link, keys: Keys, *more: bytes) -> tuple[Vitals, list[Any]]:
    """Return the vitals, and the replies to *more*, commands that go in the same round trip."""
    time_, length, oldest, counters, beats, notes, *replies = link.call(
        pack("TIME"),
        pack("XLEN", keys.outbox),
        pack("XRANGE", keys.outbox, "-", "+", "COUNT", 1),
        pack("HGETALL", keys.counters),
        pack("HGETALL", keys.workers),
        pack("HVALS", keys.running),
        *more,
    )
    vitals = Vitals(
        now=as_instant(time_),
        outbox_length=int(length),
        oldest_at=int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else None,
        counters=as_counts(counters),
        workers=read_heartbeats(beats),
        notes=len(notes),
        running=list(read_runs(notes)),
    )
    return vitals, replies
