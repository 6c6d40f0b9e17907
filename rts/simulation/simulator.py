"""A discrete-event simulation of workers: arrivals, slots, an order, learned taus.

Time passes from event to event, so an hour of work takes a fraction of a second.
Taus are learned as in production: from what has finished by then, per name once
there are enough runs, else per type; a deadline is fixed at arrival. A job that
brings the tau and the deadline of a recorded run keeps them.
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
    """What is otherwise than in the workload, and what an ideal world does not have."""

    #: Arrivals come this many times as fast, above 0.
    speed: float = 1.0
    #: k of all deadlines, also of those that were recorded; ``None``: as they are.
    k: float | None = None
    #: Seconds that a slot is held before a run, what a worker needs for a claim: each
    #: run draws one of these.
    overheads: Sequence[float] = (0.0,)
    #: Of the draws.
    seed: int = 1
    #: Seconds from the end of a run until publishers know what it taught.
    learning_lag_s: float = 0.0


#: The workload as it is, in a world where a claim costs nothing.
IDEAL = Conditions()


class Outcome(NamedTuple):
    """What became of one job. Instants in seconds, on the workload's own clock."""

    job: Job
    tau: float
    #: When it arrived; not what the job says where arrivals come faster.
    arrival: float
    deadline: float
    #: Start and finish of its last run; both infinite where it was dropped.
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
    """Return the outcome of each job, in the order of *jobs*, which must be by arrival.

    See :func:`finished`, which gives the same without holding all of it.
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
    """Give position and outcome of each job as it finishes.

    *slots*: tasks that run at a time, at least 1. *taus*: what was learned
    before; it goes on learning. k is that of the conditions, the type, or
    ``settings.sla_multiplier``. A type that *settings* do not know counts as ``mixed``.

    Raises:
        ValueError: the jobs are not by arrival, or there is no slot.
    """
    if slots < 1:
        raise ValueError(f"slots = {slots}: use at least 1")
    if not conditions.speed > 0:
        raise ValueError(f"speed = {conditions.speed}: use a number above 0")
    taus = MemoryTauStore(settings) if taus is None else taus
    speed, overheads = conditions.speed, conditions.overheads
    rng = random.Random(conditions.seed)
    kinds = settings.task_types
    #: Runs that have ended and that publishers do not know of: when they will.
    lessons: deque[tuple[float, str, str, float]] = deque()
    #: Finish instant, number, what was waiting, start instant.
    running: list[tuple[float, int, Waiting, float]] = []
    #: Further runs on their way: when they may start, number.
    pausing: list[tuple[float, int, Waiting]] = []
    #: Runs that are behind a job, of jobs with more than one.
    behind: dict[int, int] = {}
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
            order.ended(task)
            runs = behind.get(number, 0)
            if runs < len(job.later):
                behind[number] = runs + 1
                heapq.heappush(pausing, (now + job.later[runs].pause_s, number, task))
            else:
                behind.pop(number, None)
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
                raise ValueError(f"job {arrived} arrives before the one in front of it")
        while len(running) < slots:
            chosen = order.pop(now, slots)
            for task in order.dropped():
                job = jobs[task.number]
                yield (
                    task.number,
                    Outcome(job, task.tau, task.arrival, task.deadline, never, never),
                )
            if chosen is None:
                break
            number = chosen.number
            job = jobs[number]
            runs = behind.get(number, 0)
            runtime_s = job.later[runs - 1].runtime_s if runs else job.runtime_s
            overhead_s = overheads[0]
            if len(overheads) > 1:
                overhead_s = overheads[int(rng.random() * len(overheads))]
            started_at = now + overhead_s
            heapq.heappush(running, (started_at + runtime_s, number, chosen, started_at))


def share_met(outcomes: Sequence[Outcome]) -> float:
    """Return the share of deadlines met, 0 to 1; 1.0 of nothing."""
    return sum(o.met for o in outcomes) / len(outcomes) if outcomes else 1.0
