"""Stock workers that hold messages back, in the simulator."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.cli.workloads import held_per_slot
from rts.settings import Settings
from rts.simulation.orders import FirstComeFirstServed, LeastFirst
from rts.simulation.prefetch import Prefetched
from rts.simulation.simulator import simulate
from rts.simulation.traces import Job

JOBS = st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 20)), max_size=40)


def starts(jobs: list[Job], order: Any, slots: int) -> list[float]:
    return [o.started_at for o in simulate(jobs, slots, order, Settings())]


def test_a_prefetched_task_waits_for_its_worker_while_another_is_idle() -> None:
    # Two are over at once. The next two go to the two workers, those after them are held there.
    runtimes = (1, 1, 100, 5, 1, 1, 1)
    jobs = [Job(float(n), "x", runtime_s) for n, runtime_s in enumerate(runtimes)]
    assert starts(jobs, Prefetched([1, 1], 1), 2) == [0, 1, 2, 3, 102, 8, 9]
    assert starts(jobs, Prefetched([1, 1], 0), 2) == [0, 1, 2, 3, 8, 9, 10]


def test_a_worker_takes_the_most_urgent_message_but_runs_what_it_holds_first() -> None:
    ranks = (1, 2, 2, 0, 1)
    jobs = [Job(float(n), "x", 10.0, rank=rank) for n, rank in enumerate(ranks)]

    def held(number: int) -> Prefetched:
        return Prefetched([1], number, LeastFirst(lambda task: task.rank))

    assert starts(jobs, held(1), 1) == [0, 10, 40, 20, 30]
    assert starts(jobs, held(0), 1) == [0, 30, 40, 10, 20]


@given(JOBS, st.sampled_from([[3], [1, 2], [1, 1, 1]]), st.sampled_from([0, 1, 4, math.inf]))
def test_every_job_runs_within_the_slots(
    rows: list[tuple[float, float]], workers: list[int], held: float
) -> None:
    jobs = sorted(Job(arrival_s, "x", runtime_s) for arrival_s, runtime_s in rows)
    outcomes = simulate(jobs, 3, Prefetched(workers, held), Settings())
    assert len(outcomes) == len(jobs)
    for o in outcomes:
        assert sum(p.started_at <= o.started_at < p.finished_at for p in outcomes) <= 3
    if len(workers) == 1 or held == 0:
        fair = starts(jobs, FirstComeFirstServed(), 3)
        assert [o.started_at for o in outcomes] == fair


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
