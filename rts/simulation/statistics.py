"""Statistics of a simulation: deadlines met by key, queueing delays, lateness."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rts.simulation.simulator import Outcome
from rts.simulation.traces import Job


@dataclass
class Tally:
    """A running count of outcomes."""

    #: Returns the key to count a job under, such as its type.
    key: Callable[[Job], str]
    tasks: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
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
        """Share of all deadlines met, 0 to 1; there must be an outcome."""
        return self.met.total() / self.tasks.total()

    def share_of(self, key: str) -> float:
        """Return the share of *key*'s deadlines met, 0 to 1; it must have an outcome."""
        return self.met[key] / self.tasks[key]


def tally(
    outcomes: Iterable[tuple[int, Outcome]],
    key: Callable[[Job], str] = lambda job: job.task_type,
) -> Tally:
    """Count *outcomes*."""
    counted = Tally(key)
    for _, outcome in outcomes:
        counted.add(outcome)
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
