"""Capacity planning: the least number of slots that meets a target share of deadlines.

More slots never delay a first-come-first-served queue, and hardly ever another one, so
the number is found by growing and bisecting. A recorded workload is only one sample, so
the target has to be met on bootstrap resamples of it as well; those consist of blocks of
consecutive jobs, which preserves bursts (moving block bootstrap: Künsch, Annals of
Statistics 17, 1989).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rts.settings import Settings
from rts.simulation.orders import Order
from rts.simulation.simulator import IDEAL, Conditions, finished
from rts.simulation.statistics import Tally
from rts.simulation.traces import Job, offered_load
from rts.simulation.workers import Workers

#: Resamples on which the target has to be met.
RESAMPLES = 10
#: Jobs to plan with; of a larger workload the busiest section.
MAX_JOBS = 10_000
#: Numbers of slots that are reported on each side of the answer.
BESIDE = 2


class Unattainable(ValueError):
    """No number of slots meets the target; the message states the best share."""


@dataclass(frozen=True)
class Trial:
    """The outcome of a number of slots."""

    slots: int
    #: ρ of the workload on them; ``None`` if all jobs arrive at once.
    rho: float | None
    #: Share of deadlines met, 0 to 1; of the worst type if each has to meet the target.
    share: float
    #: The same in the worst resample.
    worst: float


@dataclass(frozen=True)
class Plan:
    """The least number of slots, and the trials around it."""

    slots: int
    trials: Sequence[Trial]
    #: Number of jobs that were simulated.
    jobs: int


@dataclass(frozen=True)
class Question:
    """What to plan for."""

    jobs: Sequence[Job]
    #: Share of deadlines to meet, above 0 to 1.
    target: float
    #: Returns a new order, or workers, for a number of slots.
    order: Callable[[int], Order | Workers]
    settings: Settings
    conditions: Conditions = IDEAL
    #: Whether each task type has to meet the target, not only all tasks together.
    by_type: bool = False
    resamples: int = RESAMPLES
    #: Slots that the workload ran on; 0: unknown.
    recorded_slots: int = 0


def plan(question: Question, progress: Callable[[], None] = lambda: None) -> Plan:
    """Return the least number of slots that meets the target, on each resample as well.

    *progress* is called after each number of slots that was tried.

    Raises:
        Unattainable: no number meets it.
    """
    planner = _Planner(question, progress)
    # A small kind of workers has one slot, at the least, of any fewer than were recorded.
    most = max(len(planner.jobs), question.recorded_slots)
    while not planner.meets(most):
        best, twice = planner.trial(most), planner.trial(2 * most)
        # Each kind of workers has only its part of them: those of one may still be too few.
        if twice.share <= best.share and twice.worst <= best.worst:
            raise _unattainable(question, best)
        most *= 2
    # Rarely fewer than for ρ = 1, so start there.
    failed, slots = 0, max(1, round(min(most, planner.erlangs)))
    while not planner.meets(slots):
        failed, slots = slots, min(most, slots + max(1, slots // 4))
    while slots - failed > 1:
        middle = (failed + slots) // 2
        if planner.meets(middle):
            slots = middle
        else:
            failed = middle
    around = range(max(1, slots - BESIDE), min(most, slots + BESIDE) + 1)
    return Plan(slots, [planner.trial(number) for number in around], len(planner.jobs))


def _unattainable(question: Question, best: Trial) -> Unattainable:
    of = " of the worst type" if question.by_type else ""
    return Unattainable(
        f"no number of slots meets {100 * question.target:g}%: with a slot for each task "
        f"{best.share:.2%}{of} are met ({best.worst:.2%} in the worst resample). Runs that "
        "take longer than their deadlines allow need a greater k, or better known taus"
    )


def busiest(jobs: Sequence[Job], most: int) -> Sequence[Job]:
    """Return the section of *most* consecutive jobs with about the highest offered load.

    >>> quiet = [Job(10.0 * n, "x", 1.0) for n in range(5)]
    >>> rush = [Job(100.0 + n, "x", 1.0) for n in range(5)]
    >>> busiest(quiet + rush, 5)[0].arrival_s
    100.0
    """
    if len(jobs) <= most:
        return jobs
    step = max(1, most // 8)
    begins = [*range(0, len(jobs) - most, step), len(jobs) - most]

    def load(begin: int) -> float:
        rho = offered_load(jobs[begin : begin + most], 1)
        return math.inf if rho is None else rho

    begin = max(begins, key=load)
    return jobs[begin : begin + most]


def resample(jobs: Sequence[Job], rng: random.Random) -> list[Job]:
    """Return a moving block resample of the same size, with the gaps before each job.

    A job that another one publishes keeps its origin if both are in the same block.
    """
    block = max(1, round(len(jobs) ** 0.5))
    drawn: list[Job] = []
    at = 0.0
    while len(drawn) < len(jobs):
        begin = rng.randrange(len(jobs))
        keys: set[str] = set()
        for number in range(begin, min(begin + block, len(jobs))):
            job = jobs[number]
            if number:
                at += job.arrival_s - jobs[number - 1].arrival_s
            keys.add(job.key)
            origin = job.origin if job.origin and job.origin.key in keys else None
            drawn.append(job._replace(arrival_s=at, origin=origin))
    return drawn[: len(jobs)]


class _Planner:
    def __init__(self, question: Question, progress: Callable[[], None]) -> None:
        self._question = question
        self._progress = progress
        self.jobs = busiest(question.jobs, MAX_JOBS)
        rng = random.Random(1)
        self._draws = [resample(self.jobs, rng) for _ in range(question.resamples)]
        #: Offered load in erlangs: the number of slots for ρ = 1.
        self.erlangs = offered_load(self.jobs, 1, question.conditions.speed) or 1.0

    def meets(self, slots: int) -> bool:
        """Return whether *slots* meet the target, aborting as soon as they cannot."""
        shares = (self._share(jobs, slots, abort=True) for jobs in (self.jobs, *self._draws))
        met = all(share >= self._question.target for share in shares)
        self._progress()
        return met

    def trial(self, slots: int) -> Trial:
        """Return the outcome of *slots*, simulated to the end."""
        share = self._share(self.jobs, slots)
        worst = min([share, *(self._share(jobs, slots) for jobs in self._draws)])
        rho = offered_load(self.jobs, slots, self._question.conditions.speed)
        self._progress()
        return Trial(slots, rho, share, worst)

    def _share(self, jobs: Sequence[Job], slots: int, abort: bool = False) -> float:
        """Return the share met; with *abort*, 0 as soon as the target is out of reach."""
        question = self._question
        outcomes = finished(
            jobs,
            slots,
            question.order(slots),
            question.settings,
            conditions=question.conditions,
        )
        counted = Tally(lambda job: job.task_type)
        allowed = (1 - question.target) * len(jobs) if abort else len(jobs)
        missed = 0
        for _, outcome in outcomes:
            counted.add(outcome)
            missed += not outcome.met
            if missed > allowed + 1e-9:
                return 0.0
        if question.by_type:
            return min(counted.share_of(key) for key in counted.tasks)
        return counted.share
