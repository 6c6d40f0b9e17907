"""Recorded runs as a workload: arrivals, service times, deadlines.

What the ledger does not contain is inferred: the workers (:mod:`rts.simulation.pools`), and a
worker's overhead between two runs from how long a waiting task went on
waiting after a slot became free.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from rts.deadlines import hopeful_until
from rts.records import DROPPED, REPLACED
from rts.simulation.pools import Pool, WorkerRuns, pools_of
from rts.simulation.traces import FAILURE, KILLED, SUCCESS, Again, Job, Origin

#: Pool processes whose last run is remembered, at most: a pool may replace them often.
MAX_PLACES = 10_000
#: Gaps between consecutive runs that are collected, at most.
MAX_GAPS = 100_000
#: With at least so many gaps whose second run was hopeful when the slot became free, only
#: those count: in deadline order a hopeless task may have to wait beside a free slot.
ENOUGH_GAPS = 10
#: Queues that are told apart, at most. More are the routing keys of a topic exchange: all one.
MAX_QUEUES = 100
#: Seconds by which two deadlines may differ that were one: the ledger has milliseconds.
SAME_S = 0.002
#: Size of the sample of overheads, and the share of them to keep: the longest, such as an
#: outage of the broker, are left out.
SAMPLE, KEPT_SHARE = 1000, 0.995


class Run(NamedTuple):
    """One run of a task, from the ledger. Instants in epoch seconds."""

    name: str
    task_type: str
    arrival: float
    tau: float | None
    deadline: float
    started_at: float
    completed_at: float
    runtime_s: float
    state: str
    #: Why it did not run to its end; ``None`` if it did.
    cause: str | None
    #: Its verdict; ``None`` if a retry was to follow.
    met: bool | None
    retries: int
    #: The pool process: worker and pid.
    place: tuple[str, int | None]
    #: The task's id if it may have other runs; else ``None``.
    task_id: str | None
    #: Of its message; 0 where it has none.
    priority: int = 0
    #: When the retry that it asked for may start; ``None``: none, or unknown.
    again_at: float | None = None
    #: The task's id if it has published others; else ''.
    key: str = ""
    #: The id of the task that has published it; '' where there is none.
    parent: str = ""
    #: When it was published, if its eta was later; else ``None``.
    published_at: float | None = None
    queue: str = ""


@dataclass(frozen=True)
class Recording:
    """A recorded workload, and how it was run."""

    #: By arrival; instants are relative to the first one's.
    jobs: Sequence[Job]
    #: Whether each job met its deadline.
    met: Sequence[bool]
    #: Slots of the fleet, at least 1.
    slots: int
    #: The workers that these belong to.
    pools: Sequence[Pool]
    #: Sample of the seconds between the end of a run and the start of the next one that had
    #: waited; empty if none had.
    overheads: Sequence[float]


def recording(
    runs: Iterable[Run], rank: Callable[[int], int] = lambda priority: 0
) -> Recording | None:
    """Return *runs*, ordered by their ends, as a workload; ``None`` if there are none.

    *rank* turns a message's priority into a rank: the broker delivers the least first.

    A task whose last run asked for a retry that never ran, or was replaced by work that never
    ended, counts as missed. A task whose first run is not among *runs* arrives at the start
    of its next one.
    """
    jobs: list[Job] = []
    met: list[bool] = []
    chains: dict[str, list[Run]] = {}
    workers: defaultdict[str, WorkerRuns] = defaultdict(WorkerRuns)
    queues: defaultdict[str, int] = defaultdict(lambda: len(queues))
    gaps = _Gaps()
    publishers: dict[str, _Publisher] = {}
    parents: list[str] = []

    def add(of_task: Sequence[Run]) -> None:
        jobs.append(_job(of_task, rank, queues))
        met.append(bool(of_task[-1].met))
        parents.append(of_task[0].parent)

    for run in runs:
        if run.cause is None:
            worker = workers[run.place[0]]
            worker.add(queues[run.queue], run.started_at, run.completed_at)
        if run.cause != DROPPED:
            gaps.see(run)
        if run.key:
            known = publishers.get(run.key)
            if known is None or known.started_at < run.started_at:
                publishers[run.key] = _Publisher(run.started_at, run.deadline)
        if run.task_id is None:
            add([run])
        else:
            chains.setdefault(run.task_id, []).append(run)
    for of_task in chains.values():
        add(sorted(of_task, key=lambda run: run.started_at))
    if not jobs:
        return None
    if publishers:
        for number, parent in enumerate(parents):  # in place: there may be a million
            jobs[number] = _with_origin(jobs[number], parent, publishers)
    _order_by_arrival(jobs, met)
    pools = pools_of(workers.values(), len(queues) if len(queues) <= MAX_QUEUES else 1)
    return Recording(
        jobs=jobs,
        met=met,
        slots=sum(pool.slots for pool in pools) or 1,
        pools=pools,
        overheads=gaps.sample(),
    )


class _Publisher(NamedTuple):
    """The last run of a task that has published others. Instants in epoch seconds."""

    started_at: float
    deadline: float


def _with_origin(job: Job, parent: str, publishers: Mapping[str, _Publisher]) -> Job:
    """Return *job*, its arrival in epoch seconds, with its origin if its *parent* is known. One
    that an earlier run of that has published counts as published when the last one started.
    """
    by = publishers.get(parent)
    if by is None or job.arrival_s < by.started_at or job.span_s is None:
        return job
    shares = abs(job.arrival_s + job.span_s - by.deadline) <= SAME_S
    lag_s = job.arrival_s - by.started_at
    return job._replace(origin=Origin(parent, lag_s, shares), notice_s=min(job.notice_s, lag_s))


def _order_by_arrival(jobs: list[Job], met: list[bool]) -> None:
    """Sort *jobs* and *met*, in place, by arrival, and count instants from the first one."""
    ranks = sorted(range(len(jobs)), key=lambda number: jobs[number].arrival_s)
    met[:] = [met[number] for number in ranks]
    del ranks  # there may be a million
    jobs.sort(key=lambda job: job.arrival_s)
    began_at = jobs[0].arrival_s
    for number, job in enumerate(jobs):
        jobs[number] = job._replace(arrival_s=job.arrival_s - began_at)


class _Gaps:
    """Gaps between consecutive runs in a pool process, the second of which had waited."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int | None], Run] = {}
        self._all, self._hopeful = array("d"), array("d")

    def see(self, run: Run) -> None:
        """Add the next run, in order of completion, ascending or descending."""
        other = self._last.get(run.place)
        if other is not None and len(self._all) < MAX_GAPS:
            first, second = sorted((run, other), key=lambda r: r.completed_at)
            gap = second.started_at - first.completed_at
            # A task with several runs may have waited for its countdown, or redelivery.
            waited = second.arrival < first.completed_at and second.task_id is None
            if gap >= 0 and waited:
                self._all.append(gap)
                if first.completed_at <= hopeful_until(second.deadline, second.tau or 0.0):
                    self._hopeful.append(gap)
        if len(self._last) >= MAX_PLACES:
            self._last.clear()
        self._last[run.place] = run

    def sample(self) -> Sequence[float]:
        """Return an evenly spaced sample of the sorted gaps, seconds."""
        gaps = sorted(self._hopeful if len(self._hopeful) >= ENOUGH_GAPS else self._all)
        kept = gaps[: math.ceil(KEPT_SHARE * len(gaps))]
        return kept[:: math.ceil(len(kept) / SAMPLE)] if kept else ()


def _job(runs: Sequence[Run], rank: Callable[[int], int], queues: Mapping[str, int]) -> Job:
    """Return the job of one task from its *runs*, ordered by start. Name, type, tau and
    deadline are those of the work that has replaced it, if any has.
    """
    first, last = runs[0], runs[-1]
    begins = (n for n in range(len(runs) - 1, 0, -1) if runs[n - 1].state == REPLACED)
    work = runs[next(begins, 0)]
    arrival, published_at = first.arrival, first.published_at
    if first.retries:
        arrival, published_at = first.started_at, None
    # Where the ledger does not tell when a run could start, the pause before it includes the
    # wait for a slot; assume that it was as long as the first one.
    waited_s = max(0.0, first.started_at - arrival)

    def again(before: Run, run: Run) -> Again:
        if before.state == REPLACED:
            ready_at = run.arrival
        else:
            ready_at = before.again_at or run.started_at - waited_s
        pause_s = max(0.0, ready_at - before.completed_at)
        return Again(pause_s, run.runtime_s, before.state == "RETRY")

    later = tuple(again(before, run) for before, run in pairwise(runs))
    end = KILLED
    if last.cause in (None, DROPPED) and last.met is not None:
        end = SUCCESS if last.state == "SUCCESS" else FAILURE
    return Job(
        arrival,
        work.name,
        first.runtime_s,
        work.task_type,
        work.tau,
        span_s=work.deadline - arrival,
        end=end,
        later=later,
        lead_s=max(0.0, work.arrival - arrival),
        rank=rank(work.priority),
        key=first.key,
        notice_s=0.0 if published_at is None else max(0.0, arrival - published_at),
        queue=queues[work.queue],
    )
