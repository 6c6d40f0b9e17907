"""What must run, or be held by a worker, though Redis does not show it yet."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from rts.ledger.recent import Recent
from rts.predictions import taken_tasks
from rts.predictions.fleet import Fleet
from rts.predictions.messages import Held, WorkReader
from rts.predictions.queue_reader import Unacknowledged
from rts.predictions.taken_tasks import TakenTasks
from rts.records import Execution, OpenTask
from rts.settings import Settings
from rts.simulation.queues import WorkerGroup
from rts.unfinished.received import SIZE, mark_of
from tests.records import run

NOW = 1000.0

#: A worker of two slots, which has received nothing.
IDLE = Fleet(
    now=NOW,
    queues=["mail"],
    numbers={"mail": 0},
    groups=[WorkerGroup(2, prefetch=8.0)],
    group_of={"a": 0},
    receivers={},
    all_report=True,
    worker_slots={"a": 2},
    running=[],
    recent=[],
    known_since=0.0,
)


def held(task_id: str, taken_at: float = NOW - 1, key: str = "mail", **headers: Any) -> Held:
    headers |= {"id": task_id, "task": "t", "rts_tau": 1.0}
    plan = {"rts_arrival": taken_at, "rts_deadline": taken_at + 2.0}
    return Held(key, {"headers": headers | plan}, taken_at)


def taken(fleet: Fleet, *messages: Held, late: bool = False) -> TakenTasks:
    found = TakenTasks(fleet)
    reader = WorkReader(Settings(), lambda *_: 1.0)
    found.add_unacknowledged(Unacknowledged([*messages], 3600.0), reader, lambda _: late)
    return found


def running(task_id: str) -> Execution:
    """Return a run that the first worker has started a moment ago."""
    more: dict[str, Any] = {"started_at": NOW - 1, "queue": "mail", "instance": "a"}
    return run(task_id)._replace(task_id=task_id, **more)


def published(task_id: str, arrival: float = NOW - 0.1, queue: str = "mail") -> OpenTask:
    plan = ("mixed", "explicit", 1.0, 2.0, arrival, arrival + 2.0)
    return OpenTask(task_id, "t", *plan, "published", queue)


@pytest.mark.parametrize(("late", "run"), [(False, []), (True, ["a", "c"])])
def test_tasks_with_late_acknowledgement_run_as_far_as_slots_are_free(
    late: bool, run: list[str]
) -> None:
    messages = [
        held("a"),
        held("b", eta="2030-01-01"),
        held("c"),
        held("d"),
        held("e", key="x"),
    ]
    found = taken(IDLE, *messages, late=late)
    assert list(found.running) == run
    assert list(found.held) == [task_id for task_id in "abcd" if task_id not in run]


def test_what_is_known_to_run_is_not_held_and_fills_a_slot() -> None:
    no_task = Held("mail", {"headers": {}}, NOW - 1)
    fleet = replace(IDLE, running=[running("a")])
    found = taken(fleet, held("a"), no_task, held("b"), held("c"), held("b"), late=True)
    assert list(found.running) == ["a", "b"]
    assert list(found.held) == ["c"]
    found = taken(fleet)
    found.add_published(map(published, "abc"))
    assert list(found.running) == ["a", "c"]


def test_a_run_holds_a_slot_of_its_worker_or_of_one_that_consumes_its_queue() -> None:
    groups = [WorkerGroup(2, (1,)), WorkerGroup(2, (1, 0)), WorkerGroup(2, (1, 0))]
    fleet = replace(IDLE, groups=groups, group_of={"a": 0, "b": 1, "c": 2})
    runs = [running("a")._replace(instance="c"), running("b")._replace(instance="gone")]
    strange = running("c")._replace(instance="gone", queue="topic.key")
    found = taken(replace(fleet, running=[*runs, strange]))
    assert [run.group for run in found.running.values()] == [2, 1, 1]
    nobody = replace(fleet, groups=[WorkerGroup(2, (1,))], group_of={"a": 0}, running=[strange])
    assert [run.group for run in taken(nobody).running.values()] == [0]


def test_messages_held_for_an_eta_may_exceed_what_a_worker_reports() -> None:
    long_ago = NOW - taken_tasks.REPORTED_S - 1
    full = replace(IDLE, groups=[WorkerGroup(2, prefetch=SIZE - 2.0)])
    assert [work.ready for work in taken(full, held("a", long_ago)).held.values()] != [0.0]
    later = held("b", eta="2030-01-01")
    assert taken(full, later, held("a", long_ago)).held["a"].ready == 0.0


def test_what_no_worker_holds_any_more_is_ready_once_it_is_redelivered() -> None:
    long_ago = NOW - taken_tasks.REPORTED_S - 1
    received = replace(IDLE, receivers={mark_of("b"): 0})
    messages = [held("a", long_ago), held("b", long_ago), held("c")]
    found = taken(received, *messages)
    assert [work.ready for work in found.held.values()] == [long_ago + 3600.0, 0.0, 0.0]
    assert found.held_by == [None, 0, None]
    # Since its eta there was hardly time to report it.
    due = datetime.fromtimestamp(NOW - 1, timezone.utc).isoformat()
    assert [work.ready for work in taken(IDLE, held("d", long_ago, eta=due)).held.values()] == [
        NOW - 1
    ]
    found = taken(replace(received, all_report=False), *messages)
    assert [work.ready for work in found.held.values()] == [0.0, 0.0, 0.0]


def test_what_was_published_and_is_nowhere_must_have_started() -> None:
    over = Recent("e", "t", "mixed", NOW - 1, 1.0, NOW + 1, NOW - 1, NOW, "mail", "a")
    found = taken(replace(IDLE, recent=[over]), held("d"))
    found.add_published(
        [*map(published, "abcde"), published("f", NOW + 9), published("g", queue="x")]
    )
    # More than two cannot run: the latest do.
    assert list(found.running) == ["b", "c"]
    assert {run.started for run in found.running.values()} == {NOW - 0.1}


def test_what_must_have_started_runs_where_most_slots_are_free() -> None:
    fleet = replace(IDLE, groups=[WorkerGroup(2), WorkerGroup(4)])
    found = taken(fleet)
    found.add_published([published("a")._replace(tau=0.1)])
    (task,) = found.running.values()
    assert (task.group, task.started) == (1, pytest.approx(NOW - 0.05))


def test_what_a_worker_has_received_runs_there_though_another_one_is_idle() -> None:
    two = [WorkerGroup(2, prefetch=8.0), WorkerGroup(2, prefetch=8.0)]
    fleet = replace(IDLE, groups=two, receivers={mark_of("a"): 1, mark_of("b"): 1})
    found = taken(fleet, held("a"), late=True)
    found.add_published([published("b")])
    assert [run.group for run in found.running.values()] == [1, 1]
