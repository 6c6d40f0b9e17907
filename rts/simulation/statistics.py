"""Statistics of a simulation: deadlines met by key, queueing delays, lateness."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rts.simulation.simulator import Outcome
from rts.simulation.traces import Job


@dataclass
class Tally:
    """A running count of outcomes."""

    #: Returns the key to count a job under, such as its type.
    key: Callable[[Job], str]
    tasks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    met: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    dropped: int = 0
    #: Queueing delays in seconds, of tasks that were not dropped.
    delays: array[float] = field(default_factory=lambda: array("d"))
    #: Lateness of the same tasks in seconds.
    lateness: array[float] = field(default_factory=lambda: array("d"))

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        key = self.key(outcome.job)
        self.tasks[key] += 1
        self.met[key] += outcome.met
        if outcome.finished_at == math.inf:
            self.dropped += 1
        else:
            self.delays.append(outcome.queueing_delay_s)
            self.lateness.append(outcome.finished_at - outcome.deadline)

    @property
    def share(self) -> float:
        """Share of all deadlines met, 0 to 1; 1.0 without outcomes."""
        tasks = sum(self.tasks.values())
        return sum(self.met.values()) / tasks if tasks else 1.0

    def share_of(self, key: str) -> float:
        """Return the share of *key*'s deadlines met, 0 to 1; 1.0 without outcomes."""
        tasks = self.tasks.get(key, 0)
        return self.met[key] / tasks if tasks else 1.0


def tally(
    outcomes: Iterable[tuple[int, Outcome]],
    key: Callable[[Job], str] = lambda job: job.task_type,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """Count *outcomes*; *progress* is called with the number of each further thousand."""
    counted = Tally(key)
    seen = 0
    for _, outcome in outcomes:
        counted.add(outcome)
        seen += 1
        if progress is not None and seen % 1000 == 0:
            progress(1000)
    if progress is not None:
        progress(seen % 1000)
    return counted


def percentiles(values: Iterable[float], shares: Sequence[float]) -> list[float | None]:
    """Return the percentiles at *shares*, by nearest rank; each ``None`` without values.

    >>> percentiles([3.0, 1.0, 2.0], (0.5, 0.95))
    [2.0, 3.0]
    """
    ranked = sorted(values)
    if not ranked:
        return [None] * len(shares)
    return [ranked[max(0, math.ceil(share * len(ranked)) - 1)] for share in shares]


def offered_load(jobs: Sequence[Job], slots: int, speed: float = 1.0) -> float | None:
    """Return ρ = Σ service times / (slots · time from first to last arrival).

    ``None`` if all jobs arrive at once.
    """
    if not jobs:
        return None
    span_s = (jobs[-1].arrival_s - jobs[0].arrival_s) / speed
    work_s = sum(job.runtime_s + sum(run.runtime_s for run in job.later) for job in jobs)
    return work_s / (slots * span_s) if span_s > 0 else None
