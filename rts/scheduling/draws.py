"""What the simulations of a queue draw of runtimes."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rts.tau.cache import POOL
from rts.tau.sketch import Sketch

#: Where fewer runs than that are known, runtimes scatter by this (lognormal σ).
KNOWN_RUNS, UNKNOWN_SIGMA = 20, 0.5
#: Runs with the nearest taus, to either side, that a runtime is drawn from.
NEAR = 15
#: What comes differs from what was by about such a share (lognormal σ).
DRIFT_SIGMA = 0.07
#: Values that stand for a distribution of ratios.
VALUES = 256
#: Draws until a runtime is taken to be longer than any before.
TRIES = 16


class Work(NamedTuple):
    """A task, as far as a simulation needs it. Instants in epoch seconds."""

    task_type: str
    arrival: float
    tau: float
    deadline: float
    #: It does not start before: its eta, where that is later than its arrival.
    ready: float = 0.0


class Runtimes:
    """Draws runtimes: tau times the ratio of runtime over tau of a run that was alike.

    One of the last runs of the type whose tau was about the same: an average that came
    out high is followed by runtimes below it, and where names are many and runtimes
    have a heavy tail the ratio depends on tau altogether (nearest neighbours; Stone,
    *Annals of Statistics* 5, 1977). Where too few are remembered, the ratios that were
    ever learned. Which runs are remembered is chance too: each simulation draws from a
    resample of its own (Efron, *Annals of Statistics* 7, 1979).
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
        runs: dict[str, list[tuple[float, float]]] = {}
        for work, runtime_s in ended:
            runs.setdefault(work.task_type, []).append((work.tau, runtime_s / work.tau))
        #: By type, in the order of tau: the taus, and the ratios.
        self._taus: dict[str, list[float]] = {}
        self._ratios: dict[str, list[float]] = {}
        for task_type, pairs in runs.items():
            if len(pairs) >= KNOWN_RUNS:
                pairs.sort()
                self._taus[task_type] = [tau for tau, _ in pairs]
                self._ratios[task_type] = [ratio for _, ratio in pairs]
        self._drawn = self._ratios
        self._drift = 1.0

    def resample(self) -> None:
        """Begin another simulation."""
        random_ = self._rng.random
        self._drawn = {
            task_type: [ratios[i] for i in sorted(int(random_() * len(ratios)) for _ in ratios)]
            for task_type, ratios in self._ratios.items()
        }
        self._drift = self._rng.lognormvariate(0.0, DRIFT_SIGMA)

    def of(self, work: Work) -> float:
        """Return a runtime in seconds."""
        taus = self._taus.get(work.task_type)
        if taus is not None:
            middle = (bisect_left(taus, work.tau) + bisect_right(taus, work.tau)) // 2
            low = max(0, min(middle - NEAR, len(taus) - 2 * NEAR))
            high = min(len(taus), low + 2 * NEAR)
            position = low + int(self._rng.random() * (high - low))
            return self._drift * work.tau * self._drawn[work.task_type][position]
        table = self._learned.get(work.task_type) or self._learned.get(POOL)
        if table is not None:
            return work.tau * table[int(self._rng.random() * VALUES)]
        sigma = UNKNOWN_SIGMA
        return work.tau * self._rng.lognormvariate(-sigma * sigma / 2, sigma)

    def beyond(self, work: Work, elapsed_s: float) -> float:
        """Return a runtime of a task that has not ended for so long."""
        for _ in range(TRIES):
            runtime_s = self.of(work)
            if runtime_s > elapsed_s:
                return runtime_s
        # It takes longer than its like ever did: as long again, on average.
        return elapsed_s + self._rng.expovariate(1 / max(elapsed_s, 1e-3))
