"""The workers of a queue and the queues that share them, read from Redis: slots, runs in
progress, recent runs; and learned ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rts.ledger.recent import RUNS, Recent, read_recent
from rts.link.link import Link
from rts.link.replies import as_instant, replies_as_text
from rts.link.scripts import pack
from rts.predictions.work import Work, work_of
from rts.records import Execution, read_runs
from rts.settings import Settings
from rts.simulation.queues import WorkerGroup
from rts.tau.sketch import Sketch
from rts.unfinished.heartbeat import BEAT_S, Heartbeat, read_heartbeats
from rts.unfinished.received import SIZE

#: Seconds after its start within which a run becomes visible in Redis: until a heartbeat is
#: delivered.
NOTED_S = BEAT_S + 0.5
#: Other queues that are simulated with the one that is asked about, at most.
MAX_RELATED = 8
#: Least runs per slot of a worker, and least seconds, for measuring its share of busy time; and
#: how many of the last ones are enough.
RUNS_PER_SLOT, MIN_SPAN_S, LAST_RUNS_PER_SLOT = 2, 2.0, 10


@dataclass(frozen=True)
class Fleet:
    """The workers of a queue, and of the related queues: those that share workers with it."""

    #: Epoch seconds by Redis's clock.
    now: float
    #: The one that is asked about, then the related ones.
    queues: Sequence[str]
    #: Numbers of the queues by the routing keys of their messages.
    numbers: Mapping[str, int]
    #: One group per worker; in deadline order one per set of consumed queues.
    groups: Sequence[WorkerGroup]
    #: Numbers of the groups by the instances of their workers.
    group_of: Mapping[str, int]
    #: By the marks of messages that were received recently: the number of the group that has
    #: received it; ``None``: several have (it is a retry), and the last one is unknown.
    receivers: Mapping[int, int | None]
    #: Whether all workers report these marks.
    all_report: bool
    #: Slots of each worker that has any, by its instance.
    worker_slots: Mapping[str, int]
    #: Runs in progress on the workers, of any queue.
    running: Sequence[Execution]
    #: Recent runs of the queues that have ended, complete since ``known_since``.
    recent: Sequence[Recent]
    #: Epoch seconds.
    known_since: float

    @property
    def slots(self) -> int:
        """Slots of the workers that consume the queue."""
        return sum(group.slots for group in self.groups if 0 in group.queues)

    def marks_complete(self, etas: int) -> bool:
        """Return whether the marks tell of every message that a worker holds: all workers
        report marks, and none holds more messages than it has marks. *etas*: messages held for
        an eta.
        """
        most = max((group.slots + group.prefetch for group in self.groups), default=0.0)
        return self.all_report and most + etas <= SIZE

    def consumers(self, queue: int) -> list[int]:
        """Return the numbers of the groups that consume a queue."""
        return [n for n, group in enumerate(self.groups) if queue in group.queues]

    @property
    def ended(self) -> list[tuple[Work, float]]:
        """The recent runs with their runtimes in seconds."""
        return [(work_of(run), max(0.0, run.runtime_s)) for run in self.recent]

    @property
    def own_running(self) -> list[Execution]:
        """Runs in progress of these queues."""
        return [run for run in self.running if run.queue in self.numbers]

    def share(self, since: float) -> float | None:
        """Return the share of the slots' time in which tasks ran lately, given that work has
        waited for all of them *since* this instant; ``None`` if there are too few data.

        A worker counts since one of its last runs began, and for MIN_SPAN_S if these are short:
        before, it may not have been there, or had fewer slots, or the broker was away.
        """
        if len({group.queues for group in self.groups}) > 1:
            return None
        until, since = self.now - NOTED_S, max(since, self.known_since)
        spans: dict[str, list[tuple[float, float]]] = {name: [] for name in self.worker_slots}
        runs: list[Recent | Execution] = [*self.recent, *self.running]
        for run in runs:
            start, end = run.started_at or until, run.completed_at or until
            if run.instance in spans and start < until and end > since:
                spans[run.instance].append((start, end))
        busy_s = total_s = 0.0
        for name, slots in self.worker_slots.items():
            begun = _measured_since(sorted(spans[name]), slots, since, until)
            if until - begun >= MIN_SPAN_S:
                ran = (min(end, until) - max(start, begun) for start, end in spans[name])
                busy_s += sum(span_s for span_s in ran if span_s > 0)
                total_s += slots * (until - begun)
        return min(1.0, max(0.01, busy_s / total_s)) if total_s else None


def _measured_since(
    runs: Sequence[tuple[float, float]], slots: int, since: float, until: float
) -> float:
    """Return the instant from which on the *runs* of a worker, in order, tell how busy it was;
    *until* if they are too few.
    """
    if len(runs) < RUNS_PER_SLOT * slots:
        return until
    starts = [start for start, _ in runs]
    long_ago = [start for start in starts if until - start >= MIN_SPAN_S]
    enough = starts[max(0, len(starts) - LAST_RUNS_PER_SLOT * slots)]
    return max(since, min([enough, *long_ago[-1:]]))


def read_fleet(
    link: Link,
    settings: Settings,
    queue: str,
    keys_of: Callable[[str], Iterable[str]],
    max_related: int = MAX_RELATED,
) -> Fleet:
    """Read the fleet of *queue*, in at most two round trips.

    *keys_of* returns the routing keys of a queue's messages. *max_related*: related queues
    to include, at most.
    """
    keys = settings.keys

    def recent_runs(queues: Iterable[str]) -> list[bytes]:
        names = [key for each in queues for key in keys_of(each)]
        return [pack("LRANGE", keys.recent + name, 0, -1) for name in names]

    time_, beats, notes, *lists = link.call(
        pack("TIME"),
        pack("HGETALL", keys.workers),
        pack("HVALS", keys.running),
        *recent_runs([queue]),
    )
    now = as_instant(time_)
    workers = living(beats, now)
    queues = [queue, *_related(workers, queue, max_related)]
    if others := recent_runs(queues[1:]):
        lists += link.call(*others)

    numbers = {key: n for n, each in reversed([*enumerate(queues)]) for key in keys_of(each)}
    groups, group_of = _groups(workers, queues, merge=settings.scheduler == "edf")
    receivers, all_report = _receivers(workers, group_of)
    there = [worker for worker in workers if worker.instance in group_of]
    recent, known_since = _recent(lists)
    return Fleet(
        now=now,
        queues=queues,
        numbers=numbers,
        groups=groups,
        group_of=group_of,
        receivers=receivers,
        all_report=all_report,
        worker_slots={w.instance: w.slots for w in there if w.slots},
        running=_running(read_runs(notes), recent, group_of, numbers),
        recent=recent,
        known_since=known_since,
    )


def read_ratios(link: Link, settings: Settings, types: Sequence[str]) -> dict[str, Sketch]:
    """Return the learned ratios of runtime over tau of *types*."""
    prefix = settings.keys.ratio
    answers = link.call(*(pack("HGETALL", prefix + kind) for kind in types))
    return {
        task_type: Sketch.from_hash(replies_as_text(answer))
        for task_type, answer in zip(types, answers, strict=True)
    }


def _related(workers: Sequence[Heartbeat], queue: str, most: int) -> list[str]:
    """Return other queues of the workers of *queue*, then those of their workers, and so on;
    the nearest *most*.
    """
    known, near = [queue], {queue}
    while near and len(known) <= most:
        served = [w.queues for w in workers if w.queues and not near.isdisjoint(w.queues)]
        near = {name for queues in served for name in queues}.difference(known)
        known += sorted(near)
    return known[1 : 1 + most]


def _groups(
    workers: Iterable[Heartbeat], queues: Sequence[str], *, merge: bool
) -> tuple[list[WorkerGroup], dict[str, int]]:
    """Return the worker groups of *queues*, and their numbers by instance. *merge*: workers
    that consume the same queues are one group.
    """
    number_of = {queue: number for number, queue in enumerate(queues)}
    groups: list[WorkerGroup] = []
    group_of: dict[str, int] = {}
    known: dict[tuple[int, ...], int] = {}
    for worker in workers:
        served = queues[:1] if worker.queues is None else worker.queues
        taken = tuple(number_of[queue] for queue in served if queue in number_of)
        if not taken:
            continue
        slots = worker.slots or 0
        group = known.get(taken) if merge else None
        if group is None:
            group = known[taken] = len(groups)
            groups.append(WorkerGroup(slots, taken, worker.ahead))
        else:
            groups[group] = replace(groups[group], slots=groups[group].slots + slots)
        group_of[worker.instance] = group
    return groups, group_of


def _recent(lists: Iterable[Sequence[bytes]]) -> tuple[list[Recent], float]:
    """Return the runs in *lists*, and the instant since when these are complete."""
    found, known_since = [], -math.inf
    for texts in lists:
        runs = read_recent(texts)
        found += runs
        # A list with RUNS entries, of which some may be duplicates, has been trimmed.
        if runs and len(texts) >= RUNS:
            known_since = max(known_since, min(run.completed_at for run in runs))
    return found, known_since


def _running(
    notes: Iterable[Execution],
    ended: Iterable[Recent],
    group_of: Mapping[str, int],
    numbers: Mapping[str, int],
) -> list[Execution]:
    """Return the runs in progress, on these workers or of these queues, by their *notes*: a
    note may outlive its run for a moment.
    """
    over = {(run.task_id, run.started_at) for run in ended}
    return [
        run
        for run in notes
        if run.started_at is not None
        and (run.instance in group_of or run.queue in numbers)
        and (run.task_id, run.started_at) not in over
    ]


def _receivers(
    workers: Iterable[Heartbeat], group_of: Mapping[str, int]
) -> tuple[dict[int, int | None], bool]:
    """Return the groups by mark, and whether all workers report marks."""
    found: dict[int, int | None] = {}
    all_report = True
    for worker in workers:
        group = group_of.get(worker.instance)
        if group is None:
            continue
        marks = worker.marks()
        all_report = all_report and marks is not None
        for mark in marks or ():
            # A retry may be received by another group.
            found[mark] = group if found.get(mark, group) == group else None
    return found, all_report


def living(reply: Sequence[bytes], now: float) -> list[Heartbeat]:
    """Return the live workers that report their slots, from the reply to HGETALL."""
    beats = read_heartbeats(reply)
    return [beat for beat in beats if beat.slots is not None and not beat.is_silent(now)]
