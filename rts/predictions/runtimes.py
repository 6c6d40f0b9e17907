"""Runtimes for the simulations of a queue, sampled from recent runs."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rts.deadlines import MAX_TAU
from rts.predictions.work import Work
from rts.tau.cache import POOL
from rts.tau.sketch import Sketch

#: Least runs of a task name to sample its runtimes from, and of a task type, if the name has
#: too few; else runtimes are lognormal with this σ.
OWN_RUNS, KNOWN_RUNS, UNKNOWN_SIGMA = 5, 20, 0.5
#: Ridge: where the squared deviations of log τ add up to this, the dependence on tau that the
#: runs show counts as much as that of the whole type, or as none; where to more, more.
RIDGE = 0.1
#: Nearest neighbours by tau on either side to sample a type's runs from, besides all of the
#: same tau; and the greatest ratio of two taus that count as near.
NEAR, NEAR_RATIO = 15, 2.0
#: Seconds that taus and runtimes count as, at least, where one is computed from the other:
#: messages may carry any tau, and the ratio of two has to be finite.
LEAST_S = 1e-3
#: Lognormal σ of the drift of future runtimes against past ones.
DRIFT_SIGMA = 0.07
#: Quantiles that represent a learned distribution of ratios.
VALUES = 256
#: Draws after which a run is taken to exceed all known runtimes.
TRIES = 16


#: Pairs of tau and runtime.
_Runs = list[tuple[float, float]]


class _Sample(NamedTuple):
    """Runs to draw from: those with an index from *low* to below *high*."""

    runs: _Runs
    low: int
    high: int
    #: The tau to scale them to.
    tau: float
    #: How runtimes depend on tau: they are proportional to it to this power.
    power: float


_NOTHING = _Sample([], 0, 0, 1.0, 0.0)


class Runtimes:
    """Samples runtimes from similar runs: recent ones, else learned ratios.

    Similar are the recent runs of the task name. For a task with the tau τ, a run of x seconds
    that had the tau τₓ stands for x·(τ/τₓ)ᵇ. Where runtimes drift and tau follows them, b is
    near 1. Where they differ only by chance, b is 0, though tau may happen to be high for all
    that waits. So b is what the runs show: the slope of log x by log τₓ, by ridge regression
    towards the slope within all names of the type (Hoerl and Kennard, *Technometrics* 12,
    1970). For a name with few runs b is that slope, and 0 for runs whose τₓ is not near τ: it
    had not been learned yet.

    For a name with hardly any runs those of its type with near taus serve (nearest neighbours;
    Stone, *Annals of Statistics* 5, 1977), whose ratio of runtime over tau is applied; then all
    ratios ever learned. The known runs are a sample themselves, so each simulation uses a
    bootstrap resample of them (Efron, *Annals of Statistics* 7, 1979), :func:`widened` where
    they are few.
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
        runs: dict[tuple[str, str], _Runs] = {}
        for work, runtime_s in ended:
            run = _bounded(work.tau), runtime_s
            for name in {work.name, ""}:
                runs.setdefault((work.task_type, name), []).append(run)
        #: By type and name ("" for all of the type): pairs of tau and runtime, sorted.
        self._runs = {
            key: sorted(pairs)
            for key, pairs in runs.items()
            if len(pairs) >= (OWN_RUNS if key[1] else KNOWN_RUNS)
        }
        #: The same as resampled, of the keys that were drawn from since.
        self._resampled = dict(self._runs)
        #: By type, name and tau.
        self._samples: dict[tuple[str, str, float], _Sample] = {}
        #: By type and name, of those that were drawn from since: see :meth:`_power_of`.
        self._powers: dict[tuple[str, str], float] = {}
        self._drift = 1.0

    def resample(self) -> None:
        """Draw a new resample and drift, for another simulation."""
        self._resampled.clear()
        self._samples.clear()
        self._drift = self._rng.lognormvariate(0.0, DRIFT_SIGMA)

    def draw(self, work: Work) -> float:
        """Return a random runtime of *work* in seconds."""
        key = work.task_type, work.name, work.tau
        sample = self._samples.get(key)
        if sample is None:
            sample = self._samples[key] = self._sample_for(work)
        runs, low, high, own_tau, power = sample
        if low < high:
            tau, runtime_s = runs[low + int(self._rng.random() * (high - low))]
            if len(runs) >= KNOWN_RUNS or tau / NEAR_RATIO <= own_tau <= tau * NEAR_RATIO:
                runtime_s *= math.pow(own_tau / tau, power)
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

    def _sample_for(self, work: Work) -> _Sample:
        """Return the runs to draw from, which may be none."""
        own = self._runs_of(work.task_type, work.name) if work.name else None
        own_tau = _bounded(work.tau)
        if own:
            power = self._power_of(work.task_type, work.name)
            return _Sample(own, 0, len(own), own_tau, power)
        runs = self._runs_of(work.task_type, "")

        def first(tau: float) -> int:
            return bisect_left(runs, (tau, -math.inf))

        def last(tau: float) -> int:
            return bisect_right(runs, (tau, math.inf))

        same, beyond = first(own_tau), last(own_tau)
        middle = (same + beyond) // 2
        low = max(0, min(middle - NEAR, len(runs) - 2 * NEAR))
        high = min(len(runs), low + 2 * NEAR)
        # Include all runs of the same tau: these are sorted by runtime, so a cut is a bias.
        low = max(min(low, same), first(own_tau / NEAR_RATIO))
        high = min(max(high, beyond), last(own_tau * NEAR_RATIO))
        return _Sample(runs, low, high, own_tau, 1.0) if high - low >= OWN_RUNS else _NOTHING

    def _power_of(self, task_type: str, name: str) -> float:
        """Return how runtimes depend on tau, of a name, or ("") within all names of a type."""
        key = task_type, name
        if name and len(self._runs[key]) < KNOWN_RUNS:
            return self._power_of(task_type, "")
        if key not in self._powers:
            if name:
                power = power_of([self._runs[key]], self._power_of(task_type, ""))
            else:
                power = power_of(
                    runs for (of, n), runs in self._runs.items() if of == task_type and n
                )
            self._powers[key] = power
        return self._powers[key]

    def _runs_of(self, task_type: str, name: str) -> _Runs:
        """Return the resampled runs of a type and name."""
        key = task_type, name
        found = self._resampled.get(key)
        if found is None:
            pairs = self._runs.get(key, [])
            numbers = sorted(self._rng.choices(range(len(pairs)), k=len(pairs)))
            found = [pairs[number] for number in numbers]
            if 0 < len(found) < KNOWN_RUNS:
                found = widened(found)
            self._resampled[key] = found
        return found

    def draw_longer(self, work: Work, elapsed_s: float) -> float:
        """Return a random runtime of *work*, in seconds, that is above *elapsed_s*."""
        for _ in range(TRIES):
            runtime_s = self.draw(work)
            if runtime_s > elapsed_s:
                return runtime_s
        # It exceeds all similar runs: as long again, on average.
        return elapsed_s + self._rng.expovariate(1 / max(elapsed_s, LEAST_S))


def _bounded(tau: float) -> float:
    return min(MAX_TAU, max(LEAST_S, tau))


def widened(runs: _Runs) -> _Runs:
    """Return a few *runs*, at least two, with runtimes as far apart as more of them may be.

    The range of n runs holds the next one with a probability of (n − 1)/(n + 1) (Wilks, *Annals
    of Mathematical Statistics* 12, 1941). So their deviations from the mean are divided by it.

    >>> widened([(1.0, 4.0), (1.0, 6.0), (1.0, 8.0)])
    [(1.0, 2.0), (1.0, 6.0), (1.0, 10.0)]
    """
    mean_s = sum(runtime_s for _, runtime_s in runs) / len(runs)
    factor = (len(runs) + 1) / (len(runs) - 1)
    return [(tau, max(0.0, mean_s + factor * (run_s - mean_s))) for tau, run_s in runs]


def power_of(names: Iterable[_Runs], prior: float = 0.0) -> float:
    """Return the power of tau that runtimes are proportional to within *names*, 0 to 1; *prior*
    as far as their taus hardly differ.

    >>> round(power_of([[(tau, 3 * tau) for tau in (1.0, 2.0, 4.0, 8.0)] * 10]), 2)
    1.0
    >>> round(power_of([[(tau, tau) for tau in (1.0, 1.0, 1.0)], [(9.0, 9.0)] * 3]), 2)
    0.0
    >>> round(power_of([[(tau, tau) for tau in (1.0, 1.0, 1.0)]], prior=0.7), 2)
    0.7
    >>> power_of([[(tau, tau**3) for tau in (1.0, 2.0, 4.0, 8.0)]])
    1.0
    """
    squares = products = 0.0
    for runs in names:
        logs = [(math.log(tau), math.log(max(runtime_s, LEAST_S))) for tau, runtime_s in runs]
        mean = sum(tau for tau, _ in logs) / len(logs)
        squares += sum((tau - mean) ** 2 for tau, _ in logs)
        products += sum((tau - mean) * runtime for tau, runtime in logs)
    return min(1.0, max(0.0, (products + RIDGE * prior) / (squares + RIDGE)))
