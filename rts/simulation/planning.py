"""How many slots a workload needs for a target share of deadlines met.

More slots never make a first-come-first-served queue later, and hardly ever another
one, so the least number is found by doubling and halving. One recorded run is one
draw of chance: the number has to meet the target also on resamples of it, made of
blocks of jobs in a row, so that bursts stay bursts (moving blocks: Künsch, Annals of
Statistics 17, 1989).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rts.settings import Settings
from rts.simulation.orders import Order
from rts.simulation.simulator import IDEAL, Conditions, finished
from rts.simulation.tally import Tally, offered_load
from rts.simulation.traces import Job

#: Resamples that a number of slots has to stand.
RESAMPLES = 10
#: Jobs that are planned with; of more, those of the busiest interval.
MAX_JOBS = 10_000
#: Rows of the answer's table on each side of it.
BESIDE = 2


class Unattainable(ValueError):
    """No number of slots meets the target; the message says what is the best."""


@dataclass(frozen=True)
class Trial:
    """What a number of slots comes to."""

    slots: int
    #: ρ of the workload on them; ``None`` where all jobs arrive at once.
    rho: float | None
    #: Share of deadlines met, 0 to 1; of the worst type where each has to meet the target.
    share: float
    #: The same, of the worst resample.
    worst: float


@dataclass(frozen=True)
class Plan:
    """The answer, and the numbers around it."""

    slots: int
    trials: Sequence[Trial]
    #: Jobs that were planned with.
    jobs: int


@dataclass(frozen=True)
class Question:
    """What is asked: a workload, a target from above 0 to 1, an order, a world."""

    jobs: Sequence[Job]
    target: float
    #: Makes the order for so many slots.
    order: Callable[[int], Order]
    settings: Settings
    conditions: Conditions = IDEAL
    #: Whether each type has to meet the target, not only the whole.
    by_type: bool = False
    resamples: int = RESAMPLES
    seed: int = 1


def plan(question: Question, progress: Callable[[], None] = lambda: None) -> Plan:
    """Return the least number of slots that meets the target, also on each resample.

    *progress* is called after each number that was tried.

    Raises:
        Unattainable: not even a slot for each job does.
    """
    planner = _Planner(question, progress)
    if not planner.meets(most := len(planner.jobs)):
        best = planner.trial(most)
        raise Unattainable(
            f"no number of slots meets {question.target:.2%}: with a slot for each task "
            f"{best.share:.2%} are met ({best.worst:.2%} in the worst resample). Runs that "
            "take longer than their deadlines allow need a greater k, or better known taus"
        )
    # Fewer than ρ = 1 asks for will rarely do, so that is where to begin.
    failed, slots = 0, max(1, min(most, round(planner.erlangs)))
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


def busiest(jobs: Sequence[Job], most: int) -> Sequence[Job]:
    """Return the *most* jobs in a row that offer the highest load.

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
        load = offered_load(jobs[begin : begin + most], 1)
        return float("inf") if load is None else load

    begin = max(begins, key=load)
    return jobs[begin : begin + most]


def resample(jobs: Sequence[Job], rng: random.Random) -> list[Job]:
    """Return as many jobs, drawn in blocks with the pauses in front of them."""
    block = max(1, round(len(jobs) ** 0.5))
    drawn: list[Job] = []
    at = 0.0
    while len(drawn) < len(jobs):
        begin = rng.randrange(len(jobs))
        for number in range(begin, min(begin + block, len(jobs))):
            if number:
                at += jobs[number].arrival_s - jobs[number - 1].arrival_s
            drawn.append(jobs[number]._replace(arrival_s=at))
    return drawn[: len(jobs)]


class _Planner:
    def __init__(self, question: Question, progress: Callable[[], None]) -> None:
        self._question = question
        self._progress = progress
        self.jobs = busiest(question.jobs, MAX_JOBS)
        rng = random.Random(question.seed)
        self._draws = [resample(self.jobs, rng) for _ in range(question.resamples)]
        self._trials: dict[int, Trial] = {}
        #: Slots that would be busy all the time.
        self.erlangs = offered_load(self.jobs, 1, question.conditions.speed) or 1.0

    def meets(self, slots: int) -> bool:
        """Return whether that many slots meet the target; ends at the first proof of no."""
        if slots in self._trials:
            return self._trials[slots].worst >= self._question.target
        for jobs in (self.jobs, *self._draws):
            if self._share(jobs, slots, enough=True) < self._question.target:
                self._progress()
                return False
        self._progress()
        return True

    def trial(self, slots: int) -> Trial:
        """Return what that many slots come to, in full."""
        if slots not in self._trials:
            share = self._share(self.jobs, slots)
            worst = min([share, *(self._share(jobs, slots) for jobs in self._draws)])
            rho = offered_load(self.jobs, slots, self._question.conditions.speed)
            self._trials[slots] = Trial(slots, rho, share, worst)
            self._progress()
        return self._trials[slots]

    def _share(self, jobs: Sequence[Job], slots: int, enough: bool = False) -> float:
        """Return the share met; with *enough*, 0 as soon as the target is out of reach."""
        asked = self._question
        outcomes = finished(
            jobs, slots, asked.order(slots), asked.settings, conditions=asked.conditions
        )
        counted = Tally(lambda job: job.task_type)
        allowed = (1 - asked.target) * len(jobs) if enough else len(jobs)
        missed = 0
        for _, outcome in outcomes:
            counted.add(outcome)
            missed += not outcome.met
            if missed > allowed + 1e-9:
                return 0.0
        if asked.by_type:
            return min(counted.share_of(key) for key in counted.tasks)
        return counted.share
