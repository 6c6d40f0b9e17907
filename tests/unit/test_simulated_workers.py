"""Simulated workers that hold messages back: some in the stock order, those with an eta."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.cli.workloads import held_per_slot
from rts.rule import Rule
from rts.settings import Settings
from rts.simulation.orders import EarliestDeadlineFirst, FirstComeFirstServed, LeastFirst, Order
from rts.simulation.pools import Pool, spread
from rts.simulation.queues import Queues, WorkerGroup
from rts.simulation.simulator import Conditions, finished, simulate
from rts.simulation.traces import Again, Job, Origin
from rts.simulation.workers import Workers

JOBS = st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 20)), max_size=40)


def workers(slots: list[int], order: Order, held_per_slot: float = 0.0) -> Workers:
    """Workers of so many slots each that take from one queue."""
    return Workers([WorkerGroup(n, prefetch=n * held_per_slot) for n in slots], lambda: order)


def starts(jobs: list[Job], order: Any, slots: int) -> list[float]:
    return [o.started_at for o in simulate(jobs, slots, order, Settings())]


def test_a_prefetched_task_waits_for_its_worker_while_another_is_idle() -> None:
    # Two are over at once. The next two go to the two workers, those after them are held there.
    runtimes = (1, 1, 100, 5, 1, 1, 1)
    jobs = [Job(float(n), "x", runtime_s) for n, runtime_s in enumerate(runtimes)]
    for held, last in ((1, [102, 8, 9]), (0, [8, 9, 10])):
        two = workers([1, 1], FirstComeFirstServed(), held)
        assert starts(jobs, two, 2) == [0, 1, 2, 3, *last]


def test_a_worker_takes_the_most_urgent_message_but_runs_what_it_holds_first() -> None:
    ranks = (1, 2, 2, 0, 1)
    jobs = [Job(float(n), "x", 10.0, rank=rank) for n, rank in enumerate(ranks)]

    def held(number: int) -> Workers:
        return workers([1], LeastFirst(lambda task: task.rank), number)

    assert starts(jobs, held(1), 1) == [0, 10, 40, 20, 30]
    assert starts(jobs, held(0), 1) == [0, 30, 40, 10, 20]


def test_a_worker_takes_a_task_before_its_eta_and_runs_it_next() -> None:
    jobs = [
        Job(0, "runs", 10, tau=10.0, span_s=99.0),
        Job(2, "urgent", 5, tau=5.0, span_s=10.0),
        Job(4, "eta", 5, tau=5.0, span_s=90.0, notice_s=4.0),
    ]
    # At 0, both slots are free, but one for the first only: the other one holds no slot.
    assert starts(jobs, EarliestDeadlineFirst(), 2) == [0, 2, 7]
    # The one with the eta goes first, as it was taken before: at once, as a slot was free.
    jobs[1] = jobs[1]._replace(span_s=50.0)
    early = jobs[2]._replace(notice_s=4.5)
    assert starts([*jobs[:2], early], EarliestDeadlineFirst(), 1) == [0, 15, 10]
    # It was not taken before, as none was free.
    late = jobs[2]._replace(notice_s=3.5)
    assert starts([*jobs[:2], late], EarliestDeadlineFirst(), 1) == [0, 10, 15]


def test_a_countdown_is_no_shorter_if_tasks_come_faster() -> None:
    jobs = [Job(0, "x", 30), Job(40, "x", 1, notice_s=10.0), Job(50, "x", 1)]
    twice = Conditions(speed=2.0)
    found = simulate(jobs, 1, FirstComeFirstServed(), Settings(), conditions=twice)
    assert [o.arrival for o in found] == [0, 20, 25], "twice as fast, also if days ahead"
    assert [o.started_at for o in found] == [0, 30, 31]
    children = [jobs[0]._replace(key="p"), jobs[1]._replace(origin=Origin("p", 40.0, False))]
    found = simulate(children, 1, FirstComeFirstServed(), Settings(), conditions=twice)
    assert [o.arrival for o in found] == [0, 40]


def test_in_the_stock_order_an_eta_comes_behind_what_its_worker_has_prefetched() -> None:
    jobs = [Job(0, "x", 10, notice_s=1.0), *(Job(n, "x", 10) for n in (1, 2, 3))]
    jobs.append(Job(4, "eta", 10, notice_s=3.5))
    for held, expected in ((1, [0, 10, 30, 40, 20]), (math.inf, [0, 10, 20, 30, 40])):
        assert starts(jobs, workers([1], FirstComeFirstServed(), held), 1) == expected


def test_a_retry_waits_in_the_queue_for_its_countdown() -> None:
    jobs = [
        Job(0, "retried", 1, tau=1.0, span_s=99.0, later=(Again(4, 1, True),)),
        Job(2, "runs", 5, tau=5.0, span_s=20.0),
        Job(3, "urgent", 5, tau=5.0, span_s=20.0),
    ]
    assert starts(jobs, EarliestDeadlineFirst(), 1) == [7, 2, 8], "it was taken at 1"
    jobs[0] = jobs[0]._replace(later=(Again(4, 1, False),))  # such as a redelivery
    assert starts(jobs, EarliestDeadlineFirst(), 1) == [12, 2, 7]


@pytest.mark.parametrize("order", [FirstComeFirstServed, EarliestDeadlineFirst])
def test_a_task_waits_for_a_worker_of_its_queue(order: Callable[[], Order]) -> None:
    jobs = [Job(n, "x", 10, tau=10.0, span_s=99.0, queue=int(n != 1)) for n in range(4)]
    pools = [Pool((0, 1), 1, [1]), Pool((0,), 1, [1])]
    assert starts(jobs, Workers(spread(2, pools), order), 2) == [0, 1, 10, 20]
    assert starts(jobs, Workers(spread(1, pools), order), 1) == [0, 10, 20, 30], "in turn"
    for one in (order(), Workers([WorkerGroup(2, (1,))], order)):
        assert starts(jobs, one, 2) == [0, 1, 10, 11], "of one queue, all tasks are"


def test_the_worker_that_has_waited_longest_takes_a_task() -> None:
    jobs = [Job(0, "x", 1), Job(2, "x", 10), Job(3, "x", 1, queue=1)]
    groups = [WorkerGroup(1, (0,)), WorkerGroup(1, (0, 1))]
    assert starts(jobs, Workers(groups, FirstComeFirstServed), 2) == [0, 2, 12]


def test_a_worker_serves_its_queues_in_turn_each_in_its_order() -> None:
    jobs = [
        Job(n, "x", 10, tau=1.0, span_s=span_s, queue=n // 3)
        for n, span_s in enumerate((50.0, 90.0, 80.0, 70.0))
    ]
    both = Workers([WorkerGroup(1, (0, 1))], EarliestDeadlineFirst)
    assert starts(jobs, both, 1) == [0, 30, 20, 10]


def test_a_message_of_the_most_urgent_priority_comes_first_of_all_queues() -> None:
    rows = ((1, 0), (1, 1), (1, 1), (1, 0), (0, 0), (0, 0))
    jobs = [Job(n, "x", 10, rank=rank, queue=queue) for n, (rank, queue) in enumerate(rows)]
    both = Workers([WorkerGroup(1, (0, 1))], lambda: LeastFirst(lambda task: task.rank))
    # Then the two queues in turn.
    assert starts(jobs, both, 1) == [0, 30, 50, 40, 10, 20]


def test_what_several_queues_drop_is_dropped_once() -> None:
    due_s = ((0, 99.0), (1, 1.0), (0, 98.0))
    jobs = [Job(0, "x", 10, tau=10.0, span_s=span_s, queue=queue) for queue, span_s in due_s]
    order = partial(EarliestDeadlineFirst, Rule(hopeless="drop"))
    found = list(finished(jobs, 1, Workers([WorkerGroup(1, (0, 1))], order), Settings()))
    assert sorted(number for number, _ in found) == [0, 1, 2]


@pytest.mark.parametrize("order", [FirstComeFirstServed, EarliestDeadlineFirst])
def test_only_workers_that_may_take_something_are_asked(
    order: Callable[[], Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others may be many: a plan begins with as many slots as there are tasks."""
    asked: list[int] = []
    pop = Queues.pop

    def counted(self: Queues, group: int, now: float, may: bool) -> Any:
        asked.append(group)
        return pop(self, group, now, may)

    monkeypatch.setattr(Queues, "pop", counted)
    jobs = [Job(n, "x", 150.0, tau=99.0, span_s=9e9, queue=n % 2) for n in range(400)]
    pools = [Pool((0,), 100, [1] * 100), Pool((1,), 100, [1] * 100)]
    found = simulate(jobs, 200, Workers(spread(200, pools), order), Settings())
    assert [o.started_at for o in found] == [job.arrival_s for job in jobs]
    assert len(asked) == len(jobs)


def test_slots_are_spread_as_the_recorded_ones_were() -> None:
    pools = [Pool((0,), 2, [1, 1]), Pool((1,), 8, [4, 4])]

    def sizes(slots: int) -> list[tuple[int, tuple[int, ...]]]:
        return [(worker.slots, worker.queues) for worker in spread(slots, pools)]

    assert sizes(10) == [(1, (0,)), (1, (0,)), (4, (1,)), (4, (1,))]
    assert sizes(2) == [(1, (0,)), (1, (1,))]
    assert sizes(1) == [(1, (0, 1))]
    assert [worker.queues for worker in spread(2, pools[::-1])] == [(1,), (0,)]
    assert spread(3, []) == [WorkerGroup(3)]
    assert [worker.prefetch for worker in spread(10, pools, 2.0)] == [2, 2, 8, 8]
    assert sum(size for size, _ in sizes(101)) == 101


def test_each_worker_runs_as_many_demoted_tasks_as_it_may() -> None:
    # Two workers of two slots may run one each, one of four slots three.
    jobs = [Job(0, "x", 10, tau=10.0, span_s=1.0) for _ in range(4)]
    every = Rule(late_share=0)
    assert starts(jobs, workers([2, 2], EarliestDeadlineFirst(every)), 4) == [0, 0, 10, 10]
    assert starts(jobs, workers([4], EarliestDeadlineFirst(every)), 4) == [0, 0, 0, 10]


@given(JOBS, st.sampled_from([[3], [1, 2], [1, 1, 1]]), st.sampled_from([0, 1, 4, math.inf]))
def test_every_job_runs_within_the_slots(
    rows: list[tuple[float, float]], sizes: list[int], held: float
) -> None:
    jobs = sorted(Job(arrival_s, "x", runtime_s) for arrival_s, runtime_s in rows)
    outcomes = simulate(jobs, 3, workers(sizes, FirstComeFirstServed(), held), Settings())
    assert len(outcomes) == len(jobs)
    for o in outcomes:
        assert sum(p.started_at <= o.started_at < p.finished_at for p in outcomes) <= 3
    if len(sizes) == 1 or held == 0:
        fair = starts(jobs, FirstComeFirstServed(), 3)
        assert [o.started_at for o in outcomes] == fair


@given(
    st.lists(st.tuples(*(st.integers(0, most) for most in (20, 5, 9, 9)), st.booleans())),
    st.sampled_from([[3], [1, 2], [1, 1, 1]]),
    st.sampled_from([FirstComeFirstServed, EarliestDeadlineFirst]),
)
def test_every_job_with_an_eta_or_a_countdown_runs_once_after_it(
    rows: list[tuple[int, int, int, int, bool]], sizes: list[int], order: Callable[[], Order]
) -> None:
    jobs = sorted(
        Job(at, "x", runtime_s, notice_s=notice_s, later=(Again(pause_s, 1, True),) * retried)
        for at, runtime_s, notice_s, pause_s, retried in rows
    )
    found = list(finished(jobs, 3, workers(sizes, order()), Settings()))
    assert sorted(number for number, _ in found) == list(range(len(jobs)))
    for number, outcome in found:
        job = jobs[number]
        (again,) = job.later or [None]
        first_s = job.runtime_s + again.pause_s if again else 0
        assert outcome.started_at >= outcome.arrival + first_s >= job.arrival_s + first_s


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({}, 4),
        ({"worker_prefetch_multiplier": 1}, 1),
        ({"worker_prefetch_multiplier": 1, "task_acks_late": True}, 0),
        ({"worker_prefetch_multiplier": 0}, math.inf),
        ({"worker_prefetch_multiplier": 0, "task_acks_late": True}, math.inf),
        ({"worker_disable_prefetch": True}, 0),
    ],
)
def test_how_much_a_worker_prefetches(conf: dict[str, Any], expected: float) -> None:
    assert held_per_slot(conf) == expected
