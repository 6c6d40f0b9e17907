"""The least number of slots, against trying each."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from rts.settings import Settings
from rts.simulation.orders import FirstComeFirstServed, Order, order_of
from rts.simulation.planning import (
    Question,
    Unattainable,
    busiest,
    plan,
    resample,
)
from rts.simulation.pools import Pool, spread
from rts.simulation.simulator import Conditions, share_met, simulate
from rts.simulation.traces import Job, Origin, at_load, offered_load, six_types
from rts.simulation.workers import Workers

SETTINGS = Settings()


def edf(slots: int) -> Order:
    return order_of("edf", SETTINGS)


def fifo(slots: int) -> Order:
    return FirstComeFirstServed()


@pytest.mark.parametrize("order", [fifo, edf])
@pytest.mark.parametrize("target", [0.5, 0.9])
def test_the_plan_is_the_least_number_that_meets_the_target(
    order: Callable[[int], Order], target: float
) -> None:
    jobs = at_load(six_types(400, seed=4), 6, 1.0)
    answer = plan(Question(jobs, target, order, SETTINGS, resamples=0))

    def share(slots: int) -> float:
        return share_met(simulate(jobs, slots, order(slots), SETTINGS))

    assert share(answer.slots) >= target > share(answer.slots - 1)
    assert [t.slots for t in answer.trials] == list(range(answer.slots - 2, answer.slots + 3))
    for trial in answer.trials:
        assert trial.share == trial.worst == share(trial.slots)
    assert answer.jobs == 400


def test_resamples_and_types_make_the_plan_more_conservative() -> None:
    jobs = at_load(six_types(300, seed=4), 6, 1.0)
    asked = Question(jobs, 0.9, edf, SETTINGS, resamples=0)
    tried: list[int] = []
    plain = plan(asked, lambda: tried.append(1)).slots
    assert len(tried) > 5
    careful = plan(Question(jobs, 0.9, edf, SETTINGS))
    assert careful.slots >= plain
    (trial,) = (t for t in careful.trials if t.slots == careful.slots)
    assert trial.worst >= 0.9
    (fewer,) = (t for t in careful.trials if t.slots == careful.slots - 1)
    assert fewer.worst < 0.9
    each = plan(Question(jobs, 0.9, edf, SETTINGS, by_type=True, resamples=0)).slots
    assert each >= plain
    outcomes = simulate(jobs, each, edf(each), SETTINGS)
    for kind in SETTINGS.task_types:
        assert share_met([o for o in outcomes if o.job.task_type == kind]) >= 0.9


def test_more_load_and_more_overhead_need_more_slots() -> None:
    jobs = at_load(six_types(300, seed=4), 6, 1.0)

    def slots(conditions: Conditions) -> int:
        found = plan(Question(jobs, 0.9, edf, SETTINGS, conditions, resamples=0))
        for trial in found.trials:
            assert trial.rho == offered_load(jobs, trial.slots, conditions.speed)
        return found.slots

    usual = slots(Conditions())
    assert slots(Conditions(speed=2)) >= 1.6 * usual
    assert slots(Conditions(overheads=(2.0,))) > usual


def test_an_unattainable_target() -> None:
    jobs = [Job(100.0 * n, "x", 1.0 if n % 2 else 50.0, tau=10.0, span_s=20) for n in range(10)]
    with pytest.raises(Unattainable, match=r"90%: with a slot for each task 50\.00% are"):
        plan(Question(jobs, 0.9, fifo, SETTINGS))
    jobs = [job._replace(task_type="cpu-light") if job.runtime_s == 1 else job for job in jobs]
    with pytest.raises(Unattainable, match=r"0\.00% of the worst type are met"):
        plan(Question(jobs, 0.9, fifo, SETTINGS, by_type=True))


@pytest.mark.parametrize(
    ("others", "slots"),
    # Of 38, the others have 28.5, rounded to 28; of 390, 380.49.
    [(3, 38), (40, 390)],
)
def test_a_burst_may_need_more_slots_than_tasks_as_its_workers_have_a_part_of_them(
    others: int, slots: int
) -> None:
    steady = [Job(float(n), "x", 1.0, tau=1.0, span_s=9.0) for n in range(10)]
    burst = [Job(9.0, "x", 10.0, tau=10.0, span_s=15.0, queue=1)] * 10
    pools = [Pool((0,), others, [others]), Pool((1,), 1, [1])]

    def workers(slots: int) -> Workers:
        return Workers(spread(slots, pools), FirstComeFirstServed)

    question = Question(
        steady + burst, 1.0, workers, SETTINGS, resamples=0, recorded_slots=others + 1
    )
    assert plan(question).slots == slots


def test_a_burst_needs_a_slot_for_each_task_without_slack() -> None:
    jobs = [Job(5.0, "x", 1.0, tau=1.0, span_s=1.0)] * 7
    answer = plan(Question(jobs, 1.0, fifo, SETTINGS))
    assert answer.slots == 7
    assert [t.slots for t in answer.trials] == [5, 6, 7]
    assert answer.trials[0].rho is None


def test_one_slot_is_enough() -> None:
    calm = [Job(100.0 * n, "x", 1.0, tau=1.0, span_s=2.0) for n in range(10)]
    assert plan(Question(calm, 1.0, fifo, SETTINGS)).slots == 1
    rush = [Job(0.1 * n, "x", 1.0, tau=1.0, span_s=1.0) for n in range(10)]
    assert plan(Question(rush, 0.1, fifo, SETTINGS, resamples=0)).slots == 1


def test_a_resample_consists_of_blocks_in_order() -> None:
    jobs = [Job(float(n * n), f"job {n}", 1.0) for n in range(100)]
    drawn = resample(jobs, random.Random(3))
    assert len(drawn) == 100
    neighbours = 0
    for before, after in pairwise(drawn):
        assert after.arrival_s >= before.arrival_s
        numbers = [int(job.name.split()[1]) for job in (before, after)]
        if numbers[1] == numbers[0] + 1:
            neighbours += 1
            gap = numbers[1] ** 2 - numbers[0] ** 2
            assert after.arrival_s - before.arrival_s == pytest.approx(gap)
    assert neighbours >= 80
    assert resample(jobs, random.Random(4)) != drawn


def test_in_a_resample_a_job_is_published_within_its_block() -> None:
    jobs = [
        Job(float(n), "x", 1.0, key=str(n), origin=Origin(str(n - n % 3 - 1), 1.0, False))
        for n in range(100)
    ]
    drawn = resample(jobs, random.Random(1))
    assert 20 < sum(job.origin is not None for job in drawn) < 100
    for number, job in enumerate(drawn):
        if job.origin is not None:
            back = int(job.key) - int(job.origin.key)
            assert drawn[number - back].key == job.origin.key


def test_the_busiest_section_of_a_long_workload() -> None:
    jobs = [Job(float(n if n < 500 else 500 + (n - 500) / 10), "x", 1.0) for n in range(1000)]
    assert busiest(jobs, 400)[0].arrival_s >= 500
    assert busiest(jobs, 2000) is jobs
    jobs = [Job(10.0 * n, "x", 1.0) for n in range(100)]
    jobs[43:53] = [jobs[43]] * 10
    assert busiest(jobs, 10) == [jobs[43]] * 10, "at once"


def test_two_jobs_within_an_instant_that_no_load_can_express() -> None:
    jobs = [Job(arrival_s, "x", 1.0, tau=1.0, span_s=1.0) for arrival_s in (0.0, 1e-310)]
    answer = plan(Question(jobs, 1.0, fifo, SETTINGS))
    assert (answer.slots, answer.trials[-1].rho) == (2, float("inf"))
