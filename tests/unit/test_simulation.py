"""The simulator against closed forms, and its orders against their rule."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.deadlines import HOPE
from rts.rule import Rule
from rts.scheduling.encoding import place_of
from rts.settings import Settings
from rts.simulation.orders import (
    EarliestDeadlineFirst,
    FirstComeFirstServed,
    Order,
    Waiting,
    order_of,
)
from rts.simulation.queues import WorkerGroup
from rts.simulation.simulator import Conditions, Outcome, share_met, simulate
from rts.simulation.traces import (
    Again,
    Job,
    Origin,
    at_load,
    enough_slots,
    offered_load,
    read_trace,
    six_types,
    with_types,
    write_trace,
)
from rts.simulation.workers import Workers
from rts.tasktypes import TaskType
from rts.testing.replay import sped_up

ORDERS: list[Callable[[], Order]] = [
    FirstComeFirstServed,
    lambda: order_of("sjf", Settings()),
    lambda: EarliestDeadlineFirst(Rule(hopeless="keep")),
    EarliestDeadlineFirst,
]


def mean_delay(jobs: list[Job], slots: int) -> float:
    outcomes = simulate(jobs, slots, FirstComeFirstServed(), Settings())
    warm = outcomes[len(outcomes) // 10 :]
    return sum(o.queueing_delay_s for o in warm) / len(warm)


def poisson(n: int, rate: float, service: Callable[[random.Random], float]) -> list[Job]:
    rng = random.Random(11)
    at, jobs = 0.0, []
    for _ in range(n):
        at += rng.expovariate(rate)
        jobs.append(Job(at, "x", service(rng)))
    return jobs


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("slots", "rho"), [(1, 0.5), (1, 0.8), (4, 0.7), (16, 0.9)])
def test_the_mean_delay_of_m_m_c(slots: int, rho: float) -> None:
    """Erlang's C formula: W = C(c, a) / (c − a) · E[S], a = λ·E[S]."""
    a = slots * rho
    jobs = poisson(100_000, a, lambda rng: rng.expovariate(1.0))
    busy = a**slots / math.factorial(slots) / (1 - rho)
    waits = busy / (sum(a**k / math.factorial(k) for k in range(slots)) + busy)
    assert mean_delay(jobs, slots) == pytest.approx(waits / (slots - a), rel=0.08)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_the_mean_delay_of_m_d_1(rho: float) -> None:
    """Pollaczek and Khinchine: W = ρ / (2·(1 − ρ)) · E[S] for a constant S."""
    jobs = poisson(100_000, rho, lambda _: 1.0)
    assert mean_delay(jobs, 1) == pytest.approx(rho / (2 * (1 - rho)), rel=0.05)


JOBS = st.lists(
    st.tuples(st.floats(0, 100), st.sampled_from(["a", "b", "c"]), st.floats(0.001, 50)),
    max_size=60,
)


def check(jobs: list[Job], outcomes: list[Outcome], slots: int) -> None:
    """Check what holds for every order that never leaves a slot idle for nothing."""
    assert [o.job for o in outcomes] == jobs
    for o in outcomes:
        assert o.started_at >= o.job.arrival_s
        assert o.finished_at == o.started_at + o.job.runtime_s
    for o in outcomes:
        held = sum(p.started_at <= o.started_at < p.finished_at for p in outcomes)
        assert held <= slots


@given(JOBS, st.integers(1, 4), st.sampled_from(ORDERS))
def test_every_job_runs_once_within_the_slots(
    rows: list[tuple[float, str, float]], slots: int, order: Callable[[], Order]
) -> None:
    jobs = sorted(Job(*row) for row in rows)
    jobs.sort(key=lambda job: job.arrival_s)
    check(jobs, simulate(jobs, slots, order(), Settings()), slots)


def waiting(number: int, tau: float, deadline: float, arrival: float = 0.0) -> Waiting:
    return Waiting(arrival, tau, deadline, number)


def popped(order: Order, now: float) -> list[int]:
    found = []
    while (task := order.pop(now, may=True)) is not None:
        found.append(task.number)
    return found


def test_hopeless_tasks_wait_behind_hopeful_ones_in_order_of_arrival() -> None:
    order = EarliestDeadlineFirst(Rule(late_share=0))
    order.push(waiting(0, tau=10, deadline=12, arrival=1))  # hopeless from 3 on
    order.push(waiting(1, tau=10, deadline=11, arrival=2))  # hopeless from 2 on
    order.push(waiting(2, tau=1, deadline=20))
    order.push(waiting(3, tau=1, deadline=15))
    assert popped(order, now=5.0) == [3, 2, 0, 1]


@pytest.mark.parametrize("early", [True, False])
def test_the_instant_at_which_a_task_turns_hopeless(early: bool) -> None:
    order = EarliestDeadlineFirst(Rule(late_share=0))
    order.push(waiting(0, tau=10, deadline=20))
    order.push(waiting(1, tau=1, deadline=30))
    last = 20 - HOPE * 10
    assert popped(order, last if early else last + 0.01) == ([0, 1] if early else [1, 0])


def test_a_task_without_a_deadline_of_its_own_is_never_hopeless() -> None:
    order = EarliestDeadlineFirst(Rule(late_share=0))
    order.push(Waiting(0.0, 1.0, 1e3, 0))
    order.push(Waiting(0.0, 1.0, 20.0, 1, due=False))
    first = order.pop(100.0, may=True)
    assert first.number == 1


def test_without_a_deadline_of_its_own_a_task_goes_by_its_horizon_whatever_its_tau() -> None:
    order = order_of("edf", Settings(order="deadline+work"))
    tau, horizon_s = 10.0, 20.0
    place = place_of({"rts_arrival": 100.0}, horizon_s, work=2.0)
    order.push(Waiting(100.0, tau, 100.0 + horizon_s, 0, due=False))
    order.push(waiting(1, tau=tau, deadline=place.score + 1 - 2 * tau, arrival=50.0))
    assert popped(order, now=50.0) == [0, 1]


def taken(workers: Workers, now: float = 100.0) -> list[int]:
    return [task.number for task in workers.take(now)]


def test_demoted_tasks_hold_at_most_their_share_of_the_slots() -> None:
    order = partial(EarliestDeadlineFirst, Rule(late_share=0))
    workers = Workers([WorkerGroup(4)], order)
    for n in range(5):
        workers.push(waiting(n, tau=10, deadline=1), 0)
    assert taken(workers) == [0, 1, 2]
    workers.ended(1)
    assert taken(workers) == [3]
    workers.push(waiting(9, tau=1, deadline=200), 0)
    assert taken(workers) == [9], "hopeful work has all of them"
    single = Workers([WorkerGroup(1)], order)
    single.push(waiting(4, tau=10, deadline=1), 0)
    assert taken(single) == [4], "at least one"


def test_a_turn_of_the_demoted_is_kept_until_they_may_hold_a_slot() -> None:
    order = partial(EarliestDeadlineFirst, Rule(late_share=0.5, hopeless_slots=0.25))
    workers = Workers([WorkerGroup(4)], order)
    for number, deadline in enumerate((1.0, 2.0, 1e3, 1e4, 1e5, 1e6)):
        workers.push(Waiting(0.0, 1.0, deadline, number), 0)
    assert taken(workers) == [2, 0, 3, 4]
    for number in (0, 2):
        workers.ended(number)
    assert taken(workers) == [5, 1]


def test_every_twentieth_claim_serves_a_demoted_task() -> None:
    order = EarliestDeadlineFirst()
    for n in range(100):
        order.push(waiting(n, tau=1, deadline=1e6 + n))
    for _ in range(10):
        order.pop(0.0, may=True)  # none waits, so these do not count
    order.push(waiting(1000, tau=10, deadline=1))
    assert popped(order, now=100.0).index(1000) == 19


@pytest.mark.parametrize(
    ("slots", "rho", "fifo_at_most", "edf_at_least"),
    [(16, 0.9, 0.90, 0.93), (16, 1.2, 0.15, 0.78), (16, 1.5, 0.06, 0.72)],
)
def test_deadlines_met_under_overload(
    slots: int, rho: float, fifo_at_most: float, edf_at_least: float
) -> None:
    jobs = at_load(six_types(2000, seed=3), slots, rho)
    fifo = share_met(simulate(jobs, slots, FirstComeFirstServed(), Settings()))
    edf = share_met(simulate(jobs, slots, EarliestDeadlineFirst(), Settings()))
    assert fifo <= fifo_at_most
    assert edf >= edf_at_least


def test_taus_are_learned_from_finished_runs() -> None:
    jobs = [Job(1.0 * n, "x", 1.0) for n in range(8)]  # each just as the one before ends
    outcomes = simulate(jobs, 1, FirstComeFirstServed(), Settings())
    expected = [1 + 9 * 0.8**n for n in range(8)]
    assert [o.tau for o in outcomes] == pytest.approx(expected)
    assert outcomes[0].deadline == 20.0
    strange = [job._replace(task_type="of-somebody") for job in jobs]
    again = simulate(strange, 1, FirstComeFirstServed(), Settings())
    assert [o.tau for o in again] == pytest.approx(expected)
    retried = Job(0.0, "x", 3.0, later=(Again(0.0, 5.0), Again(0.0, 7.0)))
    _, then = simulate([retried, Job(50.0, "x", 1.0)], 1, FirstComeFirstServed(), Settings())
    assert then.tau == pytest.approx(10 - 0.2 * 3), "from the last run, which was the success"


def test_the_offered_load_is_as_requested() -> None:
    jobs = at_load(six_types(300, seed=1), 8, 1.3)
    work = sum(job.runtime_s for job in jobs)
    assert jobs[0].arrival_s == 0
    assert work / (8 * jobs[-1].arrival_s) == pytest.approx(1.3)
    assert offered_load(jobs, 4, speed=0.25) == pytest.approx(0.65)
    calmer = at_load(jobs, 16, 0.5)  # from 0.65
    assert offered_load(calmer, 16) == pytest.approx(0.5)
    for wrong in ((jobs[:1], 8, 1.0), (jobs, 0, 1.0), (jobs, 8, 0.0), (jobs, 8, math.nan)):
        with pytest.raises(ValueError, match=r"above 0|at once"):
            at_load(*wrong)
    with pytest.raises(ValueError, match="no load to reach"):
        at_load([job._replace(runtime_s=0.0) for job in jobs], 8, 1.0)


def test_the_fewest_slots_for_a_load_below_one() -> None:
    jobs = [Job(float(n), "x", 3.0) for n in range(5)]  # 15 s of work in 4 s
    assert [enough_slots(jobs, speed) for speed in (0.25, 1.0, 1.1, 2.0)] == [1, 4, 5, 5]
    assert enough_slots(jobs[:1]) == 1
    assert enough_slots([Job(0.0, "x", 3.0), Job(1.0, "x", 1.0), *jobs[4:]]) == 2


def test_synthetic_jobs_take_their_types_first_tau_on_average() -> None:
    types = Settings().task_types
    ratios = [job.runtime_s / types[job.task_type].tau for job in six_types(3000, seed=1)]
    assert sum(ratios) / 3000 == pytest.approx(1.0, abs=0.02)


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    jobs = six_types(50, seed=1)
    write_trace(tmp_path / "trace.csv", jobs)
    assert read_trace(tmp_path / "trace.csv") == jobs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,name\n1,x\n", "no column runtime_s"),
        ("", "no column"),
        ("arrival_s,name,runtime_s\n1,x,2\nsoon,x,2\n", "line 3: arrival_s = 'soon'"),
        ("arrival_s,name,runtime_s\n1,x,nan\n", "line 2: runtime_s = 'nan'"),
        ("arrival_s,name,runtime_s\n1,x,-1\n", "line 2"),
        ("arrival_s,name,runtime_s\n1,x\n", "line 2: runtime_s = None"),
        ("arrival_s,name,runtime_s\n1,,2\n", "line 2: no name"),
        ("arrival_s,name,runtime_s\n1,x,2,mixed\n", "line 2: more values"),
        ('arrival_s,name,runtime_s\n1,"x,2\n', "line 2: "),
        ('arrival_s,name,runtime_s\n1,"x"y,2\n', "line 2: .* expected after"),
        ("arrival_s,name,runtime_s\n", "contains no jobs"),
        ("arrival_s,name,runtime_s,name\n1,x,2,y\n", "more than one column name"),
        ("task_type,arrival_s,name,runtime_s,task_type\n", "more than one column task_type"),
        ("arrival_s,name,runtime_s\n1,x,1e308\n", "line 2: runtime_s = '1e308'"),
        ("arrival_s,name,runtime_s\n1732800000000,x,1\n", "line 2: arrival_s"),  # ms
    ],
)
def test_a_bad_trace_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trace(path)


def test_unusual_but_valid_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    text = (
        '\ufeffname,task_type,runtime_s,arrival_s,more\n"a/b, ""c""",mine,2,7,\n\nö,,1e0,3,z\n'
    )
    path.write_text(text, encoding="utf-8")
    assert read_trace(path) == [Job(3, "ö", 1), Job(7, 'a/b, "c"', 2, "mine")]
    # A column without a name, such as the index that pandas writes.
    path.write_text(",arrival_s,name,runtime_s\n0,0,x,2\n1,0,first,2\n")
    assert read_trace(path) == [Job(0, "x", 2), Job(0, "first", 2)], "as they stand there"
    path.write_bytes(b"arrival_s,name,runtime_s\n1,\xff,2\n")
    with pytest.raises(ValueError, match="not valid UTF-8"):
        read_trace(path)


def test_types_of_a_trace_are_declared_if_valid() -> None:
    kinds = ["mine", "of mine", "", "cpu-light", *(f"t{n}" for n in range(2000))]
    jobs = [Job(n, "x", 1.0, kind) for n, kind in enumerate(kinds)]
    known = with_types(Settings(), jobs)
    assert known.task_types["mine"].tau == 10.0
    assert "of mine" not in known.task_types
    assert known.task_types["cpu-light"].tau == 5.0
    assert len(known.task_types) == Settings().max_types
    own = Settings(task_types={**known.task_types, "mine": TaskType("mine", 10.0, 2.5)})
    (first,) = simulate(jobs[:1], 1, FirstComeFirstServed(), own)
    assert first.deadline == 25.0, "a type's own k"


def test_a_published_job_arrives_when_its_publisher_runs() -> None:
    jobs = [
        Job(0, "before", 5.0),
        Job(1, "first", 10.0, key="c", later=(Again(2.0, 4.0),), tau=9.0, span_s=50.0),
        Job(30, "next", 1.0, tau=9.0, span_s=20.0, origin=Origin("c", 4.0, False)),
        Job(30, "too", 1.0, tau=9.0, span_s=20.0, origin=Origin("c", 2.0, True)),
        Job(30, "alone", 1.0, tau=9.0, span_s=20.0, origin=Origin("unknown", 2.0, True)),
    ]

    def arrivals(slots: int, speed: float = 1.0) -> list[float]:
        found = simulate(
            jobs, slots, FirstComeFirstServed(), Settings(), conditions=Conditions(speed)
        )
        (_, first, *others) = found
        assert [o.deadline for o in others] == [
            others[0].arrival + 20,
            first.deadline,
            others[2].arrival + 20,
        ]
        return [o.arrival for o in others]

    # Its last run begins at 13, or, after the one before, at 17.
    assert arrivals(2) == [17, 15, 30]
    assert arrivals(1) == [21, 19, 30]
    assert arrivals(2, speed=2.0) == [16.5, 14.5, 15]
    drop = EarliestDeadlineFirst(Rule(hopeless="drop"))
    hopeless = [jobs[0], jobs[1]._replace(span_s=6.0), *jobs[2:]]
    found = simulate(hopeless, 1, drop, Settings())
    assert [o.finished_at for o in found] == [5, math.inf, 10, math.inf, 31]


def test_jobs_out_of_order_and_no_slots_are_refused() -> None:
    jobs = [Job(1.0, "x", 1.0), Job(0.0, "x", 1.0)]
    with pytest.raises(ValueError, match="job 1 arrives before"):
        simulate(jobs, 1, FirstComeFirstServed(), Settings())
    with pytest.raises(ValueError, match="at least 1"):
        simulate([], 0, FirstComeFirstServed(), Settings())
    assert share_met(simulate([], 1, FirstComeFirstServed(), Settings())) == 1.0


def test_a_replay_with_real_workers_goes_by_the_settings_that_it_is_given() -> None:
    given = Settings(
        sla_multiplier=1.5,
        task_types={"mine": TaskType("mine", 10.0, 2.5)},
        deadline_policy="quantile",
        quantile=0.9,
        learning_rate=0.5,
        min_slack=2.0,
        tau_scope="type",
        min_samples=3,
        max_types=7,
        hopeless="drop",
        hopeless_slots=0.5,
        late_share=0.1,
        order="deadline+work",
        queue_horizons={"q": 30.0},
    )
    found = Settings.from_conf(sped_up(given, 2.0), environ={})
    assert found.task_types["mine"] == TaskType("mine", 5.0, 2.5)
    assert replace(found, task_types={}, spool_dir="") == replace(
        given, task_types={}, min_slack=1.0, queue_horizons={"q": 15.0}
    )
