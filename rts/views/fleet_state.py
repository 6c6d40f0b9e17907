"""What metrics and status both read from Redis: the outbox, counters, workers and runs in
flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Instants in epoch seconds, by the clock of Redis; the defaults are of an empty one."""

    #: Its time when it was asked.
    now: float = 0.0
    outbox_length: int = 0
    #: Instant of the oldest record in the outbox; ``None`` if it is empty.
    oldest_at: float | None = None
    #: By name, at least 0.
    counters: Mapping[str, int] = field(default_factory=dict)
    #: The last heartbeats, also of workers that are gone, for a while; by name.
    workers: Sequence[Heartbeat] = ()
    #: How many runs in flight are noted, and those whose notes can be read.
    notes: int = 0
    running: Sequence[Execution] = ()

    @property
    def lag_s(self) -> float:
        """Age of the oldest record in the outbox, seconds; 0 if it is empty."""
        return 0.0 if self.oldest_at is None else max(0.0, self.now - self.oldest_at)

    @property
    def late(self) -> list[Execution]:
        """The runs in flight past their deadline."""
        return [run for run in self.running if run.deadline < self.now]

    @property
    def live_workers(self) -> list[Heartbeat]:
        """The workers that are not silent."""
        return [worker for worker in self.workers if not worker.is_silent(self.now)]

    def takers(self, queue: str) -> list[Heartbeat]:
        """Return the live workers that consume *queue*, or may."""
        return [worker for worker in self.live_workers if worker.takes_from(queue)]

    def slots_for(self, queue: str) -> int:
        """Return the slots of the live workers that consume *queue*, or may."""
        return sum(worker.slots or 0 for worker in self.takers(queue))


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
        workers=sorted(read_heartbeats(beats), key=lambda beat: (beat.worker, beat.instance)),
        notes=len(notes),
        running=list(read_runs(notes)),
    )
    return vitals, replies
