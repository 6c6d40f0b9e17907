"""What the simulations of a queue draw of runtimes."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
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
#: Values that stand for a distribution of ratios.
VALUES = 256
#: Draws until a runtime is taken to be longer than any before.
TRIES = 16


#: Pairs of tau and runtime, in the order of tau, and between which positions to draw.
_Alike = tuple[list[tuple[float, float]], int, int]


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

    One of the last runs of the task whose tau was about the same, as a ratio of runtime
    over tau: an average that came out high is followed by runtimes below it, and where
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
        self._drawn = self._runs
        #: By type, name and tau.
        self._alike: dict[tuple[str, str, float], _Alike] = {}
        self._drift = 1.0

    def resample(self) -> None:
        """Begin another simulation."""
        random_ = self._rng.random
        self._drawn = {
            key: [pairs[i] for i in sorted(int(random_() * len(pairs)) for _ in pairs)]
            for key, pairs in self._runs.items()
        }
        self._alike.clear()
        self._drift = self._rng.lognormvariate(0.0, DRIFT_SIGMA)

    def of(self, work: Work) -> float:
        """Return a runtime in seconds."""
        key = work.task_type, work.name, work.tau
        alike = self._alike.get(key)
        if alike is None:
            alike = self._alike[key] = self._alike_to(work)
        pairs, low, high = alike
        if low < high:
            tau, runtime_s = pairs[low + int(self._rng.random() * (high - low))]
            if tau / NEAR_RATIO <= work.tau <= tau * NEAR_RATIO:
                runtime_s *= work.tau / tau
            return self._drift * runtime_s
        table = self._learned.get(work.task_type) or self._learned.get(POOL)
        if table is not None:
            return work.tau * table[int(self._rng.random() * VALUES)]
        sigma = UNKNOWN_SIGMA
        return work.tau * self._rng.lognormvariate(-sigma * sigma / 2, sigma)

    def _alike_to(self, work: Work) -> _Alike:
        """Return the runs to draw from, and between which positions; none where low = high."""
        own = self._drawn.get((work.task_type, work.name)) if work.name else None
        pairs = own or self._drawn.get((work.task_type, ""), [])

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
        return (pairs, low, high) if high - low >= OWN_RUNS else (pairs, 0, 0)

    def beyond(self, work: Work, elapsed_s: float) -> float:
        """Return a runtime of a task that has not ended for so long."""
        for _ in range(TRIES):
            runtime_s = self.of(work)
            if runtime_s > elapsed_s:
                return runtime_s
        # It takes longer than its like ever did: as long again, on average.
        return elapsed_s + self._rng.expovariate(1 / max(elapsed_s, 1e-3))
