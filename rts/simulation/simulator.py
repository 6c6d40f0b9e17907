"""A discrete-event simulation of workers: arrivals, slots, an order, learned taus.

Taus are learned as in production: from the runs that have finished by then, per name once
there are enough of them, else per type; the deadline is fixed at arrival. Jobs with the
tau and deadline of a recorded run keep these.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rts.deadlines import deadline
from rts.settings import Settings
from rts.simulation.orders import Order, Waiting
from rts.simulation.traces import KILLED, SUCCESS, Job
from rts.tasktypes import UNTYPED
from rts.tau.memory import MemoryTauStore

__all__ = ["IDEAL", "Conditions", "Outcome", "finished", "share_met", "simulate"]


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
    #: The job's own divided by the speed.
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
    order: Order,
    settings: Settings,
    *,
    taus: MemoryTauStore | None = None,
    conditions: Conditions = IDEAL,
) -> list[Outcome]:
    """Return the outcome of each job, in the order of *jobs*, which is by arrival.

    See :func:`finished`, which yields them one by one.
    """
    outcomes: list[Outcome | None] = [None] * len(jobs)
    for number, outcome in finished(
        jobs, slots, order, settings, taus=taus, conditions=conditions
    ):
        outcomes[number] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def finished(
    jobs: Sequence[Job],
    slots: int,
    order: Order,
    settings: Settings,
    *,
    taus: MemoryTauStore | None = None,
    conditions: Conditions = IDEAL,
) -> Iterator[tuple[int, Outcome]]:
    """Yield position and outcome of each job as it finishes.

    *slots*: tasks that run at a time, at least 1. *taus*: learned before; updated by the
    simulation. k is that of *conditions*, else of the type, else
    ``settings.sla_multiplier``. A type unknown to *settings* counts as ``mixed``.

    Raises:
        ValueError: the jobs are not ordered by arrival, or *slots* or the speed is invalid.
    """
    if slots < 1:
        raise ValueError(f"slots = {slots}: use at least 1")
    if not conditions.speed > 0:
        raise ValueError(f"speed = {conditions.speed}: use a number above 0")
    taus = MemoryTauStore(settings) if taus is None else taus
    speed, overheads = conditions.speed, conditions.overheads
    rng = random.Random(conditions.seed)
    kinds = settings.task_types
    #: Runs that tau is not updated with yet: instant of the update, type, name, runtime.
    lessons: deque[tuple[float, str, str, float]] = deque()
    #: Heap of finish, number, task, start.
    running: list[tuple[float, int, Waiting, float]] = []
    #: Heap of further runs to come: release time, number, task.
    pausing: list[tuple[float, int, Waiting]] = []
    #: Completed runs by number, of jobs with several.
    completed: dict[int, int] = {}
    arrived, never = 0, float("inf")
    next_arrival = jobs[0].arrival_s / speed if jobs else never
    while True:
        next_finish = running[0][0] if running else never
        next_release = pausing[0][0] if pausing else never
        now = min(next_finish, next_arrival, next_release)
        if now == never:
            break
        if next_finish <= now:
            _, number, task, started_at = heapq.heappop(running)
            job = jobs[number]
            order.ended(number)
            runs = completed.get(number, 0)
            if runs < len(job.later):
                completed[number] = runs + 1
                heapq.heappush(pausing, (now + job.later[runs].pause_s, number, task))
            else:
                completed.pop(number, None)
                if job.end == SUCCESS and job.tau is None:
                    kind = job.task_type if job.task_type in kinds else UNTYPED
                    known_at = now + conditions.learning_lag_s
                    runtime_s = job.later[-1].runtime_s if job.later else job.runtime_s
                    lessons.append((known_at, kind, job.name, runtime_s))
                yield (
                    number,
                    Outcome(job, task.tau, task.arrival, task.deadline, started_at, now),
                )
        elif next_release <= now:
            order.push(heapq.heappop(pausing)[2])
        else:
            while lessons and lessons[0][0] <= now:
                taus.update(*lessons.popleft()[1:])
            job = jobs[arrived]
            kind = job.task_type if job.task_type in kinds else UNTYPED
            tau = taus.get(kind, job.name) if job.tau is None else job.tau
            if job.span_s is None or conditions.k is not None:
                k = conditions.k or kinds[kind].sla_multiplier or settings.sla_multiplier
                due = deadline(now, tau, k, settings.min_slack)
            else:
                due = now + job.span_s
            order.push(Waiting(now, tau, due, arrived))
            arrived += 1
            next_arrival = jobs[arrived].arrival_s / speed if arrived < len(jobs) else never
            if next_arrival < now:
                raise ValueError(f"job {arrived} arrives before its predecessor")
        while len(running) < slots:
            chosen = order.pop(now, slots)
            for task in order.dropped:
                job = jobs[task.number]
                yield (
                    task.number,
                    Outcome(job, task.tau, task.arrival, task.deadline, never, never),
                )
            if chosen is None:
                break
            number = chosen.number
            job = jobs[number]
            runs = completed.get(number, 0)
            runtime_s = job.later[runs - 1].runtime_s if runs else job.runtime_s
            overhead_s = overheads[0]
            if len(overheads) > 1:
                overhead_s = overheads[int(rng.random() * len(overheads))]
            started_at = now + overhead_s
            heapq.heappush(running, (started_at + runtime_s, number, chosen, started_at))


def share_met(outcomes: Sequence[Outcome]) -> float:
    """Return the share of deadlines met, 0 to 1; 1.0 without outcomes."""
    return sum(o.met for o in outcomes) / len(outcomes) if outcomes else 1.0
