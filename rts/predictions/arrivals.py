"""What the simulations of a queue draw of arrivals to come."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from rts.predictions.sampling import Work

#: Tasks that come so many times faster than the slots can serve them are one burst:
#: nobody can send like that for long.
BURST_RATIO = 10.0
#: Belief, before looking, that all of the past came at one rate; and the shape of the
#: gamma distribution that a rate is believed to come from.
ONE_RATE, SHAPE = 0.9, 0.5
#: What comes so many times faster than it is served goes on with the probability of that
#: number to this power: on the whole no more comes than is served.
GOES_ON = -0.3


class _Past(NamedTuple):
    """What may be all that is like what comes now."""

    #: The first burst that tells its rate; all later ones do.
    first: int
    #: Seconds since it has begun.
    since_s: float


class Arrivals:
    """Draws arrivals: tasks like those of late, as many a second as there were.

    Of late: since the rate has changed last, which is not known but can be told how
    likely for each moment (the Bayesian change point of a Poisson process; Raftery and
    Akman, *Biometrika* 73, 1986). Either all came at one rate, or what comes now has
    begun with one of the bursts that came, after a silence; a burst is most often one
    task. Each stream draws its beginning, a rate from what so many bursts since then
    tell of it (the gamma distribution; Gelman et al., *Bayesian Data Analysis*, 2013),
    and an end: what has gone on for a time goes on for as long again in half of the
    cases (Gott, *Nature* 363, 1993), unless it is too much for the slots and over. So
    what is not known widens the prediction, and a thousand tasks sent at once are not
    taken for the first of many thousands.
    """

    def __init__(
        self,
        lately: Sequence[Work],
        span_s: float,
        now: float,
        slots: int,
        rng: random.Random,
        together: float = 1.0,
    ) -> None:
        """*lately*: what has arrived within the last *span_s* seconds, for *slots*.

        *together*: number of arrivals that one stands for, at least 1.
        """
        self._now = now
        self._together = together
        self._rng = rng
        self._bursts: list[list[Work]] = []
        #: What there is to choose from, and sums of how likely it is.
        self._pasts: list[_Past] = []
        self._likely: list[float] = []
        if len(lately) > 1 and span_s > 0:
            #: Seconds that all slots take for one task.
            tasks = sum(work.weight for work in lately)
            self._task_s = sum(work.weight * work.tau for work in lately) / tasks / slots
            self._bursts = _bursts(lately, self._task_s / BURST_RATIO)
            self._look_back(span_s)

    def stream(self) -> Iterator[Work]:
        """Return tasks that arrive from now on, in the order of arrival."""
        if not self._pasts:
            return
        rng, at = self._rng, self._now
        chosen = bisect_left(self._likely, rng.random() * self._likely[-1])
        first, since_s = self._pasts[chosen]
        bursts = self._bursts[first:]
        if not bursts or since_s <= 0:
            return
        rate = rng.gammavariate(len(bursts), 1 / since_s)
        tasks = sum(work.weight for burst in bursts for work in burst)
        load = rate * self._task_s * tasks / len(bursts)
        if load > 1 and rng.random() > load**GOES_ON:
            return
        end = at + since_s * (1 / (1 - rng.random()) - 1)
        while rate > 0:
            at += -math.log(1 - rng.random()) / rate * self._together
            if at > end:
                return
            for work in bursts[int(rng.random() * len(bursts))]:
                deadline = at + work.deadline - work.arrival
                weight = work.weight * self._together
                yield work._replace(arrival=at, deadline=deadline, ready=0.0, weight=weight)

    def _look_back(self, span_s: float) -> None:
        """Weigh since when tasks come as they do now."""
        count, mean_s = len(self._bursts), span_s / len(self._bursts)
        ages = [self._now - burst[-1].arrival for burst in self._bursts]
        logs = [math.log(ONE_RATE) + _evidence(count, span_s, mean_s)]
        self._pasts.append(_Past(0, span_s))
        # A change may be as long ago as any other, on a logarithmic scale.
        scale = math.log(1 - ONE_RATE) - math.log(math.log1p(count))
        for number, age_s in enumerate(ages):
            before_s = span_s - ages[number - 1] if number else 0.0
            logs.append(
                scale
                - math.log(age_s + mean_s)
                + _evidence(number, max(0.0, before_s), mean_s)
                + _evidence(count - number - 1, age_s, mean_s)
            )
            # The first one has begun it, and tells nothing of the rate.
            self._pasts.append(_Past(number + 1, age_s))
        most = max(logs)
        self._likely = list(accumulate(math.exp(log - most) for log in logs))


def _bursts(lately: Sequence[Work], together_s: float) -> list[list[Work]]:
    """Return the tasks in the order of arrival, together those that came no more than
    *together_s* seconds after each other.
    """
    bursts: list[list[Work]] = []
    last = -math.inf
    for work in sorted(lately, key=lambda work: work.arrival):
        if work.arrival - last > together_s:
            bursts.append([])
        bursts[-1].append(work)
        last = work.arrival
    return bursts


def _evidence(count: int, seconds: float, mean_s: float) -> float:
    """Return the logarithm of how likely a constant rate makes *count* bursts at their
    moments within *seconds*, whatever it is: one in *mean_s* is expected.
    """
    rate = SHAPE * mean_s
    return (
        math.lgamma(SHAPE + count)
        - math.lgamma(SHAPE)
        + SHAPE * math.log(rate)
        - (SHAPE + count) * math.log(rate + seconds)
    )
