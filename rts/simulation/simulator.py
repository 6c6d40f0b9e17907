"""A discrete-event simulation of workers: arrivals, slots, an order, learned taus.

Taus are learned as in production: from the runs that have finished by then, per name once
there are enough of them, else per type; the deadline is fixed at arrival. Jobs with the
tau and deadline of a recorded run keep these.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rts.deadlines import deadline
from rts.settings import Settings
from rts.simulation.orders import Order, Waiting
from rts.simulation.queues import WorkerGroup
from rts.simulation.traces import KILLED, SUCCESS, Job
from rts.simulation.workers import Workers
from rts.tasktypes import UNTYPED, TaskType
from rts.tau.memory import MemoryTauStore

#: The instant of what does not happen.
NEVER = math.inf

#: Kinds of events, in the order in which those of one instant happen: a run ends, a job is
#: queued again, one that was queued before is ready, one that another one publishes is queued,
#: and one that nobody published.
_ENDS, _RESUMES, _READY, _PUBLISHED, _ARRIVES = range(5)


@dataclass(frozen=True)
class Conditions:
    """Changes to the workload, and the overheads of a real worker."""

    #: Factor on the rate of arrivals, above 0.
    speed: float = 1.0
    #: k of all deadlines, recorded ones included; ``None``: unchanged.
    k: float | None = None
    #: Sample of the seconds for which a slot is busy before each run, with the claim.
    overheads: Sequence[float] = (0.0,)
    #: Seed for sampling the overheads.
    seed: int = 1
    #: Seconds from the end of a run until publishers use the tau learned from it.
    learning_lag_s: float = 0.0


#: The workload unchanged, without overheads.
IDEAL = Conditions()


class Outcome(NamedTuple):
    """The outcome of a job. Instants in seconds on the clock of the simulation."""

    job: Job
    tau: float
    #: The job's own divided by the speed, unless another job publishes it.
    arrival: float
    deadline: float
    #: Start and finish of its last run; both infinite if it was dropped.
    started_at: float
    finished_at: float

    @property
    def met(self) -> bool:
        """Whether it completed at or before its deadline."""
        return self.finished_at <= self.deadline and self.job.end != KILLED

    @property
    def queueing_delay_s(self) -> float:
        """Seconds from arrival to start, of the last run."""
        return self.started_at - self.arrival


def simulate(
    jobs: Sequence[Job],
    slots: int,
    order: Order | Workers,
    settings: Settings,
    *,
    conditions: Conditions = IDEAL,
) -> list[Outcome]:
    """Return the outcome of each job, in the order of *jobs*, which is by arrival.

    See :func:`finished`, which yields them one by one.
    """
    found = finished(jobs, slots, order, settings, conditions=conditions)
    return [outcome for _, outcome in sorted(found, key=lambda each: each[0])]


def finished(
    jobs: Sequence[Job],
    slots: int,
    order: Order | Workers,
    settings: Settings,
    *,
    conditions: Conditions = IDEAL,
) -> Iterator[tuple[int, Outcome]]:
    """Yield position and outcome of each job as it finishes.

    *slots*: tasks that run at a time, at least 1; with an order, by one worker and in one
    queue. k is that of *conditions*, else of the type,
    else ``settings.sla_multiplier``. A type unknown to *settings* counts as ``mixed``.

    Raises:
        ValueError: the jobs are not ordered by arrival, or *slots* or the speed is invalid.
    """
    if slots < 1:
        raise ValueError(f"slots = {slots}: use at least 1")
    if not conditions.speed > 0:
        raise ValueError(f"speed = {conditions.speed}: use a number above 0")
    if isinstance(order, Order):
        one = order
        order = Workers([WorkerGroup(slots)], lambda: one)
    return _Simulation(jobs, order, settings, conditions).play()


class _Simulation:
    """One simulation. Jobs are identified by their position."""

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: Workers,
        settings: Settings,
        conditions: Conditions,
    ) -> None:
        self._jobs = jobs
        self._workers = workers
        self._settings = settings
        self._conditions = conditions
        self._rng = random.Random(conditions.seed)
        self._taus = MemoryTauStore(settings)
        #: Runs that tau is not updated with yet: instant of the update, type, name, runtime.
        self._lessons: deque[tuple[float, str, str, float]] = deque()
        #: Heap of instant, kind and job; then the task (of one that was published, its
        #: publisher), and when its run has started.
        self._events: list[tuple[float, int, int, Waiting | None, float]] = []
        #: Of jobs with several runs, by number: how many have ended.
        self._completed: dict[int, int] = {}
        #: The jobs that each one publishes, its children; and those that none does, the roots.
        self._children, roots = _families(jobs, conditions.speed)
        self._roots = iter(roots)

    def play(self) -> Iterator[tuple[int, Outcome]]:
        """Yield position and outcome of each job as it finishes."""
        workers = self._workers
        self._expect_root()
        while self._events:
            now, kind, number, task, started_at = heapq.heappop(self._events)
            if kind == _ARRIVES:
                self._arrive(now, number)
                self._expect_root()
            elif kind == _PUBLISHED:
                self._arrive(now, number, task)
            elif task is not None:
                if kind == _RESUMES:
                    workers.push(task, self._jobs[number].queue)
                elif kind == _READY:
                    workers.ready(task)
                elif self._end_run(task, now):
                    yield self._outcome(task, started_at, now)
            started = workers.take(now)
            for dropped in workers.dropped:
                self._publish(dropped, now)
                yield self._outcome(dropped, NEVER, NEVER)
            for chosen in started:
                self._start(chosen, now)

    def _expect_root(self) -> None:
        """Have the next root published."""
        number = next(self._roots, None)
        if number is not None:
            at = _published_s(self._jobs[number], self._conditions.speed)
            heapq.heappush(self._events, (at, _ARRIVES, number, None, 0.0))

    def _arrive(self, now: float, number: int, publisher: Waiting | None = None) -> None:
        """Publish a job."""
        while self._lessons and self._lessons[0][0] <= now:
            self._taus.update(*self._lessons.popleft()[1:])
        job = self._jobs[number]
        kind = self._kind_of(job)
        tau = self._taus.get(kind.name, job.name) if job.tau is None else job.tau
        arrival = now + job.notice_s
        if job.span_s is None or self._conditions.k is not None:
            k = self._conditions.k or kind.sla_multiplier or self._settings.sla_multiplier
            due = deadline(arrival + job.lead_s, tau, k, self._settings.min_slack)
        elif publisher is not None and job.origin and job.origin.shares_deadline:
            due = publisher.deadline
        else:
            due = arrival + job.span_s
        self._queue(Waiting(arrival, tau, due, number, rank=job.rank, ready=arrival), now)

    def _queue(self, task: Waiting, now: float) -> None:
        """Add *task* to the queue."""
        self._workers.push(task, self._jobs[task.number].queue)
        if task.ready > now:
            heapq.heappush(self._events, (task.ready, _READY, task.number, task, 0.0))

    def _start(self, task: Waiting, now: float) -> None:
        """Start the next run of *task* on a free slot."""
        job, overheads = self._jobs[task.number], self._conditions.overheads
        runs = self._completed.get(task.number, 0)
        runtime_s = job.later[runs - 1].runtime_s if runs else job.runtime_s
        started_at = now + overheads[int(self._rng.random() * len(overheads))]
        if runs == len(job.later):
            self._publish(task, started_at)
        finish = started_at + runtime_s
        heapq.heappush(self._events, (finish, _ENDS, task.number, task, started_at))

    def _publish(self, task: Waiting, started_at: float) -> None:
        """Have the jobs that *task* publishes arrive, now that its last run starts."""
        for number in self._children.get(task.number, ()):
            origin = self._jobs[number].origin
            assert origin is not None
            at = started_at + max(0.0, origin.lag_s - self._jobs[number].notice_s)
            heapq.heappush(self._events, (at, _PUBLISHED, number, task, 0.0))

    def _end_run(self, task: Waiting, now: float) -> bool:
        """End a run of *task*; return whether it was the last one of its job."""
        number = task.number
        job = self._jobs[number]
        self._workers.ended(number)
        runs = self._completed.pop(number, 0)
        if runs < len(job.later):
            self._completed[number] = runs + 1
            again_at = now + job.later[runs].pause_s
            if job.later[runs].queued:
                self._queue(task._replace(ready=again_at), now)
            else:
                heapq.heappush(self._events, (again_at, _RESUMES, number, task, 0.0))
            return False
        if job.end == SUCCESS and job.tau is None:
            known_at = now + self._conditions.learning_lag_s
            runtime_s = job.later[-1].runtime_s if job.later else job.runtime_s
            self._lessons.append((known_at, self._kind_of(job).name, job.name, runtime_s))
        return True

    def _outcome(self, task: Waiting, started_at: float, now: float) -> tuple[int, Outcome]:
        job = self._jobs[task.number]
        outcome = Outcome(job, task.tau, task.arrival, task.deadline, started_at, now)
        return task.number, outcome

    def _kind_of(self, job: Job) -> TaskType:
        kinds = self._settings.task_types
        return kinds.get(job.task_type) or kinds[UNTYPED]


def _families(jobs: Sequence[Job], speed: float) -> tuple[dict[int, list[int]], list[int]]:
    """Return the children of each job, and the roots as they are published, by position."""
    children: dict[int, list[int]] = {}
    roots: list[int] = []
    known: dict[str, int] = {}
    arrival_s = -math.inf
    for number, job in enumerate(jobs):
        if job.arrival_s < arrival_s:
            raise ValueError(f"job {number} arrives before its predecessor")
        arrival_s = job.arrival_s
        publisher = None if job.origin is None else known.get(job.origin.key)
        if publisher is None:
            roots.append(number)
        else:
            children.setdefault(publisher, []).append(number)
        known[job.key] = number
    roots.sort(key=lambda number: _published_s(jobs[number], speed))
    return children, roots


def _published_s(job: Job, speed: float) -> float:
    """Return when a root is published: so long before its arrival, whatever the speed."""
    return job.arrival_s / speed - job.notice_s


def share_met(outcomes: Sequence[Outcome]) -> float:
    """Return the share of deadlines met, 0 to 1; 1.0 without outcomes."""
    return sum(o.met for o in outcomes) / len(outcomes) if outcomes else 1.0
