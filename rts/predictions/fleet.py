"""What Redis tells of the workers of a queue, and of those queues that share them: slots,
load, runs, what was learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rts.ledger.heartbeat import Heartbeat, read_heartbeats
from rts.ledger.in_flight import read_notes
from rts.ledger.received import SIZE
from rts.ledger.recent import RUNS, Recent, read_recent
from rts.link.link import Link, as_instant, replies_as_text
from rts.link.scripts import pack
from rts.predictions.shared_workers import Crew
from rts.records import Execution
from rts.settings import Settings
from rts.tau.cache import POOL
from rts.tau.sketch import Sketch

#: Seconds within which a run that goes on is noted in Redis: a heartbeat, and its way.
NOTED_S = 1.5
#: Queues that are simulated together with the one that is asked about, at most.
MOST_BESIDE = 8
#: Runs per slot, and seconds, from which on the measured share of the slots is believed.
RUNS_PER_SLOT, LEAST_S = 2, 2.0


@dataclass(frozen=True)
class Fleet:
    """The workers of one queue, and of those that they also take from, at one moment."""

    now: float
    #: The one that is asked about, then the others.
    queues: Sequence[str]
    #: Numbers of the queues, by the routing keys of their messages.
    numbers: Mapping[str, int]
    #: The workers; in deadline order together those that take from the same of these queues.
    crews: Sequence[Crew]
    #: Numbers of the crews, by the instances of their workers.
    crew_of: Mapping[str, int]
    #: Numbers of the crews, by the marks of what their workers have received last; ``None``:
    #: of several, the last time by one that is not known.
    receivers: Mapping[int, int | None]
    #: Whether all workers tell what they have received.
    all_tell: bool
    #: Slots of each worker.
    workers: Sequence[int]
    #: What goes on in the workers' slots, of whatever queue.
    running: Sequence[Execution]
    #: Ends of the queues' runs that are remembered, and since when all are.
    recent: Sequence[Recent]
    known_since: float
    ratios: Mapping[str, Sketch]

    @property
    def slots(self) -> int:
        """Tasks of the queue that may run at a time."""
        return sum(crew.slots for crew in self.crews if 0 in crew.queues)

    def tell_all(self, etas: int) -> bool:
        """Return whether what is among nobody's marks is held by nobody: all workers tell
        them, and of none so many that some are forgotten; *etas*: tasks that they hold
        besides.
        """
        most = max((crew.slots + crew.ahead for crew in self.crews), default=0.0)
        return self.all_tell and most + etas <= SIZE

    @property
    def own_running(self) -> list[Execution]:
        """What goes on of these queues."""
        return [run for run in self.running if run.queue in self.numbers]

    def share(self, since: float) -> float | None:
        """Return the share of the slots' time in which something ran, where there was
        work for all of them *since* an instant; ``None``: too little was seen.
        """
        until = self.now - NOTED_S
        if until - since < LEAST_S or not self.slots:
            return None
        if len({crew.queues for crew in self.crews}) > 1:
            return None
        spans = [(run.started_at, run.completed_at) for run in self.recent]
        spans += [(run.started_at or until, until) for run in self.own_running]
        seen = [min(end, until) - max(start, since) for start, end in spans]
        seen = [span for span in seen if span > 0]
        if since < self.known_since or len(seen) < RUNS_PER_SLOT * self.slots:
            return None
        return min(1.0, max(0.01, sum(seen) / (self.slots * (until - since))))


def read_fleet(
    link: Link,
    settings: Settings,
    queue: str,
    keys_of: Callable[[str], Iterable[str]],
    most_beside: int = MOST_BESIDE,
) -> Fleet:
    """Read what there is to know of *queue*, in two round trips at most.

    *keys_of* returns the routing keys of a queue's messages. *most_beside*: of other
    queues that share workers with it.

    Raises:
        StoreUnavailable: Redis is away.
    """
    keys = settings.keys
    types = [*settings.task_types, POOL]

    def ask(queues: Iterable[str]) -> list[tuple[str, bytes]]:
        names = [key for each in queues for key in keys_of(each)]
        return [(name, pack("LRANGE", keys.recent + name, 0, -1)) for name in names]

    own = ask([queue])
    time_, beats, notes, *answers = link.call(
        pack("TIME"),
        pack("HGETALL", keys.workers),
        pack("HVALS", keys.running),
        *(command for _, command in own),
        *(pack("HGETALL", keys.ratio + task_type) for task_type in types),
    )
    now = as_instant(time_)
    recent, ratios = answers[: len(own)], answers[len(own) :]
    workers = living(beats, now)
    beside = _beside(workers, queue)[:most_beside]
    others = ask(beside)
    if others:
        recent += link.call(*(command for _, command in others))
    ended = [read_recent(texts) for texts in recent]
    # Of each key so many are kept.
    full = [min(run.completed_at for run in runs) for runs in ended if len(runs) >= RUNS]
    over = {(run.task_id, run.started_at) for runs in ended for run in runs}
    queues = [queue, *beside]
    numbers = {key: n for n, each in reversed([*enumerate(queues)]) for key in keys_of(each)}
    crews, crew_of = _crews(workers, queues, together=settings.scheduler == "edf")
    return Fleet(
        now,
        queues,
        numbers,
        crews,
        crew_of,
        *_receivers(workers, crew_of),
        [worker.slots or 0 for worker in workers if worker.instance in crew_of],
        [
            run
            for run in read_notes(notes)
            if run.started_at is not None
            and (run.instance in crew_of or run.queue in numbers)
            and (run.task_id, run.started_at) not in over
        ],
        [run for runs in ended for run in runs],
        max(full, default=-math.inf),
        {
            task_type: Sketch.from_hash(replies_as_text(answer))
            for task_type, answer in zip(types, ratios, strict=True)
        },
    )


def _beside(workers: Sequence[Heartbeat], queue: str) -> list[str]:
    """Return the queues that the workers of *queue* take from too, then those that their
    workers do, and so on; the nearest ones.
    """
    known, near = [queue], {queue}
    while near and len(known) <= MOST_BESIDE:
        served = [w.queues for w in workers if w.queues and not near.isdisjoint(w.queues)]
        near = {name for queues in served for name in queues}.difference(known)
        known += sorted(near)
    return known[1 : 1 + MOST_BESIDE]


def _crews(
    workers: Iterable[Heartbeat], queues: Sequence[str], *, together: bool
) -> tuple[list[Crew], dict[str, int]]:
    """Return the crews of *queues*, and their numbers by instance; *together*: those of
    workers that take from the same queues are one.
    """
    number_of = {queue: number for number, queue in enumerate(queues)}
    crews: list[Crew] = []
    crew_of: dict[str, int] = {}
    known: dict[tuple[int, ...], int] = {}
    for worker in workers:
        served = queues[:1] if worker.queues is None else worker.queues
        taken = tuple(number_of[queue] for queue in served if queue in number_of)
        if not taken:
            continue
        slots = worker.slots or 0
        crew = known.get(taken) if together else None
        if crew is None:
            crew = known[taken] = len(crews)
            crews.append(Crew(slots, taken, worker.ahead))
        else:
            crews[crew] = replace(crews[crew], slots=crews[crew].slots + slots)
        crew_of[worker.instance] = crew
    return crews, crew_of


def _receivers(
    workers: Iterable[Heartbeat], crew_of: Mapping[str, int]
) -> tuple[dict[int, int | None], bool]:
    """Return the crews by mark, and whether all have told."""
    found: dict[int, int | None] = {}
    all_tell = True
    for worker in workers:
        crew = crew_of.get(worker.instance)
        if crew is None:
            continue
        marks = worker.marks()
        all_tell = all_tell and marks is not None
        for mark in marks or ():
            # A retry goes to whichever asks next.
            found[mark] = crew if found.get(mark, crew) == crew else None
    return found, all_tell


def living(reply: Sequence[bytes], now: float) -> list[Heartbeat]:
    """Return the workers that live and tell their slots, of an answer to HGETALL."""
    beats = read_heartbeats(reply)
    return [beat for beat in beats if beat.slots is not None and not beat.is_silent(now)]
