"""Predictions compared with the outcome, in simulations of the same rule."""

from __future__ import annotations

import math
import random
import statistics
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.predictions import forecast
from rts.predictions.initial_state import busy_since
from rts.predictions.new_tasks import MAX_FRESH_S, Reading
from rts.predictions.prediction import Prediction
from rts.predictions.queue_parts import SAMPLE, sampled
from rts.predictions.queue_simulation import QueueSimulation
from rts.predictions.snapshot import Running, Snapshot
from rts.predictions.work import Work
from rts.rule import Rule
from rts.settings import Settings
from rts.simulation.orders import (
    EarliestDeadlineFirst,
    FirstComeFirstServed,
    Waiting,
    order_of,
)
from rts.simulation.queues import OrderMaker, WorkerGroup
from rts.simulation.simulator import Outcome, simulate
from rts.simulation.traces import Job, at_load, six_types
from rts.simulation.workers import Worker, Workers
from rts.tau.sketch import Sketch


def learned() -> dict[str, Sketch]:
    """Return the ratios that are learned from the runtimes of the six types."""
    rng, sketch = random.Random(3), Sketch()
    for _ in range(2000):
        sketch.update(rng.lognormvariate(-0.045, 0.3))
    return dict.fromkeys(Settings().task_types, sketch)


def work(outcome: Outcome) -> Work:
    job = outcome.job
    return Work(job.task_type, job.arrival_s, outcome.tau, outcome.deadline)


class Exact:
    """Stands in for :class:`Runtimes` and :class:`Arrivals`: a task's name is its runtime."""

    def __init__(self, future: list[Work]) -> None:
        self._future = future

    def stream(self, _: float) -> Iterator[Work]:
        return iter(self._future)

    def draw(self, work: Work) -> float:
        return float(work.name)

    def draw_longer(self, work: Work, elapsed_s: float) -> float:
        return float(work.name)


@given(
    st.randoms(use_true_random=False),
    st.integers(1, 4),
    st.sampled_from(["fifo", "edf"]),
    st.builds(
        Settings,
        hopeless=st.sampled_from(["demote", "keep", "drop"]),
        hopeless_slots=st.sampled_from([0.25, 0.75, 1.0]),
        late_share=st.sampled_from([0.0, 0.05, 0.3]),
        order=st.sampled_from(["deadline", "deadline+work"]),
    ),
)
def test_both_simulators_start_a_task_at_the_same_instant(
    rng: random.Random, slots: int, name: str, settings: Settings
) -> None:
    """Where nothing is unknown, and all slots are one worker's, they play the same."""
    jobs, at = [], 0.0
    for _ in range(20):
        tau = rng.choice([1.0, 3.0, 10.0])
        runtime_s = tau * rng.uniform(0.5, 2.0)
        span_s = tau * rng.uniform(1.0, 4.0)
        jobs.append(Job(at, str(runtime_s), runtime_s, tau=tau, span_s=span_s))
        at += rng.expovariate(1.0)
    outcomes = simulate(jobs, slots, order_of(name, settings), settings)
    works = [work(o)._replace(name=o.job.name) for o in outcomes]
    exact: Any = Exact(works[1:])
    order = partial(order_of, name, settings)
    for number, outcome in enumerate(outcomes):
        play = QueueSimulation(Snapshot(0.0, slots, works[:1], order=order), exact, exact, rng)
        assert play.start_of(number, 10_000) == outcome.started_at


def test_a_run_that_may_have_ended_unseen_has_been_followed_if_tasks_wait() -> None:
    exact: Any = Exact([])
    short = Work("mixed", 990.0, 1.0, 9000.0, name="1.0")

    def start_after(running: Running, work: Work) -> float:
        snapshot = Snapshot(1000.0, 1, [work], running=[running])
        play = QueueSimulation(snapshot, exact, exact, random.Random(1))
        return play.start_of(0, 100)

    assert start_after(Running(short, 999.5), short) == 1000.5
    # It was still known to run a moment ago.
    assert start_after(Running(short, 999.0), short) > 1000.0
    assert start_after(Running(short, 999.0), short._replace(arrival=999.9)) == 1000.0


def test_an_idle_worker_starts_at_once() -> None:
    task = Work("mixed", 100.0, 10.0, 120.0)
    got = forecast.of_new(Snapshot(100.0, 2, ratios=learned()), task)
    assert got.start == got.start_high == 100.0
    assert got.finish == pytest.approx(109, rel=0.1)
    assert got.finish_low < got.finish < got.finish_high
    assert 0.9 < got.on_time <= 1
    assert (got.ahead, got.slots, got.deadline) == (0, 2, 120.0)


def test_a_new_task_has_not_waited_though_reading_its_queue_took_a_second() -> None:
    task = Work("mixed", 99.0, 10.0, 119.0, ready=99.0)
    got = forecast.of_new(Snapshot(100.0, 2, ratios=learned()), task)
    assert got.start_high == 100.0


def test_a_slow_reading_takes_no_time_from_a_deadline_that_counts_from_the_publish() -> None:
    task = Work("mixed", 91.0, 10.0, 111.0, ready=91.0, moves=True)
    got = forecast.of_new(Snapshot(100.0, 2, ratios=learned()), task)
    assert (got.deadline, got.on_time > 0.9) == (120.0, True)
    own = forecast.of_new(Snapshot(100.0, 2, ratios=learned()), task._replace(moves=False))
    assert (own.deadline, own.on_time < 0.8) == (111.0, True)


def test_a_running_task_ends_after_its_elapsed_time() -> None:
    long = forecast.of_running(Snapshot(100.0, 1), Work("mixed", 0.0, 10.0, 20.0), 0.0)
    assert (long.start, long.on_time, long.ahead) == (0.0, 0.0, 0)
    assert long.finish_low > 100.0


def test_a_running_task_need_not_take_as_long_as_those_before() -> None:
    task = Work("mixed", 1000.0, 1.0, 1002.0)
    got = forecast.of_running(Snapshot(1000.0, 1, ended=EACH_1_S), task, 1000.0)
    assert 1000.8 < got.finish_low < 1000.95
    assert 1001.05 < got.finish_high < 1001.2


def test_a_task_with_an_eta_does_not_start_before() -> None:
    later = Work("mixed", 0.0, 1.0, 60.0, ready=50.0)
    held = Snapshot(0.0, 1, held=[later], ratios=learned())
    assert forecast.of_held(held, 0).start == pytest.approx(50.0)
    waits = Snapshot(0.0, 1, [later, Work("mixed", 0.0, 1.0, 9.0)], ratios=learned())
    assert forecast.of_waiting(waits, 0).start == pytest.approx(50.0)
    assert forecast.of_waiting(waits, 1).start < 3.0


def test_held_tasks_start_before_waiting_ones() -> None:
    each = Work("mixed", -9.0, 10.0, 20.0)
    snapshot = Snapshot(
        0.0, 1, [each], held=[each] * 3, running=[Running(each, 0.0)], ratios=learned()
    )
    got = forecast.of_waiting(snapshot, 0)
    assert got.start == pytest.approx(40, rel=0.15)
    assert got.ahead == 3


def test_no_task_finishes_before_it_starts() -> None:
    for elapsed_s in range(10):
        each = Work("mixed", 1000.0 - elapsed_s, 2.0, 1600.0)
        runs = [Running(each, 1000.0 - elapsed_s)]
        for position in range(0, 12, 3):
            snapshot = Snapshot(1000.0, 1, [each] * 12, running=runs)
            got = forecast.of_waiting(snapshot, position)
            assert got.finish > got.start


def test_a_sample_represents_a_huge_queue() -> None:
    each = Work("mixed", -9.0, 10.0, 20.0)
    few = Snapshot(0.0, 10, [each._replace(weight=1000.0)] * 100, ratios=learned())
    got = forecast.of_new(few, each)
    assert got.start == pytest.approx(100_000, rel=0.1)
    assert got.start_high - got.start_low < 0.3 * got.start
    assert got.ahead == 100_000


def test_a_smaller_share_of_the_slots_takes_longer() -> None:
    each = Work("mixed", -9.0, 10.0, 20.0)
    whole = Snapshot(0.0, 4, [each] * 100, ratios=learned())
    half = Snapshot(0.0, 4, [each] * 100, ratios=learned(), share=0.5)
    start = forecast.of_new(whole, each).start
    assert forecast.of_new(half, each).start == pytest.approx(2 * start, rel=0.1)


def test_a_task_that_is_likely_dropped_never_starts() -> None:
    dropping = partial(EarliestDeadlineFirst, Rule(hopeless="drop"))
    late = Work("mixed", 0.0, 10.0, 30.0)
    before = [Work("mixed", 0.0, 10.0, 29.0)] * 20
    snapshot = Snapshot(10.0, 1, [*before, late], ratios=learned(), order=dropping)
    got = forecast.of_waiting(snapshot, 20)
    assert (got.start, got.finish) == (math.inf, math.inf)
    assert got.on_time < 0.2


def test_a_task_starts_though_another_one_is_dropped() -> None:
    order = partial(EarliestDeadlineFirst, Rule(hopeless="drop"))
    hopeless, other = Work("mixed", 0.0, 1.0, 9.0), Work("mixed", 10.0, 1.0, 99.0)
    got = forecast.of_waiting(Snapshot(10.0, 1, [hopeless, other], order=order), 1)
    assert got.start_high < 12.0


@pytest.mark.parametrize(("turns", "start"), [((0,), 1002.5), ((19,), 1000.5)])
def test_the_next_late_turn_is_counted_from_the_last_one(
    turns: tuple[int, ...], start: float
) -> None:
    exact: Any = Exact([])
    hopeful = Work("mixed", 999.5, 1.0, 9000.0, name="1.0")
    waiting = [hopeful._replace(deadline=901.0), hopeful, hopeful]
    snapshot = Snapshot(
        *(1000.0, 1, waiting),
        running=[Running(hopeful, 999.5)],
        order=EarliestDeadlineFirst,
        turns=turns,
    )
    play = QueueSimulation(snapshot, exact, exact, random.Random(1))
    assert play.start_of(0, 100) == start


def test_demoted_tasks_of_all_queues_may_hold_three_of_four_slots() -> None:
    workers = Workers([WorkerGroup(4, (0, 1))], EarliestDeadlineFirst)
    for number in range(4):
        workers.push(Waiting(0.0, 1.0, 1.0, number), number % 2)
    assert len(workers.take(100.0)) == 3
    assert workers.take(100.0) == []
    workers.ended(1)
    assert len(workers.take(100.0)) == 1


def test_a_worker_that_prefetches_nothing_has_no_room_by_a_rounded_sum() -> None:
    worker = Worker(0, WorkerGroup(3), 0, 0, OrderedDict())
    for number, weight in enumerate((1.0, 1.0, 2.6)):  # such as those whose eta has come
        worker.hold(Waiting(0.0, 1.0, 2.0, number, weight=weight))
    assert [worker.start().number for _ in range(3)] == [0, 1, 2]
    assert not worker.has_room()


def test_a_worker_prefetches_again_once_a_prefetched_task_has_started() -> None:
    worker = Worker(0, WorkerGroup(1, prefetch=2.0), 0, 0, OrderedDict())
    worker.hold(Waiting(0.0, 1.0, 2.0, 6))
    worker.start()
    worker.hold(Waiting(0.0, 1.0, 2.0, 7, weight=2.0))
    assert not worker.has_room()
    worker.running = 0
    assert worker.start().number == 7
    assert worker.has_room()


@pytest.mark.parametrize(
    ("deadline", "queue", "start"),
    [(901.0, 0, 1005.0), (9000.0, 0, 1000.0), (901.0, 1, 1000.0)],
)
def test_a_demoted_task_may_have_to_wait_for_the_end_of_one_on_its_worker(
    deadline: float, queue: int, start: float
) -> None:
    exact: Any = Exact([])
    order = partial(EarliestDeadlineFirst, Rule(hopeless_slots=0.5))
    late = Work("mixed", 999.9, 1.0, 901.0, name="6.0")
    runs = late._replace(deadline=deadline, queue=queue)
    snapshot = Snapshot(
        *(1000.0, 2, [late]),
        running=[Running(runs, 999.0, group=queue)],
        groups=[WorkerGroup(2, (0,)), WorkerGroup(2, (1,))],
        order=order,
    )
    play = QueueSimulation(snapshot, exact, exact, random.Random(1))
    assert play.start_of(0, 100) == start


def test_an_unknown_run_ends_within_its_runtime() -> None:
    exact: Any = Exact([])
    snapshot = Snapshot(1000.0, 1, [Work("mixed", 900.0, 1.0, 9000.0, name="0.5")])
    for seed in range(50):
        play = QueueSimulation(snapshot, exact, exact, random.Random(seed))
        assert 1000.0 < play.start_of(0, 100) <= 1000.5


@pytest.mark.parametrize(
    ("order", "arrival", "queue", "like"),
    [
        (EarliestDeadlineFirst, 995, 0, 1),
        (EarliestDeadlineFirst, 900, 0, 80),
        (EarliestDeadlineFirst, 995, 1, 80),
        (FirstComeFirstServed, 995, 0, 80),
    ],
)
def test_an_unknown_run_is_like_the_latest_arrivals_in_deadline_order(
    order: Any, arrival: float, queue: int, like: float
) -> None:
    """There what still waits is longer than what has been taken; else it is like it, and the
    latest arrivals come after it.
    """
    exact: Any = Exact([])
    long = Work("mixed", 990.0, 80.0, 9000.0, name="80.0")
    short = Work("mixed", arrival, 1.0, arrival + 2, name="1.0", queue=queue)
    snapshot = Snapshot(1000.0, 1, [long], recent_arrivals=[short], order=order)
    play = QueueSimulation(snapshot, exact, exact, random.Random(1))
    assert like - 1 < play.start_of(0, 100) - 1000.0 <= like


def test_the_latest_arrivals_are_looked_for_once_not_in_each_simulation() -> None:
    class Counted(list[Work]):
        looks = 0

        def __iter__(self) -> Iterator[Work]:
            self.looks += 1
            return super().__iter__()

    task = Work("mixed", 1000.0, 1.0, 1010.0)
    for waiting in ((), (task._replace(arrival=990.0),)):
        arrivals = Counted([task._replace(arrival=990.0 + n / 10) for n in range(100)])
        snapshot = Snapshot(
            *(1000.0, 4, waiting),
            recent_arrivals=arrivals,
            span_s=10.0,
            order=EarliestDeadlineFirst,
        )
        assert forecast.of_new(snapshot, task).start >= 1000.0
        assert arrivals.looks < forecast.MIN_RUNS


def test_a_prediction_in_a_long_queue_makes_fewer_simulations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played: list[QueueSimulation] = []

    class Counted(QueueSimulation):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            played.append(self)

    monkeypatch.setattr(forecast, "QueueSimulation", Counted)
    monkeypatch.setattr(forecast, "MAX_EVENTS", 12_000)  # it takes a fifth of the time
    each = Work("mixed", 0.0, 1.0, 1e9)
    forecast.of_waiting(Snapshot(0.0, 1, [each] * 3), 2)
    assert len(played) == forecast.MAX_RUNS
    played.clear()
    forecast.of_waiting(Snapshot(0.0, 1, [each] * 200), 199)
    assert forecast.MIN_RUNS <= len(played) < forecast.MAX_RUNS
    assert sum(play.events for play in played[:-1]) < forecast.MAX_EVENTS


def test_more_runs_than_slots_delay_nobody() -> None:
    exact: Any = Exact([])
    runs = [Work("mixed", 900.0, 1.0, 9000.0, name=name) for name in ("5.0", "6.0", "7.0")]
    snapshot = Snapshot(1000.0, 1, runs[:1], running=[Running(each, 999.0) for each in runs])
    play = QueueSimulation(snapshot, exact, exact, random.Random(1))
    assert play.start_of(0, 100) == 1004.0


@pytest.mark.parametrize("tau", [-1.0, 0.0, 5e-324, 1e308])
def test_a_tau_that_makes_no_sense_yields_a_prediction(tau: float) -> None:
    """Anybody may publish or record one: here runs took no time, and others as long as tau."""
    followed = [(Work("mixed", 0.0, float(n), 9.0, name="a"), float(n)) for n in range(1, 40)]
    foreign = [(Work("mixed", 0.0, tau, 9.0, name="a"), 0.0)] * 5
    waiting = [Work("mixed", 0.0, each, 9.0, name="a") for each in (1.0, tau, 1.0)]
    snapshot = Snapshot(0.0, 1, waiting, ended=followed + foreign)
    got = forecast.of_waiting(snapshot, 2)
    assert 0 <= got.start <= got.finish < math.inf


def test_known_arrivals_are_not_drawn_again() -> None:
    waiting = [Work("mixed", 1000.0 - n, 1.0, 1200.0) for n in range(10)]
    recent_arrivals = [Work("mixed", 900.0 + 0.5 * n, 1.0, 950.0 + 0.5 * n) for n in range(200)]
    snapshot = Snapshot(
        *(1000.0, 1, waiting),
        recent_arrivals=recent_arrivals,
        span_s=100.0,
        order=EarliestDeadlineFirst,
    )
    new = Work("mixed", 1000.0, 1.0, 1300.0)
    with_more = forecast.of_new(snapshot, new)
    without = forecast.of_new(replace(snapshot, known_until=2000.0), new)
    assert without.start == pytest.approx(1010.0, abs=2.0)
    assert with_more.start > 1050.0


def of_same_length(*queues: int) -> list[Work]:
    """Return waiting tasks with a tau of 1 s, in the queues with these numbers."""
    return [Work("mixed", 990.0, 1.0, 9000.0, queue=number) for number in queues]


#: Recent runs, which all took 1 s.
EACH_1_S = [(Work("mixed", 0.0, 1.0, 2.0), 1.0)] * 40


@pytest.mark.parametrize(
    ("waiting", "groups", "in_turn", "seconds"),
    [
        # One of each in turn, until the other queue is empty.
        ([0] * 6 + [1] * 20, [WorkerGroup(1, (0, 1))], True, 10.5),
        ([0] * 6 + [1] * 2, [WorkerGroup(1, (0, 1))], True, 7.0),
        # The first one that holds something.
        ([0] * 6 + [1] * 20, [WorkerGroup(1, (0, 1))], False, 5.0),
        ([0] * 6 + [1] * 20, [WorkerGroup(1, (1, 0))], False, 25.0),
        # Others serve the other queue, or help with it.
        ([0] * 6 + [1] * 20, [WorkerGroup(1, (0,)), WorkerGroup(1, (1,))], True, 5.0),
        ([0] * 20 + [1] * 20, [WorkerGroup(1, (0, 1)), WorkerGroup(3, (1,))], True, 21.5),
    ],
)
def test_queues_that_share_workers_delay_each_other(
    waiting: list[int], groups: list[WorkerGroup], in_turn: bool, seconds: float
) -> None:
    works = of_same_length(*waiting)
    snapshot = Snapshot(1000.0, 1, works, ended=EACH_1_S, groups=groups, in_turn=in_turn)
    own = waiting.count(0)
    got = forecast.of_waiting(snapshot, own - 1)
    # Plus the rest of an unknown run, up to a second.
    assert got.start - 1000.0 == pytest.approx(seconds + 0.5, abs=1.1, rel=0.1)


def test_no_worker_idles_while_tasks_that_came_together_wait_in_its_queue() -> None:
    just = [work._replace(arrival=999.9) for work in of_same_length(0, 0, 1)]
    groups = [WorkerGroup(1, (0, 1)), WorkerGroup(1, (1,))]
    snapshot = Snapshot(1000.0, 1, just, ended=EACH_1_S, groups=groups)
    got = forecast.of_waiting(snapshot, 1)
    assert got.start_high - 1000.0 == pytest.approx(1.0, abs=0.3)


def test_a_held_task_of_another_queue_delays_only_the_workers_of_that_queue() -> None:
    groups = [WorkerGroup(1, (0,)), WorkerGroup(1, (1,))]
    held = of_same_length(*[1] * 10, *[0] * 3)
    snapshot = Snapshot(1000.0, 1, of_same_length(0), held, ended=EACH_1_S, groups=groups)
    got = forecast.of_waiting(snapshot, 0)
    assert got.start - 1000.0 == pytest.approx(3.5, abs=1.0)


def test_a_prefetched_task_waits_for_the_slots_of_its_worker() -> None:
    groups = [WorkerGroup(1, prefetch=4), WorkerGroup(1, prefetch=2)]
    held, by = of_same_length(*[0] * 5), [0, 0, 0, 0, 1]
    running = [Running(held[0], 999.5, group) for group in (0, 1)]
    snapshot = Snapshot(
        *(1000.0, 2, of_same_length(*[0] * 3), held, by, running),
        ended=EACH_1_S,
        groups=groups,
    )

    def start(found: Prediction) -> float:
        return found.start - 1000.0

    assert start(forecast.of_held(snapshot, 3)) == pytest.approx(3.5, abs=0.4)
    assert start(forecast.of_held(snapshot, 4)) == pytest.approx(0.5, abs=0.2)
    # Only the other worker has room for one more, and takes it at once.
    first = forecast.of_waiting(snapshot, 0)
    assert start(first) == pytest.approx(1.5, abs=0.3)
    assert first.start_high < 1002.0
    # Of later tasks each takes one whenever it starts one.
    last = forecast.of_waiting(snapshot, 2)
    assert 1002.2 < last.start_low < last.start_high < 1005.5


def test_a_worker_with_unlimited_prefetch_takes_everything() -> None:
    groups = [WorkerGroup(1, prefetch=math.inf), WorkerGroup(1)]
    waiting = of_same_length(*[0] * 40)
    snapshot = Snapshot(1000.0, 2, waiting, ended=EACH_1_S, groups=groups)
    got = forecast.of_waiting(snapshot, 39)
    assert got.start - 1000.0 == pytest.approx(39.0, abs=4.0)


def test_weighted_tasks_are_prefetched_up_to_the_limit() -> None:
    each = Work("mixed", 990.0, 1.0, 9000.0, weight=10.0)
    groups = [WorkerGroup(2, prefetch=8)] * 5
    snapshot = Snapshot(1000.0, 10, [each] * 100, ended=EACH_1_S, groups=groups)
    got = forecast.of_new(snapshot, each._replace(weight=1.0))
    assert got.start - 1000.0 == pytest.approx(100.0, rel=0.1)


def test_arrivals_before_the_eta_of_a_task_run_first() -> None:
    own = [Work("mixed", 900.0 + i, 1.0, 9000.0) for i in range(100)]
    later = Work("mixed", 990.0, 1.0, 9000.0, ready=1010.0)
    snapshot = Snapshot(1000.0, 1, held=[later], ended=EACH_1_S)
    assert forecast.of_held(snapshot, 0).start_high == 1010.0
    snapshot = replace(snapshot, recent_arrivals=own, span_s=100.0)
    assert forecast.of_held(snapshot, 0).start_high > 1010.5
    # If simulating everything until then is too much, it is at least the eta.
    far = replace(snapshot, held=[later._replace(ready=1e6)], span_s=1e-3 * 100)
    for order in (FirstComeFirstServed, EarliestDeadlineFirst):
        assert forecast.of_held(replace(far, order=order), 0).start_low >= 1e6


def test_too_many_arrivals_to_simulate_each_before_an_eta_still_run_first() -> None:
    """One a second for an hour, and an eta in an hour."""
    own = [Work("mixed", 6400.0 + i, 0.9, 9e9) for i in range(3600)]
    later = Work("mixed", 9990.0, 1.0, 9e9, ready=13_600.0)
    snapshot = Snapshot(10_000.0, 1, held=[later], recent_arrivals=own, span_s=3600.0)
    assert forecast.of_held(snapshot, 0).start_high > 13_601.0


def test_held_tasks_are_ahead_that_were_taken_before_and_have_no_later_eta() -> None:
    now = Work("mixed", 990.0, 1.0, 9000.0)
    held = [now, now, *(now._replace(ready=eta) for eta in (1010.0, 1020.0)), now]
    snapshot = Snapshot(1000.0, 1, held=held, ended=EACH_1_S)
    assert [forecast.of_held(snapshot, n).ahead for n in range(5)] == [0, 1, 2, 3, 2]


def test_arrivals_go_to_the_worker_that_has_waited_longest() -> None:
    recent_arrivals = [Work("mixed", 900.0 + i, 1.0, 9000.0) for i in range(100)]
    later = Work("mixed", 990.0, 1.0, 9000.0, ready=1060.0)
    # Each worker alone could run all arrivals: all of them have free slots.
    groups = [WorkerGroup(2, prefetch=8)] * 4
    snapshot = Snapshot(
        *(1000.0, 8, (), [later], [0]),
        ended=EACH_1_S,
        recent_arrivals=recent_arrivals,
        span_s=100.0,
        groups=groups,
    )
    found = forecast.of_held(snapshot, 0)
    assert found.start == found.start_high == 1060.0


def test_seconds_of_which_arrivals_may_be_unseen_are_no_silence() -> None:
    def predicted(unseen_s: float) -> Prediction:
        seen = (990.0 + n / 8 - unseen_s for n in range(80))
        recent_arrivals = [Work("mixed", at, 1.0, at + 5.0) for at in seen]
        snapshot = Snapshot(
            *(1000.0, 8, [Work("mixed", 999.0, 1.0, 1010.0)] * 24),
            ended=EACH_1_S,
            recent_arrivals=recent_arrivals,
            span_s=10.0,
            unseen_s=unseen_s,
            order=EarliestDeadlineFirst,
        )
        return forecast.of_new(snapshot, Work("mixed", 1000.0, 1.0, 1020.0))

    assert predicted(1.5).start_high > 1004.0, "others overtake it"
    assert predicted(1.5) == predicted(0.0)


def test_a_slightly_old_reading_gives_the_same_prediction() -> None:
    waiting = of_same_length(*[0] * 200)
    recent_arrivals = [Work("mixed", 990.0 + i / 10, 1.0, 9000.0) for i in range(100)]
    snapshot = Snapshot(
        1000.0, 4, waiting, ended=EACH_1_S, recent_arrivals=recent_arrivals, span_s=10.0
    )
    new = Work("mixed", 1000.0, 1.0, 9000.0)
    fresh = forecast.of_new(snapshot, new)
    later = forecast.of_new(snapshot, new._replace(ready=1000.5))
    assert (later.start_low, later.start_high) == (fresh.start_low, fresh.start_high)


def test_a_held_task_of_unknown_worker_may_be_with_any_that_has_room() -> None:
    groups = [WorkerGroup(1, prefetch=4), WorkerGroup(1, prefetch=4)]
    work = of_same_length(0)[0]
    just = work._replace(arrival=999.9)
    running = [Running(work, 999.5, 0)]

    def new_with(*held: tuple[Work, int | None]) -> Prediction:
        works, by = [w for w, _ in held], [group for _, group in held]
        snapshot = Snapshot(*(1000.0, 2, (), works, by, running), ended=EACH_1_S, groups=groups)
        return forecast.of_new(snapshot, just)

    line = [(work, 0)] * 3
    # The first one has prefetched tasks: it matters which one polls first.
    found = new_with(*line)
    assert found.start_low == 1000.0
    assert found.start_high > 1003.0
    found = new_with(*line, (just, None))
    assert found.start_low == 1000.0
    assert found.start_high > 1003.0
    # A task that should have started by now is not with an idle worker.
    found = new_with((work, None))
    assert found.start_low == 1000.0
    # A task of a queue without workers delays nobody.
    assert new_with((work._replace(queue=7), None)).start_low == 1000.0


def test_a_held_task_of_unknown_worker_is_where_it_can_be() -> None:
    work = of_same_length(0)[0]
    groups = [WorkerGroup(1, prefetch=1)] * 2
    running = [Running(work, 999.5, 0)]
    # It has waited, so it is not with the idle worker, to which the next one goes.
    idle = Snapshot(1000.0, 2, (), [work], [None], running, ended=EACH_1_S, groups=groups)
    assert forecast.of_new(idle, work).start_high == 1000.0
    # The first one holds all that it may.
    running = [*running, Running(work, 999.5, 1)]
    full = replace(idle, held=[work] * 2, held_by=[0, None], running=running)
    assert forecast.of_held(full, 1).start_high < 1001.0
    # The slot that it waits for is not free.
    assert forecast.of_held(replace(idle, held_by=[0], running=[]), 0).start_low > 1000.0


def test_held_tasks_of_unknown_workers_are_each_where_a_slot_is_free() -> None:
    just = of_same_length(0)[0]._replace(arrival=999.9)
    groups = [WorkerGroup(1), WorkerGroup(1)]
    idle = Snapshot(1000.0, 2, (), [just] * 2, groups=groups, ended=EACH_1_S)
    assert forecast.of_new(idle, just).start_low > 1000.5


def test_hopeless_tasks_wait_for_hopeful_ones_of_other_queues() -> None:
    hopeless = Work("mixed", 900.0, 1.0, 901.0)
    waiting = [hopeless, *of_same_length(*[1] * 20)]
    snapshot = Snapshot(
        *(1000.0, 1, waiting),
        ended=EACH_1_S,
        groups=[WorkerGroup(1, (0, 1))],
        order=partial(EarliestDeadlineFirst, Rule(late_share=0.0)),
    )
    got = forecast.of_waiting(snapshot, 0)
    assert got.start - 1000.0 == pytest.approx(20.5, abs=2.0)
    assert got.ahead == 20


def test_all_demoted_tasks_are_ahead_of_the_last_one() -> None:
    late = [Work("mixed", 900.0 + n, 1.0, 901.0 + n) for n in range(40)]
    snapshot = Snapshot(1000.0, 4, late, order=EarliestDeadlineFirst)
    got = forecast.of_waiting(snapshot, 39)
    assert got.ahead == 39


def test_a_slot_that_demoted_tasks_may_not_hold_is_free() -> None:
    late = Work("mixed", 900.0, 10.0, 901.0)
    new = Work("mixed", 1000.0, 10.0, 1030.0)
    # One of the three slots that demoted tasks may hold has a run that is not known yet.
    running = [Running(late, 999.0)] * 2
    snapshot = Snapshot(*(1000.0, 4, [late] * 20), running=running, order=EarliestDeadlineFirst)
    got = forecast.of_new(snapshot, new)
    assert got.start == got.start_high == 1000.0
    # One that came just before takes the last one.
    before = new._replace(arrival=999.9, deadline=1029.9)
    taken = replace(snapshot, waiting=[*snapshot.waiting, before])
    assert forecast.of_new(taken, new).start > 1000.0
    # A hopeful task would not still wait if a slot were free.
    snapshot = replace(snapshot, waiting=[late._replace(deadline=1090.0)])
    assert forecast.of_new(snapshot, new).start > 1000.0


def test_a_task_without_a_deadline_is_never_demoted() -> None:
    alien = Work("mixed", 900.0, 1.0, 920.0, due=False)
    waiting = [*of_same_length(*[0] * 10), alien]
    snapshot = Snapshot(
        *(1000.0, 1, waiting),
        ended=EACH_1_S,
        running=[Running(alien, 999.9)],
        order=EarliestDeadlineFirst,
    )
    got = forecast.of_waiting(snapshot, 10)
    assert got.ahead == 0
    assert got.start - 1000.0 == pytest.approx(0.9, abs=0.3)


@pytest.mark.parametrize(
    ("hopeless", "since"), [("demote", 995.0), ("keep", 900.0), ("drop", 900.0)]
)
def test_demoted_tasks_do_not_show_that_all_slots_are_busy(hopeless: str, since: float) -> None:
    late, hopeful = Work("mixed", 900.0, 1.0, 910.0), Work("mixed", 995.0, 1.0, 1e9)
    order = order_of("edf", Settings(hopeless=hopeless))
    assert busy_since([late, hopeful], 1000.0, order) == since
    assert busy_since([late._replace(due=False)], 1000.0, order) == 900.0
    assert busy_since([], 1000.0, order) == 1000.0


def test_a_slow_reading_does_not_serve_longer_once_the_queue_has_doubled() -> None:
    picture: Any = SimpleNamespace(snapshot=Snapshot(0.0, 1))
    published = [Work("mixed", 0.0, 1.0, 2.0)]
    reading = Reading(0.0, picture, read_s=0.5, cost_s=0.5, published=published)
    assert reading.fresh_s() == MAX_FRESH_S


def test_arrivals_in_other_queues_count_in_order_of_arrival() -> None:
    own = of_same_length(*[0] * 30)
    recent_arrivals = [Work("mixed", 900.0 + i, 1.0, 9000.0, queue=1) for i in range(100)]
    snapshot = Snapshot(1000.0, 2, own, ended=EACH_1_S, groups=[WorkerGroup(2, (0, 1))])
    alone = forecast.of_waiting(snapshot, 29)
    snapshot = replace(snapshot, recent_arrivals=recent_arrivals, span_s=100.0)
    beside = forecast.of_waiting(snapshot, 29)
    assert alone.start - 1000.0 == pytest.approx(15.0, abs=1.5)
    assert beside.start - 1000.0 > 20.0


def after_a_burst(
    order: OrderMaker, seed: int, before: int, burst: int, spread_s: float = 0.0
) -> tuple[Snapshot, list[Outcome]]:
    """Return what can be known one second after *burst* tasks came within *spread_s* to idle
    workers, and what waits.
    """
    jobs = at_load(six_types(before + burst, seed=seed), 8, 0.5)
    earlier = simulate(jobs[:before], 8, FirstComeFirstServed(), Settings())
    burst_at = max(o.finished_at for o in earlier) + 20
    jobs[before:] = [
        job._replace(arrival_s=burst_at + spread_s * number / burst)
        for number, job in enumerate(jobs[before:])
    ]
    outcomes = simulate(jobs, 8, order(), Settings())
    now = burst_at + spread_s + 1.0
    ended = sorted((o for o in outcomes if o.finished_at <= now), key=lambda o: o.finished_at)
    began = ended[0].finished_at
    waiting = [o for o in outcomes if o.started_at > now]
    runs = [o for o in outcomes if o.started_at <= now < o.finished_at]
    snapshot = Snapshot(
        *(now, 8, [work(o) for o in waiting]),
        running=[Running(work(o), o.started_at) for o in runs],
        ended=[(work(o), o.job.runtime_s) for o in ended],
        recent_arrivals=[work(o) for o in outcomes if o.job.arrival_s > began],
        span_s=now - began,
        order=order,
    )
    return snapshot, waiting


def compared(got: Prediction, outcome: Outcome) -> tuple[float, bool]:
    """Return by what part of its wait a start differs, and whether the interval holds it."""
    error = abs(got.start - outcome.started_at) / outcome.queueing_delay_s
    return error, got.start_low <= outcome.started_at <= got.start_high


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("order", [FirstComeFirstServed, EarliestDeadlineFirst])
def test_predictions_hold_after_a_burst(order: OrderMaker) -> None:
    found = []
    for seed in range(1, 5):  # what waits for the same work is off by the same
        snapshot, waiting = after_a_burst(order, seed, 200, 200)
        for position in range(0, len(waiting), 24):
            got = forecast.of_waiting(snapshot, position)
            found.append(compared(got, waiting[position]))
    errors, inside = zip(*found, strict=True)
    assert statistics.median(errors) <= 0.1
    assert statistics.mean(inside) >= 0.8


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("order", [FirstComeFirstServed, EarliestDeadlineFirst])
def test_a_sample_of_a_long_queue_is_representative(order: OrderMaker) -> None:
    whole, waiting = after_a_burst(order, 1, 400, 3000, spread_s=3.0)
    ordered = order is EarliestDeadlineFirst
    if ordered:
        waiting.sort(key=lambda o: o.deadline)
    found = []
    for number in range(10):
        rank = (2 * number + 1) * len(waiting) // 20
        pages = sampled([len(waiting)], 0, rank, SAMPLE, ordered=ordered)
        read = [(n, page.weight) for page in pages for n in page.ranks]
        position = [n for n, _ in read].index(rank)
        works = [work(waiting[n])._replace(weight=weight) for n, weight in read]
        assert len(works) <= SAMPLE + 2
        represented = len(waiting) if ordered else rank + 1
        assert sum(w.weight for w in works) == pytest.approx(represented)
        snapshot = replace(whole, waiting=works, recent_arrivals=(), span_s=0.0)
        found.append(compared(forecast.of_waiting(snapshot, position), waiting[rank]))
    errors, inside = zip(*found, strict=True)
    assert statistics.median(errors) <= 0.1
    assert sorted(errors)[7] <= 0.15  # also of those that just do not turn hopeless
    assert statistics.mean(inside) >= 0.7


def test_the_typical_instant_is_near_a_mode() -> None:
    soon, late = [11.0, 10.0, 12.0] * 20, [200.0, 300.0, 500.0, 900.0] * 10
    assert 10 <= forecast.typical(soon + late, 0.0) <= 12
    # Also where most do not agree with anything.
    scattered = [20.0 * 1.1**n for n in range(100)]
    assert 10 <= forecast.typical(soon + scattered, 0.0) <= 14
    assert forecast.typical([5.0] * 9, 5.0) == 5.0
    assert forecast.typical([0.0] * 6 + [9.0] * 5, 0.0) == 0.0
    assert forecast.typical([math.inf] * 6 + [9.0] * 5, 0.0) == math.inf


@pytest.mark.parametrize("n", [19, 40, 59, 120])
def test_an_interval_holds_what_follows_as_often_as_it_says(n: int) -> None:
    values = range(1, n + 1)
    low, high = (forecast.quantile(values, q) for q in (forecast.LOW, forecast.HIGH))
    # The rank of one more value among them is uniform.
    assert 0.9 <= (high - low) / (n + 1) < 0.95
    assert (
        forecast.quantile([7.0], forecast.LOW) == forecast.quantile([7.0], forecast.HIGH) == 7
    )
