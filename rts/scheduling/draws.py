"""What the simulations of a queue draw of runtimes."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rts.tau.cache import POOL
from rts.tau.sketch import Sketch

#: Runs of a task from which on its runtimes are drawn from them; of a type, if it has none.
#: Where fewer are known, runtimes scatter by this (lognormal σ).
OWN_RUNS, KNOWN_RUNS, UNKNOWN_SIGMA = 5, 20, 0.5
#: Runs with the nearest taus, to either side, that a runtime is drawn from, and those whose
#: tau is the same. Taus are near which differ by no more than this factor.
NEAR, NEAR_RATIO = 15, 2.0
#: What comes differs from what was by about such a share (lognormal σ).
DRIFT_SIGMA = 0.07
#: Taus that scatter by no more than this share of them tell nothing of the runtimes.
SCATTER = 0.05
#: Values that stand for a distribution of ratios.
VALUES = 256
#: Draws until a runtime is taken to be longer than any before.
TRIES = 16


#: Pairs of tau and runtime, in the order of tau, between which positions to draw, and to
#: which power of tau runtimes are in proportion.
_Alike = tuple[list[tuple[float, float]], int, int, float]


class Work(NamedTuple):
    """A task, as far as a simulation needs it. Instants in epoch seconds."""

    task_type: str
    arrival: float
    tau: float
    deadline: float
    #: It does not start before: its eta, where that is later than its arrival.
    ready: float = 0.0
    #: Of the task; empty: not known.
    name: str = ""
    #: Number of its queue among those that share workers; 0 is the one asked about.
    queue: int = 0
    #: How many tasks it stands for, itself included, where not all are known.
    weight: float = 1.0
    #: Whether the deadline is its own: what has none is never hopeless.
    due: bool = True


class Runtimes:
    """Draws runtimes: those of runs that were alike, by the last runs and what was learned.

    One of the last runs of the task whose tau was about the same, in proportion to tau as
    far as they are: an average that came out high is followed by runtimes below it, and where
    names are many and runtimes have a heavy tail the ratio depends on tau altogether
    (nearest neighbours; Stone, *Annals of Statistics* 5, 1977). Where no such run had a
    tau near to this one, tau was not learned yet: then the runtime itself. Of a task
    that has hardly run those of its type stand for it, if their taus are near, then the
    ratios that were ever learned. Which runs are remembered is chance too: each
    simulation draws from a resample of its own (Efron, *Annals of Statistics* 7, 1979).
    """

    def __init__(
        self,
        ratios: Mapping[str, Sketch],
        ended: Iterable[tuple[Work, float]],
        rng: random.Random,
    ) -> None:
        """*ratios*: all that were learned, by type; *ended*: the last runs with their
        runtimes, seconds.
        """
        self._rng = rng
        self._learned = {
            task_type: [sketch.bound((i + 0.5) / VALUES) or 0.0 for i in range(VALUES)]
            for task_type, sketch in ratios.items()
            if sketch.count >= KNOWN_RUNS
        }
        runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for work, runtime_s in ended:
            for name in {work.name, ""}:
                runs.setdefault((work.task_type, name), []).append((work.tau, runtime_s))
        #: By type and name, "" for all: taus and runtimes, in the order of tau.
        self._runs = {
            key: sorted(pairs)
            for key, pairs in runs.items()
            if len(pairs) >= (OWN_RUNS if key[1] else KNOWN_RUNS)
        }
        self._drawn = dict(self._runs)
        #: Of other tasks than its own a task knows nothing but their taus.
        self._powers = {
            key: _power(pairs) if key[1] else 1.0 for key, pairs in self._runs.items()
        }
        #: By type, name and tau.
        self._alike: dict[tuple[str, str, float], _Alike] = {}
        self._drift = 1.0

    def resample(self) -> None:
        """Begin another simulation."""
        self._drawn.clear()
        self._alike.clear()
        self._drift = self._rng.lognormvariate(0.0, DRIFT_SIGMA)

    def of(self, work: Work) -> float:
        """Return a runtime in seconds."""
        key = work.task_type, work.name, work.tau
        alike = self._alike.get(key)
        if alike is None:
            alike = self._alike[key] = self._alike_to(work)
        pairs, low, high, power = alike
        if low < high:
            tau, runtime_s = pairs[low + int(self._rng.random() * (high - low))]
            if tau / NEAR_RATIO <= work.tau <= tau * NEAR_RATIO:
                runtime_s *= (work.tau / tau) ** power
            return self._drift * runtime_s
        table = self._learned.get(work.task_type) or self._learned.get(POOL)
        if table is not None:
            return work.tau * table[int(self._rng.random() * VALUES)]
        sigma = UNKNOWN_SIGMA
        return work.tau * self._rng.lognormvariate(-sigma * sigma / 2, sigma)

    def _resampled(self, key: tuple[str, str]) -> list[tuple[float, float]] | None:
        """Return the runs that this simulation draws from; ``None``: too few are known."""
        if key not in self._drawn and key in self._runs:
            pairs = self._runs[key]
            chosen = self._rng.choices(range(len(pairs)), k=len(pairs))
            self._drawn[key] = [pairs[number] for number in sorted(chosen)]
        return self._drawn.get(key)

    def _alike_to(self, work: Work) -> _Alike:
        """Return the runs to draw from, and between which positions; none where low = high."""
        key = work.task_type, work.name
        own = self._resampled(key) if work.name else None
        if own is None:
            key = work.task_type, ""
        pairs = own or self._resampled(key) or []

        def first(tau: float) -> int:
            return bisect_left(pairs, (tau, -math.inf))

        def last(tau: float) -> int:
            return bisect_right(pairs, (tau, math.inf))

        same, beyond = first(work.tau), last(work.tau)
        middle = (same + beyond) // 2
        low = max(0, min(middle - NEAR, len(pairs) - 2 * NEAR))
        high = min(len(pairs), low + 2 * NEAR)
        # All of the same tau: published within a second, and in no other order.
        low, high = min(low, same), max(high, beyond)
        if own is None:
            low = max(low, first(work.tau / NEAR_RATIO))
            high = min(high, last(work.tau * NEAR_RATIO))
        if high - low < OWN_RUNS:
            return pairs, 0, 0, 1.0
        return pairs, low, high, self._powers[key]

    def beyond(self, work: Work, elapsed_s: float) -> float:
        """Return a runtime of a task that has not ended for so long."""
        for _ in range(TRIES):
            runtime_s = self.of(work)
            if runtime_s > elapsed_s:
                return runtime_s
        # It takes longer than its like ever did: as long again, on average.
        return elapsed_s + self._rng.expovariate(1 / max(elapsed_s, 1e-3))


def _power(pairs: Sequence[tuple[float, float]]) -> float:
    """Return to which power of tau the runtimes of *pairs* are in proportion, 0 to 1.

    Where a task changes, its taus tell of it, and runtimes follow them: 1. Where it does not,
    taus scatter with the runtimes that they are the average of, and all tasks that were
    published at a time share that error: 0. The slope of the regression tells (Galton,
    *Regression towards mediocrity*, 1886).
    """
    count = len(pairs)
    mean_tau = sum(tau for tau, _ in pairs) / count
    mean_s = sum(runtime_s for _, runtime_s in pairs) / count
    if mean_s <= 0:
        return 1.0
    square = sum((tau - mean_tau) ** 2 for tau, _ in pairs) / count
    joint = sum((tau - mean_tau) * (runtime_s - mean_s) for tau, runtime_s in pairs) / count
    slope = joint / (square + (SCATTER * mean_tau) ** 2)
    return min(1.0, max(0.0, slope * mean_tau / mean_s))
