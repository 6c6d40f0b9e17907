"""Arrivals that simulations of a queue draw."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from itertools import takewhile

import pytest

from rts.predictions.arrivals import Arrivals
from rts.predictions.work import Work


def test_arrivals_have_the_recent_rate() -> None:
    rng = random.Random(1)
    recent_arrivals = [Work("mixed", float(i), 1.0, i + 3.0) for i in range(100)]
    counts = []
    for _ in range(300):
        stream = Arrivals(recent_arrivals, 100.0, 100.0, 1, rng).stream(100.0)
        arrived = [w for w in (next(stream, None) for _ in range(50)) if w is not None]
        assert all(w.deadline - w.arrival == pytest.approx(3.0) for w in arrived)
        if len(arrived) == 50:
            counts.append(arrived[-1].arrival - 100.0)
    assert statistics.median(counts) == pytest.approx(50.0, rel=0.1)
    assert list(Arrivals([], 0.0, 0.0, 1, rng).stream(0.0)) == []


def test_a_rate_lasts_for_as_long_again_in_half_of_all_cases() -> None:
    coming = Arrivals([at(float(i)) for i in range(100)], 100.0, 100.0, 8, random.Random(1))
    lasted = [any(w.arrival > 200.0 for w in coming.stream(100.0)) for _ in range(300)]
    assert statistics.mean(lasted) == pytest.approx(0.5, abs=0.1)


def streamed(recent_arrivals: list[Work], now: float, seconds: float) -> float:
    """Return the median number of arrivals within *seconds*."""
    rng = random.Random(1)
    coming = Arrivals(recent_arrivals, now, now, slots=8, rng=rng)
    counts = []
    for _ in range(300):
        within = takewhile(lambda work: work.arrival <= now + seconds, coming.stream(now))
        counts.append(sum(1 for _ in within))
    return statistics.median(counts)


def test_what_may_have_arrived_unseen_is_no_silence() -> None:
    rng = random.Random(1)
    coming = Arrivals([at(i / 10) for i in range(300)], 30.0, 30.0, slots=8, rng=rng)
    counts = []
    for _ in range(300):
        arrivals = [work.arrival for work in takewhile(before(41.5), coming.stream(31.5))]
        assert all(arrival > 31.5 for arrival in arrivals)
        counts.append(len(arrivals))
    assert statistics.median(counts) == pytest.approx(100, rel=0.1)


def before(instant: float) -> Callable[[Work], bool]:
    return lambda work: work.arrival < instant


def at(arrival: float) -> Work:
    return Work("mixed", arrival, 1.0, arrival + 3.0)


def test_a_burst_is_one_event_rather_than_a_new_rate() -> None:
    steady = [at(float(i)) for i in range(100)]
    burst = [at(160.0 + i / 1000) for i in range(500)]
    # After a silence there is nothing else yet.
    assert streamed([*steady, *burst], 161.0, 60.0) == 0
    # One burst among steady arrivals does not change their rate.
    burst = [at(50.5 + i / 1000) for i in range(500)]
    assert streamed([*steady, *burst], 100.0, 30.0) == pytest.approx(30, rel=0.25)
    # Recurring bursts go on.
    bursts = [at(10.0 * i + j / 1000) for i in range(20) for j in range(50)]
    assert streamed(bursts, 195.0, 60.0) == pytest.approx(300, rel=0.35)


@pytest.mark.parametrize("weight", [1, 10])
def test_the_higher_an_overload_the_likelier_it_is_over(weight: int) -> None:
    recent_arrivals = [  # ten times as much
        at(i * weight / 80)._replace(weight=float(weight)) for i in range(800 // weight)
    ]
    counts = []
    for seed in range(200):
        coming = Arrivals(recent_arrivals, 10.0, 10.0, slots=8, rng=random.Random(seed))
        counts.append(sum(work.weight for work in takewhile(before(11.0), coming.stream(10.0))))
    over = sum(not count for count in counts) / len(counts)
    assert over == pytest.approx(0.5, abs=0.1)
    assert statistics.median(count for count in counts if count) == pytest.approx(80, rel=0.2)


def test_arrivals_have_the_rate_after_its_last_change() -> None:
    slow = [at(10.0 * i) for i in range(30)]
    fast = [at(300.0 + i) for i in range(60)]
    assert streamed([*slow, *fast], 360.0, 30.0) == pytest.approx(30, rel=0.25)
    # It has stopped.
    assert streamed([at(float(i)) for i in range(300)], 400.0, 3000.0) == 0


def test_an_arrival_may_stand_for_several() -> None:
    pairs = [at(i / 10)._replace(weight=2.0) for i in range(300)]
    coming = Arrivals(pairs, 30.0, 30.0, slots=80, rng=random.Random(1), weight=5.0)
    counts = []
    for _ in range(100):
        arrivals = [*takewhile(before(40.0), coming.stream(30.0))]
        assert {work.weight for work in arrivals} <= {10.0}
        counts.append(len(arrivals))
    assert statistics.median(counts) == pytest.approx(20, rel=0.25)
