"""Runtimes for the simulations of a queue, sampled from recent runs."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from rts.predictions.work import Work
from rts.tau.cache import POOL
from rts.tau.sketch import Sketch

#: Least runs of a task name to sample its runtimes from, and of a task type, if the name has
#: too few; else runtimes are lognormal with this σ.
OWN_RUNS, KNOWN_RUNS, UNKNOWN_SIGMA = 5, 20, 0.5
#: Nearest neighbours by tau on either side to sample from, besides all of the same tau; and
#: the greatest ratio of two taus that count as near.
NEAR, NEAR_RATIO = 15, 2.0
#: Lognormal σ of the drift of future runtimes against past ones.
DRIFT_SIGMA = 0.07
#: Quantiles that represent a learned distribution of ratios.
VALUES = 256
#: Draws after which a run is taken to exceed all known runtimes.
TRIES = 16


#: Pairs of tau and runtime, ordered by tau, and the range of indexes to sample from.
_Neighbours = tuple[list[tuple[float, float]], int, int]


class Runtimes:
    """Samples runtimes from similar runs: recent ones, else learned ratios.

    Similar are recent runs of the task name with nearly the same tau, whose ratio of runtime
    over tau is applied: the ratio depends on tau, as a tau that came out high is followed by
    shorter runtimes, and more so with many names and heavy-tailed runtimes (nearest
    neighbours; Stone, *Annals of Statistics* 5, 1977). If the tau of the sampled run is not
    near, tau had not been learned, and the runtime itself is used. For a name with hardly
    any runs those of its type with near taus serve, then all ratios ever learned. The known
    runs are a sample themselves, so each simulation uses a bootstrap resample of them (Efron,
    *Annals of Statistics* 7, 1979).
    """

    def __init__(
        self,
        ratios: Mapping[str, Sketch],
        ended: Iterable[tuple[Work, float]],
        rng: random.Random,
    ) -> None:
        """*ratios*: learned ratios of runtime over tau, by type; *ended*: recent runs with
        their runtimes in seconds.
        """
        self._rng = rng
        self._ratios = {key: kept for key, kept in ratios.items() if kept.count >= KNOWN_RUNS}
        #: By type, of those that were drawn from since: see :meth:`_learned`.
        self._tables: dict[str, list[float]] = {}
        runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for work, runtime_s in ended:
            for name in {work.name, ""}:
                runs.setdefault((work.task_type, name), []).append((work.tau, runtime_s))
        #: By type and name ("" for all of the type): pairs of tau and runtime, sorted.
        self._runs = {
            key: sorted(pairs)
            for key, pairs in runs.items()
            if len(pairs) >= (OWN_RUNS if key[1] else KNOWN_RUNS)
        }
        #: The same as resampled, of the keys that were drawn from since.
        self._resampled = dict(self._runs)
        #: By type, name and tau.
        self._neighbours: dict[tuple[str, str, float], _Neighbours] = {}
        self._drift = 1.0

    def resample(self) -> None:
        """Draw a new resample and drift, for another simulation."""
        self._resampled.clear()
        self._neighbours.clear()
        self._drift = self._rng.lognormvariate(0.0, DRIFT_SIGMA)

    def draw(self, work: Work) -> float:
        """Return a random runtime of *work* in seconds."""
        key = work.task_type, work.name, work.tau
        neighbours = self._neighbours.get(key)
        if neighbours is None:
            neighbours = self._neighbours[key] = self._neighbours_of(work)
        pairs, low, high = neighbours
        if low < high:
            tau, runtime_s = pairs[low + int(self._rng.random() * (high - low))]
            if tau / NEAR_RATIO <= work.tau <= tau * NEAR_RATIO:
                runtime_s *= work.tau / tau
            return self._drift * runtime_s
        if table := self._learned(work.task_type):
            return work.tau * table[int(self._rng.random() * VALUES)]
        sigma = UNKNOWN_SIGMA
        return work.tau * self._rng.lognormvariate(-sigma * sigma / 2, sigma)

    def _learned(self, task_type: str) -> list[float]:
        """Return quantiles of all ratios learned for a type, else of those for any type; none
        if too few are known.
        """
        if task_type not in self._tables:
            sketch = self._ratios.get(task_type) or self._ratios.get(POOL)
            ranks = ((i + 0.5) / VALUES for i in range(VALUES))
            bounds = map(sketch.bound, ranks) if sketch else ()
            self._tables[task_type] = [bound or 0.0 for bound in bounds]
        return self._tables[task_type]

    def _neighbours_of(self, work: Work) -> _Neighbours:
        """Return the runs and the range of indexes to sample from, which may be empty."""
        own = self._runs_of(work.task_type, work.name) if work.name else None
        pairs = own or self._runs_of(work.task_type, "")

        def first(tau: float) -> int:
            return bisect_left(pairs, (tau, -math.inf))

        def last(tau: float) -> int:
            return bisect_right(pairs, (tau, math.inf))

        same, beyond = first(work.tau), last(work.tau)
        middle = (same + beyond) // 2
        low = max(0, min(middle - NEAR, len(pairs) - 2 * NEAR))
        high = min(len(pairs), low + 2 * NEAR)
        # Include all runs of the same tau: these are sorted by runtime, so a cut is a bias.
        low, high = min(low, same), max(high, beyond)
        if not own:
            low = max(low, first(work.tau / NEAR_RATIO))
            high = min(high, last(work.tau * NEAR_RATIO))
        return (pairs, low, high) if high - low >= OWN_RUNS else (pairs, 0, 0)

    def _runs_of(self, task_type: str, name: str) -> list[tuple[float, float]]:
        """Return the resampled runs of a type and name."""
        key = task_type, name
        found = self._resampled.get(key)
        if found is None:
            pairs = self._runs.get(key, [])
            numbers = sorted(self._rng.choices(range(len(pairs)), k=len(pairs)))
            found = self._resampled[key] = [pairs[number] for number in numbers]
        return found

    def draw_longer(self, work: Work, elapsed_s: float) -> float:
        """Return a random runtime of *work*, in seconds, that is above *elapsed_s*."""
        for _ in range(TRIES):
            runtime_s = self.draw(work)
            if runtime_s > elapsed_s:
                return runtime_s
        # It exceeds all similar runs: as long again, on average.
        return elapsed_s + self._rng.expovariate(1 / max(elapsed_s, 1e-3))
