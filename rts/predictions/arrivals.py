"""A random model of future arrivals, fitted to recent ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate

from rts.predictions.work import Work

#: Tasks that arrive so many times faster than the slots serve them count as one burst: no
#: such rate lasts.
BURST_RATIO = 10.0
#: Prior probability that the rate has not changed, and shape of the gamma prior of a rate.
ONE_RATE, SHAPE = 0.9, 0.5
#: A stream with an offered load ρ > 1 continues with probability ρ to this power: in the
#: long run no more arrives than is served.
CONTINUES = -0.3


class Arrivals:
    """Draws future arrivals: tasks like the recent ones, at their rate.

    Recent means since the last change of the rate. When that was is unknown, but has a
    posterior distribution (the Bayesian change point of a Poisson process; Raftery and Akman,
    *Biometrika* 73, 1986): either the rate was constant throughout, or it changed at one of
    the bursts, before which there was a silence. (Most bursts are single tasks.) Each stream
    draws a change point, then a rate from the gamma posterior given the bursts since that point
    (Gelman et al., *Bayesian Data Analysis*, 2013), and an end: what has lasted for some time
    lasts for as long again in half of all cases (Gott, *Nature* 363, 1993). A stream that
    overloads the slots may also be over already. So uncertainty widens the prediction, and a
    thousand tasks sent at once are not taken for the first of many thousands.
    """

    def __init__(
        self,
        recent: Sequence[Work],
        span_s: float,
        until: float,
        slots: int,
        rng: random.Random,
        weight: float = 1.0,
    ) -> None:
        """*recent*: what has arrived within the *span_s* seconds before *until*, for *slots*.

        *weight*: number of arrivals that each drawn one stands for, at least 1.
        """
        self._until = until
        self._weight = weight
        self._rng = rng
        self._bursts: list[list[Work]] = []
        #: Hypotheses of when the rate last changed: the index of the first burst that counts
        #: for the new rate, and the seconds since the change. And the cumulative
        #: (unnormalized) probabilities of these hypotheses.
        self._regimes: list[tuple[int, float]] = []
        self._cumulative: list[float] = []
        if len(recent) > 1:
            tasks = sum(work.weight for work in recent)
            #: Mean seconds between two completions while all slots are busy.
            self._task_s = sum(work.weight * work.tau for work in recent) / tasks / slots
            self._bursts = _bursts(recent, self._task_s / BURST_RATIO)
            self._sizes = [sum(work.weight for work in burst) for burst in self._bursts]
            self._weigh_regimes(span_s)

    def stream(self, since: float) -> Iterator[Work]:
        """Draw the tasks that arrive *since* an instant, in the order of arrival."""
        if not self._regimes:
            return
        rng, at = self._rng, since
        ((first, age_s),) = rng.choices(self._regimes, cum_weights=self._cumulative)
        bursts = self._bursts[first:]
        if not bursts:
            return
        rate = rng.gammavariate(len(bursts), 1 / age_s)
        load = rate * self._task_s * sum(self._sizes[first:]) / len(bursts)
        if load > 1 and rng.random() > load**CONTINUES:
            return
        end = at + age_s * (1 / (1 - rng.random()) - 1)
        while rate > 0:
            at += rng.expovariate(rate) * self._weight
            if at > end:
                return
            for work in bursts[int(rng.random() * len(bursts))]:
                deadline = at + work.deadline - work.arrival
                weight = work.weight * self._weight
                yield work._replace(arrival=at, deadline=deadline, ready=0.0, weight=weight)

    def _weigh_regimes(self, span_s: float) -> None:
        """Compute the posterior of the last change of the rate."""
        count, mean_s = len(self._bursts), span_s / len(self._bursts)
        ages = [self._until - burst[-1].arrival for burst in self._bursts]
        logs = [math.log(ONE_RATE) + _evidence(count, span_s, mean_s)]
        self._regimes.append((0, span_s))
        # The prior of a change's age is uniform on a logarithmic scale.
        scale = math.log(1 - ONE_RATE) - math.log(math.log1p(count))
        for number, age_s in enumerate(ages):
            before_s = span_s - ages[number - 1] if number else 0.0
            logs.append(
                scale
                - math.log(age_s + mean_s)
                + _evidence(number, max(0.0, before_s), mean_s)
                + _evidence(count - number - 1, age_s, mean_s)
            )
            # The first burst defines the change, so it does not count for the rate.
            self._regimes.append((number + 1, age_s))
        most = max(logs)
        self._cumulative = list(accumulate(math.exp(log - most) for log in logs))


def _bursts(recent: Sequence[Work], gap_s: float) -> list[list[Work]]:
    """Group the tasks, in the order of arrival, into bursts with gaps of at most *gap_s*."""
    bursts: list[list[Work]] = []
    last = -math.inf
    for work in sorted(recent, key=lambda work: work.arrival):
        if work.arrival - last > gap_s:
            bursts.append([])
        bursts[-1].append(work)
        last = work.arrival
    return bursts


def _evidence(count: int, seconds: float, mean_s: float) -> float:
    """Return the log marginal likelihood of *count* bursts within *seconds* at a constant
    rate, whose prior has the mean 1 / *mean_s*.
    """
    rate = SHAPE * mean_s
    return (
        math.lgamma(SHAPE + count)
        - math.lgamma(SHAPE)
        + SHAPE * math.log(rate)
        - (SHAPE + count) * math.log(rate + seconds)
    )
