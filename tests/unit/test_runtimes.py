"""Runtimes that simulations of a queue draw."""

from __future__ import annotations

import random
import statistics

import pytest

from rts.predictions.forecast import HIGH, LOW, quantile
from rts.predictions.runtimes import Runtimes
from rts.predictions.work import Work
from rts.tau.sketch import Sketch


def test_runtimes_follow_runs_of_the_same_tau() -> None:
    rng = random.Random(1)
    ended = [(Work("mixed", 0.0, 1.0, 2.0), 8.0)] * 60 + [
        (Work("mixed", 0.0, 9.0, 18.0), 9.0)
    ] * 60
    runtimes = Runtimes({}, ended, rng)
    assert {runtimes.draw(Work("mixed", 0.0, 1.0, 2.0)) for _ in range(50)} == {8.0}
    assert {runtimes.draw(Work("mixed", 0.0, 9.0, 18.0)) for _ in range(50)} == {9.0}
    nothing = Runtimes({}, [], rng)
    drawn = [nothing.draw(Work("mixed", 0.0, 5.0, 9.0)) for _ in range(2000)]
    assert statistics.mean(drawn) == pytest.approx(5.0, rel=0.1)
    ratios = Sketch()
    for _ in range(2000):
        ratios.update(rng.lognormvariate(-0.045, 0.3))
    of_all = Runtimes({"*": ratios}, [], rng)
    drawn = [of_all.draw(Work("new", 0.0, 5.0, 9.0)) for _ in range(2000)]
    assert statistics.mean(drawn) == pytest.approx(5.0, rel=0.1)


def test_runtimes_follow_runs_of_the_same_task_before_its_tau_is_learned() -> None:
    first = 10.0
    ended = [(Work("mixed", 0.0, first, 20.0, name=n), s) for n, s in (("a", 0.2), ("b", 2.0))]
    runtimes = Runtimes({}, ended * 15, random.Random(1))

    def drawn(tau: float, name: str) -> list[float]:
        return [runtimes.draw(Work("mixed", 0.0, tau, 1.2, name=name)) for _ in range(2000)]

    assert set(drawn(0.21, "a")) == {0.2}
    assert set(drawn(first, "b")) == {2.0}
    # Nothing but its tau is known of another task.
    assert statistics.mean(drawn(0.5, "c")) == pytest.approx(0.5, rel=0.1)
    assert set(drawn(first, "c")) == {0.2, 2.0}


@pytest.mark.parametrize(("follow_tau", "expected_s"), [(False, 2.0), (True, 3.0)])
def test_runtimes_follow_tau_as_far_as_those_of_the_task_have(
    follow_tau: bool, expected_s: float
) -> None:
    """A tau may be high for all that waits because the last few runs took long by chance."""
    ended = [
        (Work("mixed", 0.0, tau, 9.0, name="a"), share * (tau if follow_tau else 2.0))
        for tau in (0.5, 1.0, 2.0, 2.4)
        for share in (0.5, 1.0, 1.5)
        for _ in range(10)
    ]
    runtimes = Runtimes({}, ended, random.Random(1))
    drawn = [runtimes.draw(Work("mixed", 0.0, 3.0, 9.0, name="a")) for _ in range(5000)]
    assert statistics.mean(drawn) == pytest.approx(expected_s, rel=0.05)


@pytest.mark.parametrize(
    "taus", [[10.0] * 5, [10.0] * 5 + [76.0] * 2, [10.0] * 5 + [80.0] * 20]
)
def test_runtimes_of_a_new_task_do_not_follow_tau_as_those_of_its_type(
    taus: list[float],
) -> None:
    """Its tau has just come from that of the type, 10 s, to near its runtimes."""
    followed = [(Work("mixed", 0.0, tau, 9.0, name="a"), tau) for tau in (1.0, 2.0, 4.0, 8.0)]
    new = [(Work("mixed", 0.0, tau, 9.0, name="b"), 100.0) for tau in taus]
    runtimes = Runtimes({}, followed * 25 + new, random.Random(1))
    drawn = [runtimes.draw(Work("mixed", 0.0, 80.0, 9.0, name="b")) for _ in range(1000)]
    assert statistics.mean(drawn) == pytest.approx(100.0, rel=0.1)


def test_runtimes_of_a_new_task_follow_a_near_tau_as_those_of_its_type() -> None:
    def of(kind: str, name: str, *runs: tuple[float, float]) -> list[tuple[Work, float]]:
        return [(Work(kind, 0.0, tau, 9.0, name=name), s) for tau, s in runs] * 25

    following = of("mixed", "a", *((tau, tau) for tau in (1.0, 2.0, 4.0, 8.0)))
    # Each name by itself does not follow, though one takes longer and has a higher tau.
    constant = of("flat", "a", (1.0, 1.5), (2.0, 1.5)) + of("flat", "c", (8.0, 9.0), (9.0, 9.0))
    few = [(Work(kind, 0.0, 10.0, 9.0, name="b"), 100.0) for kind in ("mixed", "flat")] * 5
    runtimes = Runtimes({}, following + constant + few, random.Random(1))
    for kind, tau, expected_s in (
        *(("mixed", 12.0, 120.0), ("mixed", 8.0, 80.0), ("mixed", 21.0, 100.0)),
        *(("mixed", 4.9, 100.0), ("flat", 12.0, 100.0)),
    ):
        drawn_s = runtimes.draw(Work(kind, 0.0, tau, 9.0, name="b"))
        assert drawn_s == pytest.approx(expected_s, rel=0.02)


def test_runs_of_the_nearest_taus_serve_for_an_unknown_task() -> None:
    ended = [(Work("mixed", 0.0, 10.0 + n / 100, 9.0, name=f"{n}"), n) for n in range(100)]
    far = [(Work("mixed", 0.0, 2.0, 9.0, name="far"), 1000.0)] * 9
    runtimes = Runtimes({}, ended + far, random.Random(1))

    def drawn(tau: float) -> list[float]:
        new = Work("mixed", 0.0, tau, 9.0, name="new")
        return [runtimes.draw(new) for _ in range(400)]

    # Fifteen on either side; the thirty highest, scaled; of the lowest the near ones alone.
    assert 40 < min(drawn(10.6)) < max(drawn(10.6)) < 80
    assert 80 < min(drawn(15.0)) < max(drawn(15.0)) < 140
    assert max(drawn(5.2)) < 15


def test_learned_ratios_are_those_of_the_type_if_enough_are_known() -> None:
    def learned(ratio: float, count: int) -> Sketch:
        sketch = Sketch()
        for _ in range(count):
            sketch.update(ratio)
        return sketch

    ratios = {"own": learned(3.0, 20), "few": learned(3.0, 19), "*": learned(1.0, 40)}
    runtimes = Runtimes(ratios, [], random.Random(1))
    drawn = {kind: runtimes.draw(Work(kind, 0.0, 5.0, 9.0)) for kind in ("own", "few", "new")}
    assert drawn == {
        kind: pytest.approx(s, rel=0.05)
        for kind, s in (("own", 15.0), ("few", 5.0), ("new", 5.0))
    }


def test_runs_serve_once_there_are_enough_of_the_task_or_of_its_type() -> None:
    def drawn(own: int, others: int) -> set[float]:
        ended = [(Work("mixed", 0.0, 1.0, 3.0, name="a"), 1.0)] * own
        ended += [(Work("mixed", 0.0, 1.0, 3.0, name=f"{n}"), 2.0) for n in range(others)]
        runtimes = Runtimes({}, ended, random.Random(1))
        return {runtimes.draw(Work("mixed", 0.0, 1.0, 3.0, name="a")) for _ in range(200)}

    assert drawn(5, 15) == {1.0}
    assert drawn(4, 16) == {1.0, 2.0}
    assert len(drawn(4, 15)) == 200, "no two are the same"


def test_each_simulation_draws_from_a_resample_of_its_own() -> None:
    task = Work("mixed", 0.0, 1.0, 3.0, name="a")
    runtimes = Runtimes({}, [(task, float(n)) for n in range(1, 41)], random.Random(1))
    ranges = set()
    for _ in range(10):
        runtimes.resample()
        drawn = {runtimes.draw(task) for _ in range(1000)}
        assert 15 < len(drawn) < 35, "about 1 − 1/e of them"
        ranges.add(round(max(drawn) / min(drawn), 6))
    assert len(ranges) > 1


def test_a_run_that_exceeds_all_known_ones_takes_as_long_again_on_average() -> None:
    task = Work("mixed", 0.0, 1.0, 3.0, name="a")
    runtimes = Runtimes({}, [(task, 1.0)] * 20, random.Random(1))
    drawn = [runtimes.draw_longer(task, 5.0) for _ in range(2000)]
    assert min(drawn) > 5.0
    assert statistics.mean(drawn) == pytest.approx(10.0, rel=0.05)


def test_all_runs_of_the_same_tau_are_sampled() -> None:
    ended = [(Work("mixed", 0.0, 5.0, 10.0), float(n)) for n in range(1, 101)]
    runtimes = Runtimes({}, ended, random.Random(1))
    drawn = [runtimes.draw(Work("mixed", 0.0, 5.0, 10.0)) for _ in range(2000)]
    assert (min(drawn), max(drawn)) == (1.0, 100.0)
    assert statistics.mean(drawn) == pytest.approx(50.5, rel=0.1)


@pytest.mark.parametrize("runs", [5, 8, 12, 19])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_an_interval_holds_the_next_run_though_only_a_few_are_known(
    runs: int, sigma: float
) -> None:
    task, within, rng = Work("mixed", 0.0, 1.0, 3.0, name="a"), [], random.Random(1)
    for _ in range(300):
        runtimes = Runtimes(
            {}, [(task, rng.lognormvariate(0, sigma)) for _ in range(runs)], rng
        )
        drawn = []
        for _ in range(60):
            runtimes.resample()
            drawn.append(runtimes.draw(task))
        low, high = (quantile(drawn, q) for q in (LOW, HIGH))
        within.append(low <= rng.lognormvariate(0, sigma) <= high)
    assert 0.82 <= statistics.mean(within) <= 0.96
