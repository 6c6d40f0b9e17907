"""Recorded runs as a workload: chains of runs, slots, overhead; and its simulation."""

from __future__ import annotations

import random
import uuid
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from rts.cli.common import with_progress
from rts.deadlines import share_of_slots
from rts.rule import Rule
from rts.scheduling.slots import Slots
from rts.settings import Settings
from rts.simulation.orders import EarliestDeadlineFirst, FirstComeFirstServed, order_of
from rts.simulation.pools import Pool, most_at_a_time
from rts.simulation.queues import WorkerGroup
from rts.simulation.recording import (
    Recording,
    Run,
    recording,
)
from rts.simulation.simulator import IDEAL, Conditions, Outcome, simulate
from rts.simulation.statistics import percentiles, tally
from rts.simulation.traces import (
    FAILURE,
    KILLED,
    SUCCESS,
    Again,
    Job,
    Origin,
    at_load,
    enough_slots,
    offered_load,
    read_trace,
    six_types,
    write_trace,
)
from rts.simulation.workers import Workers


def a_run(started_at: float, runtime_s: float, **changes: Any) -> Run:
    run = Run(
        name="x",
        task_type="mixed",
        arrival=started_at,
        tau=10.0,
        deadline=started_at + 20,
        started_at=started_at,
        completed_at=started_at + runtime_s,
        runtime_s=runtime_s,
        state="SUCCESS",
        cause=None,
        met=True,
        retries=0,
        place=("w", 1),
        task_id=None,
    )
    return run._replace(**changes)


def recorded(*runs: Run) -> Recording:
    return recording(runs)


def runs_of(outcomes: list[Outcome], slots: int) -> list[Run]:
    """Return outcomes as the ledger would have them, on pool processes."""
    free = [(0.0, pid) for pid in range(slots)]
    runs = []
    for o in sorted(outcomes, key=lambda o: o.started_at):
        at, pid = min(f for f in free if f[0] <= o.started_at)
        free.remove((at, pid))
        free.append((o.finished_at, pid))
        runs.append(
            a_run(
                o.started_at,
                o.job.runtime_s,
                name=o.job.name,
                task_type=o.job.task_type,
                arrival=o.arrival,
                tau=o.tau,
                deadline=o.deadline,
                completed_at=o.finished_at,
                met=o.met,
                place=("w", pid),
            )
        )
    return sorted(runs, key=lambda run: -run.completed_at)


@pytest.mark.parametrize("order", ["fifo", "edf"])
@pytest.mark.parametrize("rho", [0.8, 1.2])
def test_a_replay_reproduces_what_was_recorded(order: str, rho: float) -> None:
    jobs = at_load(six_types(600, seed=2), 4, rho)
    slow = Conditions(overheads=(0.5,))
    before = simulate(jobs, 4, order_of(order, Settings()), Settings(), conditions=slow)
    past = recorded(*runs_of(before, 4))
    assert past.slots == 4
    assert past.overheads == pytest.approx([0.5] * len(past.overheads))
    again = simulate(
        past.jobs,
        past.slots,
        order_of(order, Settings()),
        Settings(),
        conditions=slow,
    )
    assert [o.met for o in again] == [o.met for o in before] == list(past.met)


def test_a_task_is_published_by_the_last_run_of_another() -> None:
    again = {"key": "p", "task_id": "p", "deadline": 40.0}
    runs = [
        a_run(5.0, 1.0, state="RETRY", met=None, **again),
        a_run(10.0, 5.0, retries=1, **again),
        a_run(14.0, 1.0, parent="p", deadline=40.001),
        # By the first run, which retried.
        a_run(14.5, 1.0, parent="p", published_at=6.0),
        a_run(7.0, 1.0, parent="p"),
        a_run(14.0, 1.0, parent="of another window"),
        a_run(20.0, 1.0),
    ]
    found = recorded(*runs[::-1])
    first, sooner, *others = found.jobs
    assert (first.key, first.origin, sooner.origin) == ("p", None, None)
    assert {job.origin for job in others} == {
        Origin("p", 4.0, True),
        Origin("p", 4.5, False),
        None,
    }
    assert {job.notice_s for job in found.jobs} == {0.0, 4.5}


def test_the_runs_of_one_task_are_one_job() -> None:
    retried = [
        a_run(100, 2, arrival=99, state="RETRY", met=None, task_id="t"),
        a_run(112, 3, arrival=99, retries=1, met=False, deadline=119, task_id="t"),
    ]
    lost = [
        a_run(105, 1, state="LOST", cause="lost", met=False, task_id="u"),
        a_run(120, 4, arrival=105, state="FAILURE", met=True, task_id="u"),
    ]
    given_up = a_run(130, 1, state="RETRY", met=None, task_id="v")
    half = [
        a_run(
            150, 1, arrival=20, deadline=160, retries=2, state="RETRY", met=None, task_id="w"
        ),
        a_run(158, 1, arrival=20, deadline=160, retries=3, task_id="w"),
    ]
    replaced = [
        a_run(160, 1, state="RETRY", met=None, task_id="x"),
        a_run(163, 1, retries=1, deadline=180, state="REPLACED", met=None, task_id="x"),
        a_run(166, 2, arrival=164, name="y", task_type="z", tau=3, deadline=170, task_id="x"),
    ]
    past = recorded(*replaced[::-1], *half[::-1], given_up, *lost[::-1], *retried[::-1])
    assert past.jobs == [
        # It waited for 1 s at first, so 9 of the 10 s between its runs were a pause.
        Job(0, "x", 2, "mixed", 10, 21, SUCCESS, (Again(9, 3, True),)),
        Job(6, "x", 1, "mixed", 10, 20, FAILURE, (Again(14, 4),)),
        Job(31, "x", 1, "mixed", 10, 20, KILLED, ()),
        # How long it has waited is not known, as its first run is missing.
        Job(51, "x", 1, "mixed", 10, 10, SUCCESS, (Again(7, 1, True),)),
        # The verdict is that of the work that has replaced it; this arrived at once.
        Job(61, "y", 1, "z", 3, 10, SUCCESS, (Again(2, 1, True), Again(0, 2)), 4),
    ]
    assert list(past.met) == [False, True, False, True, True]
    assert recording([]) is None


def test_a_job_is_the_work_that_has_replaced_it_and_ends_as_its_last_run() -> None:
    replaced = a_run(0, 1, state="REPLACED", met=None, task_id="t")
    (job,) = recorded(a_run(3, 1, name="y", arrival=2, task_id="t"), replaced).jobs
    assert (job.name, job.lead_s, job.end) == ("y", 2, SUCCESS)
    (job,) = recorded(replaced).jobs
    assert (job.name, job.lead_s, job.end) == ("x", 0, KILLED), "it has never ended"
    (job,) = recorded(a_run(0, 1, state="FAILURE", cause="killed", met=False)).jobs
    assert job.end == KILLED


def test_tasks_that_arrived_at_once_keep_their_verdicts() -> None:
    past = recorded(a_run(3, 1, name="b", met=False), a_run(3, 2, name="a"))
    assert [job.name for job in past.jobs] == ["b", "a"]
    assert list(past.met) == [False, True]


def test_the_wait_for_a_slot_before_a_retry_is_no_part_of_its_pause() -> None:
    first = a_run(100, 2, state="RETRY", met=None, task_id="t", again_at=105.0)
    last = a_run(130, 3, arrival=100, retries=1, met=False, deadline=120, task_id="t")
    (job,) = recorded(last, first).jobs
    assert job.later == (Again(3, 3, True),)
    early = first._replace(again_at=101.0)  # before the run has ended
    assert recorded(last, early).jobs[0].later == (Again(0, 3, True),)


@pytest.mark.parametrize(
    ("share", "slots", "most"), [(0.29, 100, 29), (0.57, 100, 57), (0.75, 2, 1), (0.1, 4, 1)]
)
def test_workers_and_the_simulator_give_demoted_tasks_the_same_slots(
    share: float, slots: int, most: int
) -> None:
    worker = SimpleNamespace(pool=SimpleNamespace(is_green=False, num_processes=slots))
    real = Slots(SimpleNamespace(controller=worker))
    requests = [Request() for _ in range(slots)]  # the state keeps weak references
    order = partial(EarliestDeadlineFirst, Rule(hopeless_slots=share))
    (simulated,) = Workers([WorkerGroup(slots)], order).each
    held = 0
    try:
        while simulated.may_take_demoted() and real.may_take_demoted(share):
            simulated.demoted.add(held)
            state.reserved_requests.add(requests[held])
            real.claimed_demoted(requests[held].id)
            held += 1
        assert not simulated.may_take_demoted()
        assert not real.may_take_demoted(share)
    finally:
        state.reserved_requests.difference_update(requests)
    assert held == most
    assert share_of_slots(share, [slots, slots]) * 2 * slots == pytest.approx(2 * most)


class Request:
    """What a worker knows of a task that it has taken."""

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())


def test_a_task_with_an_eta_was_published_before_it_arrived() -> None:
    past = recorded(
        a_run(30, 1, name="eta", published_at=10.0),
        a_run(20, 1, name="none"),
        a_run(20, 1, name="past", published_at=20.5),
        # Whose first run is not known.
        a_run(40, 1, name="again", arrival=30, published_at=10.0, retries=1, task_id="t"),
    )
    notices = {job.name: job.notice_s for job in past.jobs}
    assert notices == {"eta": 20, "none": 0, "past": 0, "again": 0}


def test_a_new_k_counts_from_when_the_work_came_that_has_replaced_a_task(
    tmp_path: Path,
) -> None:
    chain = [
        a_run(100, 1, state="REPLACED", met=None, task_id="t"),
        a_run(131, 5, name="y", tau=3, deadline=137, task_id="t"),
    ]
    (job,) = recorded(*chain[::-1]).jobs
    for k, met in ((2.0, True), (1.0, False)):
        conditions, order = Conditions(k=k), FirstComeFirstServed()
        (outcome,) = simulate([job], 1, order, Settings(), conditions=conditions)
        assert outcome.met == met
    write_trace(tmp_path / "trace.csv", [job])
    assert read_trace(tmp_path / "trace.csv") == [Job(0, "y", 5)]


def test_what_was_dropped_says_nothing_of_slots_and_overhead() -> None:
    never = {"state": "REVOKED", "cause": "dropped", "met": False, "place": ("w", None)}
    # As the ledger tells of them: as if each had run for its tau, and at its end.
    whens = [100.0 + n for n in range(5)]
    runs = [a_run(at, 10, arrival=90.0, completed_at=at, **never) for at in whens]
    past = recorded(*runs[::-1])
    assert (past.slots, past.pools, list(past.overheads)) == (1, [], [])
    (outcome, *_) = simulate(past.jobs, 9, FirstComeFirstServed(), Settings())
    assert outcome.met
    assert not any(past.met)


def test_the_slots_of_each_worker() -> None:
    one = [a_run(0, 10, place=("w1", pid)) for pid in range(3)]
    two = [a_run(5, 10, place=("w2", 1)), a_run(20, 1, place=("w2", 1))]
    past = recorded(*two[::-1], *one)
    assert past.slots == 4
    assert past.pools == [Pool((0,), 4, [1, 3])]
    assert share_of_slots(0.75, [1, 3]) == 0.75
    assert share_of_slots(0.75, [1, 1]) == 1.0
    assert share_of_slots(0.75, []) == 0.75
    killed = recorded(a_run(0, 5, cause="killed", met=False))
    assert (killed.slots, killed.pools) == (1, [])


def test_the_queues_of_each_worker() -> None:
    def ran(worker: str, queue: str, times: int, pid: int = 1) -> list[Run]:
        starts = [20.0 * n + 5 * (queue == "q") for n in range(times)]
        return [a_run(at, 10, place=(worker, pid), queue=queue) for at in starts]

    runs = [*ran("a", "p", 30, 1), *ran("a", "p", 30, 2), *ran("b", "q", 30)]
    # One has run too few to tell whether it takes from both.
    runs += [*ran("c", "p", 2), *ran("d", "p", 15, 1), *ran("d", "q", 15, 2)]
    lost = a_run(0, 1, queue="killed", cause="killed", met=False)
    past = recorded(*runs, lost)
    assert past.pools == [
        Pool((0, 1, 2), 3, [2, 1]),
        Pool((0, 2), 2, [2]),
        Pool((1, 2), 1, [1]),
    ]
    assert past.slots == 6
    assert {job.queue for job in past.jobs} == {0, 1, 2}
    keys = [a_run(0, 10, place=(str(n), 1), queue=f"key.{n}") for n in range(101)]
    assert recorded(*keys).pools == [Pool((0,), 101, [1] * 101)]


def test_workers_that_replace_each_other_are_of_one_kind() -> None:
    """Such as the pods of each deploy, though one queue is only busy later on."""
    rng = random.Random(1)
    runs = []
    for generation, number, nth in product(range(20), range(2), range(30)):
        queue = "q" if generation >= 10 and rng.random() < 0.8 else "p"
        at = 300.0 * generation + 10 * nth
        runs.append(a_run(at, 10, place=(f"{generation}-{number}", 1), queue=queue))
    assert recorded(*runs[::-1]).pools == [Pool((0, 1), 2, [1] * 40)]


def test_workers_beside_one_of_a_rare_queue_do_not_take_from_it() -> None:
    """None of them has run enough to tell alone, but all of them together have."""
    runs = [
        a_run(10.0 * nth, 9, place=(str(number), 1), queue="p")
        for number, nth in product(range(10), range(1000))
    ]
    runs += [a_run(500.0 * nth, 400, place=("rare", 1), queue="q") for nth in range(20)]
    assert recorded(*runs).pools == [Pool((0,), 10, [1] * 10), Pool((1,), 1, [1])]
    # One has run tasks of both: then the others may have run none of the rare ones by chance.
    both = a_run(5000.0, 1, place=("0", 1), queue="q")
    assert recorded(*runs, both).pools[0] == Pool((0, 1), 10, [1] * 10)
    # A worker of one run shows neither.
    few = [
        a_run(10.0 * n, 9, place=(str(n), 1), queue="p" if n % 10 else "q") for n in range(100)
    ]
    assert [pool.queues for pool in recorded(*few).pools] == [(0, 1)]


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize(
    ("times", "kinds"), [(1, [(0, 1)]), (2, [(0,), (1,)]), (6, [(0,), (1,)])]
)
def test_workers_of_few_runs_are_told_apart_by_all_their_runs(
    in_turn: bool, times: int, kinds: list[tuple[int, ...]]
) -> None:
    """In whatever order they are named."""
    queues = "pq" * 25 if in_turn else "p" * 25 + "q" * 25
    runs = [
        a_run(3.0 * number + 10 * nth, 9, place=(f"{number:02}", 1), queue=queue)
        for nth, (number, queue) in product(range(times), enumerate(queues))
    ]
    assert [pool.queues for pool in recorded(*runs).pools] == kinds


def test_one_of_many_workers_that_ran_nothing_of_a_queue_by_chance_takes_from_it() -> None:
    runs = [
        a_run(20.0 * n, 10, place=(str(worker), 1), queue="q" if n % 5 < 2 and worker else "p")
        for worker, n in product(range(100), range(10))
    ]
    assert recorded(*runs).pools == [Pool((0, 1), 100, [1] * 100)]


def test_further_runs_start_after_their_pause_and_hold_a_slot() -> None:
    job = Job(0, "x", 2, later=(Again(5, 3), Again(1, 4)))
    killed = Job(8, "y", 1, end=KILLED)
    first, second = simulate([job, killed], 1, FirstComeFirstServed(), Settings())
    assert (first.started_at, first.finished_at) == (11, 15)
    assert (second.started_at, second.met) == (10, False)
    assert offered_load([job, killed], 1) == pytest.approx(10 / 8)


def test_only_successful_runs_are_learned_with_a_lag() -> None:
    jobs = [Job(10.0 * n, "x", 1.0, end=FAILURE if n < 2 else SUCCESS) for n in range(5)]
    late = Conditions(learning_lag_s=9.5)
    taus = [
        [o.tau for o in simulate(jobs, 1, FirstComeFirstServed(), Settings(), conditions=c)]
        for c in (IDEAL, late)
    ]
    assert taus[0] == [10, 10, 10, pytest.approx(8.2), pytest.approx(6.76)]
    assert taus[1] == [10, 10, 10, 10, pytest.approx(8.2)]


def test_recorded_deadlines_are_kept_unless_k_is_changed() -> None:
    job = Job(5, "x", 1, tau=4.0, span_s=33.0)

    def due(conditions: Conditions) -> float:
        order = FirstComeFirstServed()
        return simulate([job], 1, order, Settings(), conditions=conditions)[0].deadline

    assert due(IDEAL) == 38
    assert due(Conditions(k=1.5)) == 5 + 6
    assert due(Conditions(speed=5)) == 1 + 33
    with pytest.raises(ValueError, match="speed"):
        due(Conditions(speed=0))


def test_hopeless_tasks_may_be_dropped() -> None:
    jobs = [Job(0, "x", 100, tau=100.0, span_s=200.0), Job(1, "x", 9, tau=10.0, span_s=20.0)]
    order = order_of("edf", Settings(hopeless="drop"))
    first, second = simulate(jobs, 1, order, Settings())
    assert first.met
    assert not second.met
    assert second.started_at == float("inf")
    steps: list[int] = []
    counted = tally(with_progress(enumerate([first, second]), steps.append))
    assert (counted.dropped, counted.share, steps) == (1, 0.5, [1, 1])
    assert (list(counted.delays), list(counted.lateness)) == ([0], [100 - 200])


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("fifo", Settings(), [1, 2, 3]),
        ("sjf", Settings(), [2, 1, 3]),
        ("edf", Settings(), [2, 1, 3]),
        ("edf", Settings(hopeless="keep"), [3, 2, 1]),
        ("plain-edf", Settings(), [3, 2, 1]),
        ("edf", Settings(hopeless="keep", order="deadline+work"), [2, 3, 1]),
    ],
)
def test_the_orders_by_name(name: str, settings: Settings, expected: list[int]) -> None:
    busy = Job(0, "first", 5, tau=5.0, span_s=50.0)
    waiting = [(20.0, 60.0), (1.0, 30.0), (20.0, 16.0)]  # the last is hopeless
    jobs = [busy, *(Job(1, "x", 1, tau=tau, span_s=span_s) for tau, span_s in waiting)]
    outcomes = simulate(jobs, 1, order_of(name, settings), settings)
    assert sorted((1, 2, 3), key=lambda n: outcomes[n].started_at) == expected


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown order 'lifo'"):
        order_of("lifo", Settings())


def test_overlaps_within_clock_skew_are_not_simultaneous() -> None:
    rng = random.Random(1)
    starts = [float(n) for n in range(1000)]
    ends = [n + 1 + rng.choice((0.0004, -0.0004)) for n in range(1000)]
    assert most_at_a_time(starts, ends) == 1
    assert most_at_a_time([0, 0, 0], [1, 1, 1]) == 3
    assert most_at_a_time([0, 10], [10.005, 10.006]) == 1
    assert most_at_a_time([], []) == 1


def test_the_overhead_is_measured_on_tasks_that_had_waited() -> None:
    runs = [
        a_run(0, 10, name="y"),
        a_run(10.2, 5, arrival=3),
        a_run(30, 5),  # came when the slot was free
        a_run(35.4, 5, arrival=31),
        a_run(0, 10, place=("w", 2)),
        a_run(9, 9, arrival=1, place=("w", 2)),  # a pool of threads
    ]
    assert list(recorded(*runs[::-1]).overheads) == pytest.approx([0.2, 0.4])
    assert list(recorded(*runs).overheads) == pytest.approx([0.2, 0.4])
    assert list(recorded(runs[0]).overheads) == []
    # One that was delivered again, an hour after its worker was killed.
    lost = a_run(3, 1, task_id="t", cause="lost", met=None, state="LOST", place=("v", 1))
    again = a_run(3610, 5, arrival=3, task_id="t")
    assert list(recorded(again, runs[0], lost).overheads) == []


def test_hopeless_tasks_count_for_the_overhead_only_if_nothing_else_does() -> None:
    runs = [
        a_run(10.0 * n + (n % 2), 9 - (n % 2), arrival=0, deadline=1e3 if n % 2 else 0)
        for n in range(60)
    ]
    # Hopeful ones start 2 s after the end of the one before, hopeless ones 1 s.
    overheads = recorded(*runs).overheads
    assert set(overheads) == {2.0}
    hopeless = recorded(*(run._replace(deadline=0.0) for run in runs)).overheads
    assert set(hopeless) == {1.0, 2.0}
    many = [a_run(2.0 * n, 1 + n % 7 / 10, arrival=0, deadline=1e9) for n in range(5000)]
    assert len(recorded(*many).overheads) <= 1000
    outage = a_run(5000.0, 1, arrival=0, deadline=1e9)
    assert max(recorded(*many[:400], outage).overheads) < 2, "the longest are left out"


def test_a_run_draws_its_overhead() -> None:
    jobs = [Job(0, "x", 1.0) for _ in range(200)]

    def starts(**conditions: Any) -> list[float]:
        order = FirstComeFirstServed()
        asked = Conditions(overheads=(0.1, 0.3), **conditions)
        outcomes = simulate(jobs, 1, order, Settings(), conditions=asked)
        pauses = [o.started_at - before.finished_at for before, o in pairwise(outcomes)]
        assert {round(pause, 6) for pause in pauses} == {0.1, 0.3}
        assert 0.17 < sum(pauses) / len(pauses) < 0.23
        return pauses

    assert starts(seed=1) == starts(seed=1) != starts(seed=2)


def test_percentiles_and_load_of_few_jobs() -> None:
    assert percentiles([], (0.5,)) == [None]
    assert percentiles([1.0], (0.0, 1.0)) == [1.0, 1.0]
    assert offered_load([], 1) is None
    assert offered_load([Job(0, "x", 1), Job(0, "x", 1)], 1) is None
    assert enough_slots([Job(0, "x", 1), Job(0, "x", 1)]) == 1
    assert enough_slots([Job(0, "x", 1), Job(1, "x", 1e9)]) == 2
