"""The rules of the ledger, on the twin in memory and on a real MongoDB."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import reduce
from typing import Any

import pytest

from rts.fields import MAX_TEXT
from rts.ledger import writes
from rts.ledger.storable import cleaned, cleaned_learned
from rts.ports import TauEntry
from rts.records import Execution, Learned
from tests.ledgers import (
    UTC,
    OnMongo,
    R,
    Subject,
    at,
    entry,
    execution,
    failed,
    killed,
    lost,
    never_run,
    overdue,
    retried,
    written,
)


def test_the_pinned_fields(subject: Subject) -> None:
    learned = Learned(5.0, 4.4, 3.0, 2.8)
    subject.ledger.write([entry(execution(), learned)])
    (task,), (assignment,) = subject.documents()
    arrival = datetime.fromtimestamp(R, UTC)
    assert task == {
        "_id": "t",
        "name": "proj.add",
        "task_type": "cpu-light",
        "type_source": "explicit",
        "tau": 5.0,
        "k": 2.0,
        "arrival": arrival,
        "deadline": arrival + timedelta(seconds=10),
        "queue": "celery",
        "state": "SUCCESS",
        "started_at": arrival + timedelta(seconds=1),
        "completed_at": arrival + timedelta(seconds=3),
        "runtime_s": 2.0,
        "sla_success": True,
        "lateness_s": -7.0,
        "worker": "celery@a",
        "attempts": 1,
        "parent_id": None,
        "root_id": "t",
        # beyond the pinned ones
        "verdict_at": arrival + timedelta(seconds=3),
        "cause": None,
        "arrival_source": "published",
        "retries": 0,
        "instance": "celery@a:1:1",
        "run_id": f"t:0:42:{(R + 1) * 1e6:.0f}",
    }
    pinned = {
        "task_id": "t",
        "retries": 0,
        "worker": "celery@a",
        "pid": 42,
        "started_at": arrival + timedelta(seconds=1),
        "load_at_start": {"load": 0.5, "cpu": 0.25, "memory": 0.75, "age_s": 0.125},
        "completed_at": arrival + timedelta(seconds=3),
        "runtime_s": 2.0,
        "cpu_s": 1.5,
        "max_rss_bytes": 50_000_000,
        "state": "SUCCESS",
        "sla_success": True,
        "lateness_s": -7.0,
        "tau_before": 5.0,
        "tau_after": 4.4,
    }
    assert {key: assignment[key] for key in pinned} == pinned
    assert assignment["_id"] == task["run_id"]
    assert assignment["queueing_delay_s"] == 1.0
    assert (assignment["name_tau_before"], assignment["name_tau_after"]) == (3.0, 2.8)
    assert assignment.keys().isdisjoint(("priority", "again_at", "published_at"))
    assert task["arrival"].tzinfo is not None


def test_a_retry_has_its_priority_and_when_it_may_start(subject: Subject) -> None:
    subject.ledger.write([entry(retried(priority=9, again_at=R + 8.5))])
    _, (assignment,) = subject.documents()
    assert assignment["priority"] == 9
    assert assignment["again_at"] == datetime.fromtimestamp(R + 8.5, UTC)


def test_a_run_has_when_its_message_with_an_eta_was_published(subject: Subject) -> None:
    subject.ledger.write([entry(execution(published_at=R - 30.0))])
    _, (assignment,) = subject.documents()
    assert assignment["published_at"] == datetime.fromtimestamp(R - 30, UTC)


def test_no_task_is_its_own_parent(subject: Subject) -> None:
    again = execution(retries=1, parent_id="t")
    subject.ledger.write([entry(retried(parent_id=None)), entry(again)])
    subject.ledger.write([entry(execution(task_id="u", parent_id="t"))])
    tasks, _ = subject.documents()
    assert [(task["_id"], task["parent_id"]) for task in tasks] == [("t", None), ("u", "t")]


def test_twice_changes_nothing(subject: Subject) -> None:
    runs = [entry(execution(task_id=f"t{n}"), Learned(5, 4)) for n in range(5)]
    subject.ledger.write(runs)
    before = subject.documents()
    subject.ledger.write(runs)
    subject.ledger.write(list(reversed(runs)) * 2)
    assert subject.documents() == before


def test_an_empty_batch_writes_nothing(subject: Subject) -> None:
    subject.ledger.write([])
    assert subject.documents() == ([], [])


def test_an_end_at_the_very_deadline_is_in_time(subject: Subject) -> None:
    subject.ledger.write(
        [
            entry(execution(task_id="dot", completed_at=R + 10)),
            entry(execution(task_id="late", completed_at=R + 10.5)),
        ]
    )
    dot, late = subject.documents()[0]
    assert (dot["sla_success"], dot["lateness_s"]) == (True, 0.0)
    assert (late["sla_success"], late["lateness_s"]) == (False, 0.5)


@pytest.mark.parametrize(
    ("changes", "second"),
    [
        ({"completed_at": R + 3}, 3),
        ({"completed_at": R + 10}, 10),
        ({"completed_at": R + 99}, 10),
        ({"completed_at": R + 4, "state": "REVOKED", "cause": "revoked"}, 4),
        ({"completed_at": R + 99, "state": "REVOKED", "cause": "revoked"}, 10),
        ({"completed_at": R + 5, "deadline": R - 1e6}, 0),
        ({"completed_at": R - 5, "deadline": R - 9}, -5),
        ({"completed_at": R + 6, "deadline": math.nan}, 6),
        ({"completed_at": R + 99, "arrival": math.nan}, 10),
    ],
)
def test_a_verdict_falls_at_the_end_and_no_later_than_the_deadline(
    subject: Subject, changes: dict[str, Any], second: float
) -> None:
    task, _ = written(subject, execution(**changes))
    assert task["verdict_at"] == at(second)


def test_overdue_is_a_miss_without_an_end(subject: Subject) -> None:
    task, assignments = written(subject, overdue(), overdue())
    assert (task["state"], task["cause"], task["sla_success"]) == ("PENDING", "overdue", False)
    assert task["verdict_at"] == at(10)
    assert task["completed_at"] is task["lateness_s"] is task["started_at"] is None
    assert (task["attempts"], assignments) == (0, [])
    task, _ = written(subject, overdue(state="STARTED", started_at=R + 5, worker="celery@a"))
    assert (task["state"], task["worker"], task["verdict_at"]) == (
        "STARTED",
        "celery@a",
        at(10),
    )


@pytest.mark.parametrize("turned", [False, True])
def test_the_end_of_an_overdue_task_takes_its_place(subject: Subject, turned: bool) -> None:
    end = execution(completed_at=R + 60, runtime_s=59.0)
    runs = [overdue(), end]
    task, assignments = written(subject, *(reversed(runs) if turned else runs))
    assert (task["state"], task["cause"], task["sla_success"]) == ("SUCCESS", None, False)
    assert (task["completed_at"], task["verdict_at"]) == (at(60), at(10))
    assert (task["lateness_s"], task["attempts"], len(assignments)) == (50.0, 1, 1)


def test_overdue_tasks_that_end_late_keep_their_verdict_at_the_deadline(
    subject: Subject,
) -> None:
    """Some tasks were found overdue, one has ended for another drain, one is news."""
    waiting = [overdue(task_id=f"t{n}") for n in range(3)]
    begun = overdue(task_id="t3", state="STARTED", started_at=R + 5, worker="celery@a")
    subject.ledger.write([entry(each) for each in (*waiting, begun)])
    ends = [
        execution(run_id=f"r{n}", task_id=f"t{n}", completed_at=R + 60 + n, runtime_s=1.0)
        for n in range(5)
    ]
    subject.ledger.write([entry(ends[1])])
    for _ in range(2):
        subject.ledger.write([entry(end) for end in ends])
    tasks, assignments = subject.documents()
    assert [(t["state"], t["completed_at"], t["verdict_at"]) for t in tasks] == [
        ("SUCCESS", at(60 + n), at(10)) for n in range(5)
    ]
    assert len(assignments) == 5


def test_an_end_that_another_drain_overtakes_takes_the_place_of_its_verdict(
    on_mongo: OnMongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = writes.replace

    def overtaken(*changes: Any) -> bool:
        monkeypatch.setattr(writes, "replace", replace)
        begun = overdue(state="STARTED", started_at=R + 5, worker="celery@a")
        on_mongo.ledger.write([entry(begun)])
        return replace(*changes)

    written(on_mongo, overdue())
    monkeypatch.setattr(writes, "replace", overtaken)
    task, _ = written(on_mongo, execution(completed_at=R + 60, runtime_s=59.0))
    assert (task["state"], task["completed_at"], task["verdict_at"]) == (
        "SUCCESS",
        at(60),
        at(10),
    )


@pytest.mark.parametrize("turned", [False, True])
def test_a_retry_after_the_deadline_leaves_a_task_overdue(
    subject: Subject, turned: bool
) -> None:
    runs = [overdue(), retried(completed_at=R + 20)]
    task, _ = written(subject, *(reversed(runs) if turned else runs))
    assert (task["state"], task["cause"], task["sla_success"]) == ("RETRY", "overdue", False)
    assert (task["verdict_at"], task["completed_at"], task["attempts"]) == (at(10), None, 1)
    # LOST is provisional, and what comes after it has not ended
    subject.ledger.write([entry(lost())])
    subject.ledger.write([entry(retried(retries=2, started_at=R + 80, instance="i", pid=7))])
    (task,), _ = subject.documents()
    assert (task["state"], task["sla_success"]) == ("RETRY", False)


@pytest.mark.parametrize("turned", [False, True])
def test_what_takes_a_tasks_place_gives_the_verdict(subject: Subject, turned: bool) -> None:
    before = execution(state="REPLACED", retries=2, completed_at=R + 4)
    # It begins with no retries.
    own = {"pid": 7, "started_at": R + 5, "arrival": R + 4, "deadline": R + 14}
    runs = [before, failed(**own, completed_at=R + 9)]
    task, assignments = written(subject, *(reversed(runs) if turned else runs))
    assert (task["state"], task["sla_success"]) == ("FAILURE", True)
    assert (task["deadline"], task["attempts"], len(assignments)) == (at(14), 2, 2)


AGAIN = {"arrival": R + 20, "deadline": R + 30, "started_at": R + 21, "pid": 7}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "before",
    [
        [lost(retries=1), execution(state="REPLACED", retries=1, started_at=R + 15)],
        [retried(), retried(retries=1), execution(state="REPLACED", retries=2)],
        [execution(state="REPLACED")],
    ],
)
@pytest.mark.parametrize("after", [failed, lost])
def test_retries_and_deaths_before_it_took_the_place_do_not_count(
    subject: Subject, before: list[Execution], after: Callable[..., Execution], turned: bool
) -> None:
    end = after(**AGAIN, completed_at=R + 25)
    runs = [*before, end]
    task, _ = written(subject, *(reversed(runs) if turned else runs))
    assert (task["state"], task["run_id"]) == (end.state, end.run_id)
    assert task["completed_at"] == at(25)


@pytest.mark.parametrize("turned", [False, True])
def test_a_second_delivery_of_what_was_planned_where_it_was_received_is_no_new_task(
    subject: Subject, turned: bool
) -> None:
    received = {"arrival_source": "received"}
    end = failed(**received)
    runs = [end, lost(**received, arrival=R + 40, started_at=R + 41, pid=7)]
    task, _ = written(subject, *(reversed(runs) if turned else runs))
    assert (task["state"], task["run_id"]) == ("FAILURE", end.run_id)


def test_an_end_in_time_that_was_reported_late_counts(subject: Subject) -> None:
    """Redis was away: the deadline passed before the end was known."""
    task, _ = written(subject, overdue(), execution())
    assert (task["sla_success"], task["cause"], task["verdict_at"]) == (True, None, at(3))


@pytest.mark.parametrize("state", ["RETRY", "REPLACED"])
def test_retry_is_no_verdict(subject: Subject, state: str) -> None:
    task, assignments = written(subject, retried(state=state))
    assert task["state"] == state
    assert task["completed_at"] is task["sla_success"] is task["lateness_s"] is None
    assert assignments[0]["completed_at"] is not None
    assert assignments[0]["sla_success"] is assignments[0]["lateness_s"] is None


def test_a_later_attempt_decides(subject: Subject) -> None:
    task, assignments = written(
        subject,
        retried(),
        failed(retries=1, started_at=R + 5, completed_at=R + 6, worker="celery@b"),
    )
    assert (task["state"], task["attempts"], task["worker"]) == ("FAILURE", 2, "celery@b")
    assert len(assignments) == 2


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_runs_that_failed_the_one_that_began_last_decides(
    subject: Subject, turned: bool
) -> None:
    runs = [
        failed(started_at=R + 1, completed_at=R + 9),
        failed(started_at=R + 5, completed_at=R + 6, worker="celery@b"),
    ]
    task, _ = written(subject, *runs[:: -1 if turned else 1])
    assert (task["worker"], task["completed_at"], task["attempts"]) == ("celery@b", at(6), 2)


def test_what_is_stored_already_is_not_replaced(on_mongo: OnMongo) -> None:
    for _ in range(3):
        for run in (lost(), retried(), failed(retries=1)):
            on_mongo.ledger.write([entry(run)])
    assert [task["_rev"] for task in on_mongo.ledger.database.tasks.find()] == [2]
    revisions = [run.get("_rev") for run in on_mongo.ledger.database.assignments.find()]
    assert sorted(revisions, key=str) == [1, None]


def test_a_retry_never_replaces_a_final_record_of_its_attempt(subject: Subject) -> None:
    end = failed(completed_at=R + 4, runtime_s=None, cause="time_limit")
    for runs in ([end, retried()], [retried(retries=0), end]):
        assert written(subject, *runs)[0]["state"] == "FAILURE"


def test_the_first_success_is_final(subject: Subject) -> None:
    again = execution(started_at=R + 50, completed_at=R + 52, instance="celery@b:1:1", pid=7)
    task, assignments = written(subject, execution(), again, failed(retries=3, pid=8))
    assert (task["sla_success"], task["attempts"], len(assignments)) == (True, 3, 3)
    # the same, with the later run first
    subject.ledger.write([entry(again._replace(task_id="u", run_id="u2"))])
    subject.ledger.write([entry(execution()._replace(task_id="u", run_id="u1"))])
    assert subject.documents()[0][1]["sla_success"] is True


@pytest.mark.parametrize("together", [False, True])
def test_of_two_ends_the_one_that_came_first_counts_however_often_both_come(
    subject: Subject, together: bool
) -> None:
    first = entry(failed(), number=1)
    second = entry(failed(instance="celery@b:1:1", pid=7, completed_at=R + 2), number=2)
    for _ in range(2):  # the drain may die before it acknowledges them
        if together:
            assert subject.ledger.write([first, second]) == {second.entry_id}
        assert subject.ledger.write([first]) == set()
        assert subject.ledger.write([second]) == {second.entry_id}


@pytest.mark.parametrize("turned", [False, True])
def test_lost_is_provisional(subject: Subject, turned: bool) -> None:
    runs = [lost(), failed()]
    task, assignments = written(subject, *(reversed(runs) if turned else runs))
    assert (task["state"], task["attempts"]) == ("FAILURE", 1)
    assert [a["state"] for a in assignments] == ["FAILURE"]


def test_lost_until_the_redelivered_run_ends(subject: Subject) -> None:
    task, _ = written(subject, lost())
    assert (task["state"], task["sla_success"], task["cause"]) == ("LOST", False, "lost")
    again = retried(started_at=R + 70, completed_at=R + 71, instance="celery@b:2:2", pid=9)
    task, assignments = written(subject, again)
    assert (task["state"], task["attempts"], len(assignments)) == ("RETRY", 2, 2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "runs",
    [
        [execution(state="REQUEUED"), lost(started_at=R + 5, pid=7)],
        [lost(), retried()],  # of the same run: its worker was suspended
        [killed(), retried(retries=1, started_at=R + 5, pid=7)],
    ],
)
def test_a_task_that_goes_on_after_an_end_on_its_behalf_is_a_miss_until_it_ends(
    subject: Subject, runs: list[Execution], turned: bool
) -> None:
    """That end has taken it off the open tasks, so nobody finds it overdue."""
    task, _ = written(subject, *(reversed(runs) if turned else runs))
    assert task["state"] == (runs[0] if runs[0].state == "REQUEUED" else runs[1]).state
    assert (task["cause"], task["sla_success"]) == ("overdue", False)
    assert (task["verdict_at"], task["completed_at"]) == (at(10), None)
    end = failed(retries=2, started_at=R + 6, completed_at=R + 7, pid=8)
    subject.ledger.write([entry(end)])
    (task,), _ = subject.documents()
    assert (task["state"], task["sla_success"], task["verdict_at"]) == ("FAILURE", True, at(7))


def test_what_a_killed_worker_had_not_begun_says_nothing_of_a_retry(subject: Subject) -> None:
    task, _ = written(subject, retried(), never_run())
    assert (task["state"], task["sla_success"]) == ("RETRY", None)


@pytest.mark.parametrize("own_first", [True, False])
def test_a_runs_own_end_takes_precedence_over_one_written_on_its_behalf(
    subject: Subject, own_first: bool
) -> None:
    own, given = failed(completed_at=R + 8), killed(completed_at=R + 4)
    task, (run,) = written(subject, *((own, given) if own_first else (given, own)))
    assert (task["cause"], task["lateness_s"]) == (None, own.completed_at - own.deadline)
    assert (run["cause"], run["lateness_s"]) == (None, task["lateness_s"])


def test_a_task_that_never_ran_has_no_assignment(subject: Subject) -> None:
    expired = never_run(state="REVOKED", cause="expired", pid=None)
    task, assignments = written(subject, expired, expired)
    assert (task["state"], task["cause"], task["attempts"]) == ("REVOKED", "expired", 0)
    assert task["sla_success"] is False
    assert assignments == []
    task, assignments = written(subject, execution(started_at=R + 2))
    assert (task["state"], task["attempts"], len(assignments)) == ("SUCCESS", 1, 1)


def test_a_task_that_retries_for_ever_stays_small(subject: Subject) -> None:
    runs = [
        entry(retried(retries=n, started_at=R + n, completed_at=R + n + 0.5))
        for n in range(250)
    ]
    for batch in (runs[:120], *([run] for run in runs[120:130]), runs[130:]):
        subject.ledger.write(batch)
    task = subject.documents()[0][0]
    assert (task["attempts"], len(task["_runs"])) == (250, 100)


HOSTILE: list[dict[str, Any]] = [
    {"name": "null\0byte", "queue": "\ud800", "worker": "x" * 100_000, "root_id": "\udfff\0"},
    {"task_id": "i" * 1_000_000},
    {"task_id": "", "run_id": ""},
    {"task_id": "$where", "name": "a.$b", "queue": "$"},
    {"pid": 2**70, "max_rss_bytes": -(2**63) - 1, "retries": 2**64, "priority": 2**63},
    {"cpu_s": math.nan, "runtime_s": math.inf, "tau": math.nan, "k": -math.inf},
    {"arrival": 1e300, "deadline": math.inf, "completed_at": math.inf, "started_at": -1e30},
    {"arrival": math.nan, "deadline": math.nan},
    {"deadline": math.nan, "completed_at": None, "cause": "overdue"},
    {"completed_at": math.nan, "again_at": 1e300, "published_at": -math.inf},
    {"started_at": "yesterday", "runtime_s": [], "cpu_s": {}, "pid": "1", "tau": None},
    {"name": None, "queue": 5, "worker": ["w"], "instance": {"a": 1}, "state": 3, "cause": 4},
    {"load_at_start": {"a.b": 1, "$set": 2, "\0": [2**70] * 500, "d": {"e": {"f": {"g": 1}}}}},
    {"load_at_start": {"load": "\ud800", "cpu": math.nan, "gpus": [{"index": 0}], "": True}},
    {"load_at_start": {str(n): n for n in range(5000)}},
    {"load_at_start": reduce(lambda inner, _: {"of": inner}, range(250), {})},
    {"load_at_start": [1, 2], "runtime_s": 10**400, "arrival": 10**400},
    {"queue": {}, "parent_id": [], "root_id": 0, "cause": False},
    {"pid": [], "cpu_s": {}, "max_rss_bytes": ""},
    {"load_at_start": {"load": object()}},
    {"task_id": 7, "run_id": None, "parent_id": b"\xff", "type_source": 1.5},
    *({name: object()} for name in Execution._fields),
]


def test_no_record_poisons_a_batch(subject: Subject) -> None:
    runs = [
        execution(**{"task_id": f"h{n}", "run_id": f"r{n}", **changes})
        for n, changes in enumerate(HOSTILE)
    ]
    entries = [entry(run) for run in runs] + [entry(execution())]
    subject.ledger.write(entries)
    tasks, assignments = subject.documents()
    assert len(tasks) == len(assignments) == len(entries)
    subject.ledger.write(entries)
    assert subject.documents() == (tasks, assignments)
    for document in tasks + assignments:
        for value in document.values():
            assert not isinstance(value, str) or len(value) <= MAX_TEXT
            assert not isinstance(value, float) or math.isfinite(value)
        for name in ("queue", "parent_id", "root_id", "cause"):
            assert isinstance(document.get(name), str | None)
        for name in ("pid", "cpu_s", "max_rss_bytes", "runtime_s", "tau", "retries"):
            assert isinstance(document.get(name), int | float | None)
    wrong: list[Any] = [("x", 1.0), (1.0, math.nan), (1.0, 2.0, object(), 10**400)]
    wrong += [(1.0, 2.0, object()), (1.0, 2.0, None, object())]
    subject.ledger.write(
        [entry(execution(task_id=f"l{n}"), Learned(*taus)) for n, taus in enumerate(wrong)]
    )
    found = {a["task_id"]: a["tau_before"] for a in subject.documents()[1]}
    assert (found["l0"], found["l1"], found["l2"]) == (None, None, 1.0)


def test_a_record_that_is_cleaned_keeps_what_can_be_stored(subject: Subject) -> None:
    """So is each of a worker with GPUs, and of a task whose name is not ASCII."""
    gpus = [{"index": 0, "utilization": 0.5, "memory": None}]
    usual = execution(
        name="später",
        parent_id="p",
        cause="rejected",
        priority=3,
        again_at=R + 8.5,
        published_at=R - 30.0,
        max_rss_bytes=2**63 - 1,
        load_at_start={"load": 0.5, "gpus": gpus},
    )
    learned = Learned(5.0, 4.5, 3.0, 2.5)
    assert (cleaned(usual), cleaned_learned(learned)) == (usual, learned)
    assert cleaned(never_run(name="später")) == never_run(name="später")
    subject.ledger.write([entry(usual, learned)])
    ((task,), (assignment,)) = subject.documents()
    assert (task["name"], task["queue"], task["parent_id"]) == ("später", "celery", "p")
    assert (assignment["load_at_start"]["gpus"], assignment["name_tau_after"]) == (gpus, 2.5)


def test_instants_beyond_the_calendar_are_at_its_ends(subject: Subject) -> None:
    task, _ = written(subject, execution(arrival=-1e30, deadline=1e30))
    assert (task["arrival"].year, task["deadline"].year) == (1, 9999)


def test_cut_ids_stay_apart(subject: Subject) -> None:
    for end in "ab":
        subject.ledger.write([entry(execution(task_id="i" * 5000 + end))])
    tasks, assignments = subject.documents()
    assert len(tasks) == len(assignments) == 2


def test_a_refused_entry_is_taken(subject: Subject) -> None:
    subject.ledger.refuse("what is that", "not JSON")
    assert subject.documents() == ([], [])


def test_snapshot_of_the_taus(subject: Subject) -> None:
    assert subject.ledger.load_taus() == {}
    first = {"mixed": TauEntry(1.5, 3, 0.5), "mixed/a.$b": TauEntry(2.0, 1, 0.0)}
    subject.ledger.save_taus(first)
    assert subject.ledger.load_taus() == first
    second = {"mixed": TauEntry(9.0, 4, 0.25)}
    subject.ledger.save_taus(second)
    assert subject.ledger.load_taus() == second
    subject.ledger.save_taus({})
    assert subject.ledger.load_taus() == {}


def test_a_bad_entry_of_the_snapshot_costs_no_other(on_mongo: OnMongo) -> None:
    ledger = on_mongo.ledger
    good = {"mixed": TauEntry(3.0, 2, 1.0)}
    ledger.save_taus(good)
    row = {"tau": 1.0, "count": 1, "deviation": 1.0}
    bad = [{"tau": "x"}, {"count": None}, {"deviation": {}}, {"count": float("inf")}]
    ledger.database["tau"].insert_many([{**row, **each} for each in bad])
    ledger.database["tau"].insert_many([{"_id": "half", "tau": 1.0}, {**row, "_id": 5}])
    assert ledger.load_taus() == good


def test_refused_entries_are_kept_and_bounded(on_mongo: OnMongo) -> None:
    refused = on_mongo.ledger.database.refused
    on_mongo.ledger.refuse({b"r": b"\xff" * 100_000}, "not JSON")
    kept = refused.find_one()
    assert kept["reason"] == "not JSON"
    assert len(kept["raw"]) <= 16384
    assert refused.options()["capped"] is True


def test_a_document_of_another_version_is_merged(on_mongo: OnMongo) -> None:
    """Documents that hold the pinned fields only are understood."""
    ledger = on_mongo.ledger
    ledger.prepare()
    ledger.database.tasks.insert_one({"_id": "t", "state": "FAILURE", "attempts": 1})
    ledger.database.assignments.insert_one({"_id": execution().run_id, "state": "LOST"})
    task, (assignment,) = written(on_mongo, execution())
    assert (task["state"], assignment["state"]) == ("SUCCESS", "SUCCESS")
