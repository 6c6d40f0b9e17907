"""What metrics and status both read from Redis: the outbox, counters, workers and runs in
flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rts.keys import Keys
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


def commands(keys: Keys) -> list[bytes]:
    """Return the commands whose replies :func:`vitals_of` reads."""
    return [
        pack("TIME"),
        pack("XLEN", keys.outbox),
        pack("XRANGE", keys.outbox, "-", "+", "COUNT", 1),
        pack("HGETALL", keys.counters),
        pack("HGETALL", keys.workers),
        pack("HVALS", keys.running),
    ]


def vitals_of(replies: Sequence[Any]) -> Vitals:
    """Return the vitals in the *replies* to :func:`commands`."""
    time_, length, oldest, counters, beats, notes = replies
    return Vitals(
        now=as_instant(time_),
        outbox_length=int(length),
        oldest_at=int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else None,
        counters=as_counts(counters),
        workers=read_heartbeats(beats),
        notes=len(notes),
        running=list(read_runs(notes)),
    )
