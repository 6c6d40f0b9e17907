"""The rules of the ledger, on the twin in memory and on a real MongoDB."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.errors import InvalidURI, OperationFailure

from rts.errors import StoreUnavailable
from rts.ledger.connection import connect
from rts.ledger.documents import Document, documents
from rts.ledger.merging import merge_tasks
from rts.ledger.mongo import PREPARE_S, MongoLedger
from rts.ledger.storable import MAX_TEXT
from rts.ledger.writes import insert, store
from rts.ports import TauEntry
from rts.records import Execution, Learned, OutboxEntry
from rts.settings import Settings
from rts.testing.servers import MongoServer
from tests.memory_ledger import MemoryLedger

#: Whole seconds, so that arithmetic on instants is exact.
R = 1_900_000_000.0
UTC = timezone.utc


def execution(**changes: Any) -> Execution:
    """Return a run that succeeds 3 s after its arrival, 7 s before its deadline."""
    defaults: dict[str, Any] = {
        "task_id": "t",
        "name": "proj.add",
        "task_type": "cpu-light",
        "type_source": "explicit",
        "tau": 5.0,
        "k": 2.0,
        "arrival": R,
        "deadline": R + 10,
        "arrival_source": "published",
        "queue": "celery",
        "retries": 0,
        "parent_id": None,
        "root_id": "t",
        "worker": "celery@a",
        "instance": "celery@a:1:1",
        "pid": 42,
        "started_at": R + 1,
        "load_at_start": {"load": 0.5, "cpu": 0.25, "memory": 0.75, "age_s": 0.125},
        "completed_at": R + 3,
        "runtime_s": 2.0,
        "cpu_s": 1.5,
        "max_rss_bytes": 50_000_000,
        "state": "SUCCESS",
    }
    values = {**defaults, **changes}
    if "run_id" not in values:
        start = values["started_at"]
        moment = "-" if start is None else f"{start * 1e6:.0f}"
        who = values["pid"] or values["instance"]
        values["run_id"] = f"{values['task_id']}:{values['retries']}:{who}:{moment}"
    return Execution(**values)


def retried(**changes: Any) -> Execution:
    return execution(**{"state": "RETRY", "cause": None, **changes})


def failed(**changes: Any) -> Execution:
    return execution(**{"state": "FAILURE", **changes})


def lost(**changes: Any) -> Execution:
    """Return a run whose worker vanished; its note tells of the start."""
    return execution(
        **{
            "state": "LOST",
            "cause": "lost",
            "runtime_s": None,
            "cpu_s": None,
            "max_rss_bytes": None,
            "completed_at": R + 60,
            **changes,
        }
    )


def killed(**changes: Any) -> Execution:
    """Return an end that the main process wrote, with no note of the start."""
    return lost(
        **{
            "state": "FAILURE",
            "cause": "killed",
            "started_at": None,
            "load_at_start": None,
            "completed_at": R + 4,
            **changes,
        }
    )


def overdue(**changes: Any) -> Execution:
    """Return the verdict on a task that has not ended by its deadline."""
    values = {"state": "PENDING", "started_at": None, "pid": None, "worker": "", **changes}
    if values["state"] == "PENDING":
        values["instance"] = ""
    never = {"completed_at": None, "runtime_s": None, "cpu_s": None, "max_rss_bytes": None}
    verdict = {"cause": "overdue", "load_at_start": None, "ran": False}
    return execution(**never, **verdict, **values)


def entry(run: Execution, learned: Learned | None = None, number: int = 1) -> OutboxEntry:
    return OutboxEntry(f"{number}-0", run, learned)


class Subject(Protocol):
    """A ledger and a way to look into it."""

    ledger: MemoryLedger | MongoLedger

    def documents(self) -> tuple[list[Document], list[Document]]:
        """Return all tasks and all assignments, by ``_id``, private fields left out."""


def public(found: list[Document]) -> list[Document]:
    """Return documents without what only the store needs."""
    found = [{k: v for k, v in d.items() if k != "_rev"} for d in found]
    return sorted(found, key=lambda d: d["_id"])


class InMemory:
    def __init__(self) -> None:
        self.ledger = MemoryLedger()

    def documents(self) -> tuple[list[Document], list[Document]]:
        return (
            public(list(self.ledger.tasks.values())),
            public(list(self.ledger.assignments.values())),
        )


class OnMongo:
    def __init__(self, url: str) -> None:
        self.ledger = MongoLedger(Settings(mongo_url=url, ledger_ttl=0))

    def documents(self) -> tuple[list[Document], list[Document]]:
        database = self.ledger.database
        return public(list(database.tasks.find())), public(list(database.assignments.find()))


@pytest.fixture
def on_mongo(rts_mongo_url: str) -> Iterator[OnMongo]:
    subject = OnMongo(rts_mongo_url)
    yield subject
    subject.ledger.close()


@pytest.fixture(params=["memory", "mongo"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        return InMemory()
    found: Subject = request.getfixturevalue("on_mongo")
    return found


def written(subject: Subject, *runs: Execution) -> tuple[Document, list[Document]]:
    """Write each run in a batch of its own; return the one task and its assignments."""
    for run in runs:
        subject.ledger.write([entry(run)])
    tasks, assignments = subject.documents()
    assert len(tasks) == 1
    return tasks[0], assignments


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
    assert task["arrival"].tzinfo is not None


def test_twice_changes_nothing(subject: Subject) -> None:
    runs = [entry(execution(task_id=f"t{n}"), Learned(5, 4)) for n in range(5)]
    subject.ledger.write(runs)
    before = subject.documents()
    subject.ledger.write(runs)
    subject.ledger.write(list(reversed(runs)) * 2)
    assert subject.documents() == before


def test_nothing_to_write(subject: Subject) -> None:
    subject.ledger.write([])
    assert subject.documents() == ([], [])


def test_late_and_on_the_dot(subject: Subject) -> None:
    subject.ledger.write(
        [
            entry(execution(task_id="dot", completed_at=R + 10)),
            entry(execution(task_id="late", completed_at=R + 10.5)),
        ]
    )
    dot, late = subject.documents()[0]
    assert (dot["sla_success"], dot["lateness_s"]) == (True, 0.0)
    assert (late["sla_success"], late["lateness_s"]) == (False, 0.5)


def at(second: float) -> datetime:
    return datetime.fromtimestamp(R + second, UTC)


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


def test_a_backlog_that_ends_late(subject: Subject) -> None:
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
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("known", [execution(), failed(), retried(), lost()])
def test_an_end_without_a_start_makes_no_second_assignment(
    subject: Subject, known: Execution, together: bool, turned: bool
) -> None:
    runs = [known, killed(), killed(pid=None, completed_at=R + 5)]
    runs = runs[::-1] if turned else runs
    if together:
        subject.ledger.write([entry(run) for run in runs])
    else:
        written(subject, *runs)
    subject.ledger.write([entry(killed())])
    (task,), (assignment,) = subject.documents()
    assert task["attempts"] == 1
    assert assignment["started_at"] is not None
    assert assignment["_id"] == known.run_id
    state = "FAILURE" if known.state == "LOST" else known.state
    assert (task["state"], assignment["state"]) == (state, state)
    if known.state == "LOST":  # the end is that of the report, the start that of the note
        assert assignment["cause"] == "killed"
        assert assignment["completed_at"] == datetime.fromtimestamp(R + 4, UTC)


def test_an_end_without_a_start_alone(subject: Subject) -> None:
    task, assignments = written(subject, killed(), killed(pid=None, completed_at=R + 5))
    assert (task["attempts"], task["cause"], task["started_at"]) == (1, "killed", None)
    assert [a["_id"] for a in assignments] == ["t:0:42:-"]
    task, assignments = written(subject, killed(instance="celery@b:2:2", pid=1))
    assert (task["attempts"], len(assignments)) == (2, 2)


@pytest.mark.parametrize("own_first", [True, False])
def test_a_runs_own_end_takes_precedence_over_one_written_on_its_behalf(
    subject: Subject, own_first: bool
) -> None:
    own = failed(completed_at=R + 8)
    given = own._replace(cause="killed", runtime_s=None, completed_at=R + 4)
    task, _ = written(subject, *((own, given) if own_first else (given, own)))
    assert (task["cause"], task["lateness_s"]) == (None, own.completed_at - own.deadline)


def test_a_task_that_never_ran(subject: Subject) -> None:
    expired = killed(ran=False, state="REVOKED", cause="expired", pid=None)
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
    subject.ledger.write(runs[:120])
    for run in runs[120:]:
        subject.ledger.write([run])
    task = subject.documents()[0][0]
    assert (task["attempts"], len(task["_runs"])) == (250, 100)


HOSTILE: list[dict[str, Any]] = [
    {"name": "null\0byte", "queue": "\ud800", "worker": "x" * 100_000, "root_id": "\udfff\0"},
    {"task_id": "i" * 1_000_000},
    {"task_id": "", "run_id": ""},
    {"task_id": "$where", "name": "a.$b", "queue": "$"},
    {"pid": 2**70, "max_rss_bytes": -(2**63) - 1, "retries": 2**64},
    {"cpu_s": math.nan, "runtime_s": math.inf, "tau": math.nan, "k": -math.inf},
    {"arrival": 1e300, "deadline": math.inf, "completed_at": math.inf, "started_at": -1e30},
    {"arrival": math.nan, "deadline": math.nan},
    {"completed_at": math.nan},
    {"started_at": "yesterday", "runtime_s": [], "cpu_s": {}, "pid": "1", "tau": None},
    {"name": None, "queue": 5, "worker": ["w"], "instance": {"a": 1}, "state": 3, "cause": 4},
    {"load_at_start": {"a.b": 1, "$set": 2, "\0": [2**70] * 500, "d": {"e": {"f": {"g": 1}}}}},
    {"load_at_start": {"load": "\ud800", "cpu": math.nan, "gpus": [{"index": 0}], "": True}},
    {"load_at_start": {str(n): n for n in range(5000)}},
    {"load_at_start": [1, 2], "runtime_s": 10**400, "arrival": 10**400},
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
    wrong: list[Any] = [("x", 1.0), (1.0, math.nan), (1.0, 2.0, object(), 10**400)]
    subject.ledger.write(
        [entry(execution(task_id=f"l{n}"), Learned(*taus)) for n, taus in enumerate(wrong)]
    )
    found = {a["task_id"]: a["tau_before"] for a in subject.documents()[1]}
    assert (found["l0"], found["l1"], found["l2"]) == (None, None, 1.0)


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


# -- any order, any number of times ----------------------------------------------------

STATES = st.sampled_from(
    [
        "SUCCESS",
        "FAILURE",
        "RETRY",
        "REPLACED",
        "LOST",
        "killed",
        "REVOKED",
        "PENDING",
        "STARTED",
    ]
)


@st.composite
def histories(draw: st.DrawFn) -> list[Execution]:
    """Return runs of one task: attempts on several workers, some reported twice, some of
    what has taken its place.
    """
    runs: list[Execution] = []
    for n in range(draw(st.integers(1, 5))):
        at = {
            "arrival": R + draw(st.integers(0, 2)),
            "arrival_source": draw(st.sampled_from(["published", "received"])),
            "retries": draw(st.integers(0, 2)),
            "instance": f"celery@{n}:1:1",
            "worker": f"celery@{n}",
            "pid": n + 1,
        }
        start, length = R + draw(st.integers(0, 30)), draw(st.integers(1, 20))
        ended = {**at, "started_at": start, "completed_at": start + length}
        kinds = draw(st.lists(STATES, min_size=1, max_size=4, unique=True))
        for kind in kinds:
            match kind:
                case "LOST":
                    runs.append(lost(**at, started_at=start))
                case "killed":
                    for twice in range(draw(st.integers(1, 2))):
                        runs.append(killed(**at, completed_at=start + length + twice))
                case "PENDING":
                    runs.append(overdue())
                case "STARTED":
                    runs.append(overdue(**at, state=kind, started_at=start))
                case "REVOKED":
                    end = {**at, "completed_at": start + length, "cause": "revoked"}
                    runs.append(killed(**end, ran=False, state=kind))
                case _:
                    runtime_s = draw(st.sampled_from([None, float(length)]))
                    cause = "killed" if runtime_s is None and kind == "FAILURE" else None
                    runs.append(
                        execution(**ended, state=kind, runtime_s=runtime_s, cause=cause)
                    )
    return runs


@st.composite
def lives(draw: st.DrawFn) -> list[Execution]:
    """Return the records of a task that retries, replaces itself, and loses workers; the
    last one is that of its end.
    """
    runs: list[Execution] = []
    at = R
    for _ in range(draw(st.integers(1, 3))):
        arrival = at = at + 1
        attempts = draw(st.integers(1, 3))
        for attempt in range(attempts):
            run = {"arrival": arrival, "deadline": arrival + 10, "retries": attempt}
            for broken in draw(st.lists(st.sampled_from(["lost", "killed", "waited"]))):
                at += 2
                run.update(instance=f"celery@{at}:1:1", started_at=at, completed_at=at + 1)
                match broken:
                    case "lost":
                        runs.append(lost(**run))
                    case "killed":
                        runs.append(lost(**run, state="FAILURE", cause="killed"))
                    case _:
                        runs.append(lost(**{**run, "started_at": None, "ran": False}))
            at += 2
            run.update(instance=f"celery@{at}:1:1", started_at=at, completed_at=at + 1)
            runs.append(retried(**run))
        runs[-1] = runs[-1]._replace(state="REPLACED")
    return [*runs[:-1], runs[-1]._replace(state=draw(st.sampled_from(["FAILURE", "SUCCESS"])))]


def outcome(subject: Subject, runs: list[Execution], sizes: random.Random) -> Any:
    """Write the runs in batches of random sizes and return what is stored."""
    left = list(runs)
    while left:
        size = sizes.randint(1, 4)
        subject.ledger.write([entry(run) for run in left[:size]])
        left = left[size:]
    return subject.documents()


@given(history=histories(), shuffled=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_order_and_repetition_do_not_matter_in_memory(
    history: list[Execution], shuffled: random.Random
) -> None:
    expected = outcome(InMemory(), history, random.Random(0))
    again = history + shuffled.choices(history, k=3)
    shuffled.shuffle(again)
    assert outcome(InMemory(), again, shuffled) == expected
    task, assignments = expected[0][0], expected[1]
    assert task["attempts"] == len(assignments)
    assert (task["verdict_at"] is None) is (task["sla_success"] is None)
    if any(run.cause == "overdue" for run in history):
        assert task["sla_success"] is not None


@given(life=lives(), shuffled=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_a_task_has_the_verdict_of_its_end_whatever_came_before_it(
    life: list[Execution], shuffled: random.Random
) -> None:
    end = life[-1]
    records = life + shuffled.choices(life, k=3)
    shuffled.shuffle(records)
    ((task,), _) = outcome(InMemory(), records, shuffled)
    assert (task["run_id"], task["state"]) == (end.run_id, end.state)
    assert task["completed_at"] == datetime.fromtimestamp(end.completed_at or 0.0, UTC)
    assert task["sla_success"] is (end.completed_at <= end.deadline)


@given(history=histories(), shuffled=st.randoms(use_true_random=False))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_order_and_repetition_do_not_matter_on_mongo(
    on_mongo: OnMongo, history: list[Execution], shuffled: random.Random
) -> None:
    expected = outcome(InMemory(), history, random.Random(0))
    on_mongo.ledger.database.tasks.delete_many({})
    on_mongo.ledger.database.assignments.delete_many({})
    again = history + shuffled.choices(history, k=2)
    shuffled.shuffle(again)
    assert outcome(on_mongo, again, shuffled) == expected


def test_a_merge_that_another_drain_has_overtaken_is_repeated(on_mongo: OnMongo) -> None:
    runs = [lost(instance="celery@a:1:1"), retried(started_at=R + 5), failed(retries=1)]
    first, overtaking, last = map(entry, runs)
    on_mongo.ledger.write([first])
    waiting = [overtaking]

    def merge(stored: Document, new: Document) -> Document:
        if waiting:
            on_mongo.ledger.write([waiting.pop()])
        return merge_tasks(stored, new)

    task, assignment = documents(last)
    assert assignment is not None
    on_mongo.ledger.database.assignments.insert_one(assignment)
    store(on_mongo.ledger.database.tasks, {task["_id"]: task}, merge, insert)
    assert on_mongo.documents()[0] == outcome(InMemory(), runs, random.Random(0))[0]
    assert on_mongo.documents()[0][0]["attempts"] == 3


def test_drains_that_write_the_same_at_once(on_mongo: OnMongo, rts_mongo_url: str) -> None:
    """Four drains, one task whose six runs are told in pieces, each in its own order."""
    runs = [
        lost(instance="celery@a:1:1"),
        killed(instance="celery@a:1:1"),
        retried(instance="celery@b:1:1", pid=2, started_at=R + 5, completed_at=R + 6),
        failed(instance="celery@b:1:1", pid=2, retries=1, completed_at=R + 8),
        execution(instance="celery@c:1:1", pid=3, started_at=R + 7, completed_at=R + 9),
        lost(instance="celery@d:1:1", pid=4, retries=2),
    ]
    copies = [
        r._replace(task_id=f"{n}", run_id=f"{n}{r.run_id}") for n in range(20) for r in runs
    ]
    expected = outcome(InMemory(), copies, random.Random(0))
    ledgers = [on_mongo.ledger, *(OnMongo(rts_mongo_url).ledger for _ in range(3))]
    problems: list[BaseException] = []

    def drain(ledger: MongoLedger, seed: int) -> None:
        mine = list(copies)
        random.Random(seed).shuffle(mine)
        try:
            for start in range(0, len(mine), 15):
                ledger.write([entry(run) for run in mine[start : start + 15]])
        except BaseException as exc:  # noqa: BLE001 - handed to the test's own thread
            problems.append(exc)

    threads = [
        threading.Thread(target=drain, args=(ledger, seed))
        for seed, ledger in enumerate(ledgers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for ledger in ledgers[1:]:
        ledger.close()
    assert problems == []
    assert on_mongo.documents() == expected


# -- MongoDB only ----------------------------------------------------------------------


def test_an_unavailable_server() -> None:
    url = "mongodb://user:secret@127.0.0.1:9/rts?serverSelectionTimeoutMS=50"
    ledger = MongoLedger(Settings(mongo_url=url))
    calls: list[Callable[[], object]] = [
        lambda: ledger.write([entry(execution())]),
        lambda: ledger.refuse(b"x"),
        lambda: ledger.save_taus({}),
        ledger.load_taus,
        ledger.prepare,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert caught.value.__cause__ is not None
        assert "secret" not in str(caught.value)
    ledger.close()
    with pytest.raises(StoreUnavailable):
        ledger.load_taus()


def test_a_url_that_is_wrong() -> None:
    with pytest.raises(InvalidURI) as caught:
        connect("mongodb://user:secret@host:port/rts")
    assert "secret" not in str(caught.value)


def test_the_url_wins(rts_mongo_url: str) -> None:
    client = connect(rts_mongo_url + "?w=1&serverSelectionTimeoutMS=123")
    assert client.write_concern.document == {"w": 1}
    assert client.options.server_selection_timeout == 0.123
    client.close()
    client = connect("mongodb://localhost:9")
    concern = client.write_concern.document
    assert (concern["w"], concern["j"]) == ("majority", True)
    client.close()


def test_a_document_error_surfaces(on_mongo: OnMongo) -> None:
    """A validator of the operators' own refuses one record; the others are stored."""
    ledger = on_mongo.ledger
    ledger.prepare()
    ledger.database.command("collMod", "assignments", validator={"pid": {"$lt": 1000}})
    good, bad = entry(execution(task_id="g")), entry(execution(task_id="b", pid=1000))
    with pytest.raises(OperationFailure):
        ledger.write([bad, good])
    ledger.write([good])
    assert [t["_id"] for t in on_mongo.documents()[0]] == ["g"]


@pytest.mark.parametrize("name", ["arrival_1", "mine"])
def test_a_foreign_time_to_live_is_replaced(rts_mongo_url: str, name: str) -> None:
    for ttl_s in (100.0, 0.0):
        ledger = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=ttl_s))
        tasks = ledger.database["tasks"]
        if ttl_s:
            tasks.create_index("arrival", name=name, expireAfterSeconds=60)
        ledger.prepare()
        (index,) = (
            i for i in tasks.index_information().values() if i["key"] == [("arrival", 1)]
        )
        assert index.get("expireAfterSeconds", 0) == ttl_s
        ledger.close()


def test_foreign_indexes_under_other_names_serve_as_well(rts_mongo_url: str) -> None:
    settings = Settings(mongo_url=rts_mongo_url, ledger_ttl=0)
    ledger = MongoLedger(settings)
    ledger.prepare()
    for name in ("tasks", "assignments"):
        collection = ledger.database[name]
        for own, index in collection.index_information().items():
            if own != "_id_":
                collection.drop_index(own)
                options = {k: index[k] for k in index.keys() - {"key", "v"}}
                collection.create_index(index["key"], name=f"mine_{own}", **options)
    ledger.close()
    again = MongoLedger(settings)
    again.write([entry(execution())])
    assert again.database["assignments"].count_documents({}) == 1
    again.close()


IN_THE_WAY: dict[str, Callable[[Any], object]] = {
    "An existing index has the same name": lambda database: database[
        "assignments"
    ].create_index("x", name="misses"),
    "tasks is a view": lambda database: database.command(
        "create", "tasks", viewOn="x", pipeline=[]
    ),
}


@pytest.mark.parametrize("reason", IN_THE_WAY)
def test_a_conflicting_collection_is_reported_and_no_record_refused(
    on_mongo: OnMongo, reason: str
) -> None:
    ledger = on_mongo.ledger
    IN_THE_WAY[reason](ledger.database)
    for work in (lambda: ledger.write([entry(execution())]), lambda: ledger.refuse(b"x")):
        with pytest.raises(StoreUnavailable, match=reason) as caught:
            work()
        assert ledger.database.name in str(caught.value)


@pytest.mark.parametrize("name", ["tasks", "assignments", "rollups"])
def test_the_documents_of_another_app_do_not_expire(rts_mongo_url: str, name: str) -> None:
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url))
    theirs = ledger.database[name]
    names = ("arrival", "completed_at", "start")
    theirs.insert_one(dict.fromkeys(names, datetime(2020, 1, 1, tzinfo=timezone.utc)))
    for each in names:
        theirs.create_index(each)
    before = theirs.index_information()
    with pytest.raises(StoreUnavailable, match=f"{name} holds documents that are not of rts"):
        ledger.write([entry(execution())])
    assert theirs.index_information() == before
    assert theirs.count_documents({}) == 1
    ledger.close()


def test_a_ledger_with_a_document_that_somebody_added_is_used(rts_mongo_url: str) -> None:
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url))
    ledger.prepare()
    ledger.database["tasks"].insert_one({"_id": "added"})
    again = MongoLedger(Settings(mongo_url=rts_mongo_url))
    again.write([entry(execution())])
    assert again.database["tasks"].count_documents({}) == 2
    again.close()
    ledger.close()


def test_a_foreign_unique_index_is_reported(on_mongo: OnMongo) -> None:
    ledger = on_mongo.ledger
    ledger.write([entry(execution())])
    ledger.database["tasks"].create_index("name", unique=True)
    with pytest.raises(OperationFailure, match="name_1"):
        ledger.write([entry(execution(task_id="other"))])


def test_a_bad_entry_of_the_snapshot_costs_no_other(on_mongo: OnMongo) -> None:
    ledger = on_mongo.ledger
    good = {"mixed": TauEntry(3.0, 2, 1.0)}
    ledger.save_taus(good)
    row = {"tau": 1.0, "count": 1, "deviation": 1.0}
    bad = [{"tau": "x"}, {"count": None}, {"deviation": {}}, {"count": float("inf")}]
    ledger.database["tau"].insert_many([{**row, **each} for each in bad])
    ledger.database["tau"].insert_many([{"_id": "half", "tau": 1.0}, {**row, "_id": 5}])
    assert ledger.load_taus() == good


@pytest.mark.parametrize("code", [8, 14031, 10107, 11600, 13])
def test_errors_that_are_not_about_a_record(faulty: FaultyServer, code: int) -> None:
    """The server itself fails, by its own fail points: disk full, not primary, …"""
    subject = OnMongo(faulty.url)
    subject.ledger.write([entry(execution())])
    faulty.fails({"failCommands": ["insert", "update"], "errorCode": code})
    for run in (execution(task_id="u"), lost()):
        with pytest.raises(StoreUnavailable, match=r"Failing command|did not"):
            subject.ledger.write([entry(run)])
    faulty.works()
    subject.ledger.close()
    subject = OnMongo(faulty.url)
    subject.ledger.write([entry(execution(task_id="u"))])
    assert len(subject.documents()[0]) == 2
    subject.ledger.close()


@pytest.mark.parametrize("command", ["insert", "update"])
def test_a_majority_that_does_not_answer(faulty: FaultyServer, command: str) -> None:
    subject = OnMongo(faulty.url)
    subject.ledger.write([entry(lost())])
    concern = {"code": 64, "errmsg": "waiting for replication timed out"}
    faulty.fails({"failCommands": [command], "writeConcernError": concern})
    with pytest.raises(StoreUnavailable):
        subject.ledger.write([entry(execution())])
    faulty.works()
    subject.ledger.write([entry(execution())])
    assert subject.documents()[0][0]["state"] == "SUCCESS"
    subject.ledger.close()


class FaultyServer:
    """A server whose fail points are set over a connection of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: MongoClient[dict[str, Any]] = MongoClient(url)

    def fails(self, fault: dict[str, Any]) -> None:
        self.client.admin.command(
            "configureFailPoint", "failCommand", mode="alwaysOn", data=fault
        )

    def works(self) -> None:
        self.client.admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.fixture(scope="session")
def faulty_session() -> Iterator[FaultyServer]:
    arguments = ("--setParameter", "enableTestCommands=1")
    with MongoServer(database="faulty", arguments=arguments) as server:
        made = FaultyServer(server.url)
        yield made
        made.client.close()


@pytest.fixture
def faulty(faulty_session: FaultyServer) -> Iterator[FaultyServer]:
    """The faulty server, empty and without a fault before and after."""
    yield faulty_session
    faulty_session.works()
    faulty_session.client.drop_database("faulty")


def test_indexes_and_time_to_live(rts_mongo_url: str) -> None:
    def ttl(seconds: float) -> dict[str, Any]:
        ledger = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=seconds))
        ledger.prepare()
        again = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=seconds))
        again.prepare()
        again.close()
        found = {
            name: ledger.database[name]
            .index_information()[f"{field}_1"]
            .get("expireAfterSeconds")
            for name, field in (("tasks", "arrival"), ("assignments", "completed_at"))
        }
        ledger.close()
        return found

    assert ttl(3600) == {"tasks": 3600, "assignments": 3600}
    assert ttl(7200.5) == {"tasks": 7200, "assignments": 7200}
    assert ttl(0) == {"tasks": None, "assignments": None}
    assert ttl(0.5) == {"tasks": 1, "assignments": 1}
    assert ttl(1e18) == {"tasks": 2**31 - 1, "assignments": 2**31 - 1}


def test_indexes_come_back_after_somebody_has_dropped_the_database(rts_mongo_url: str) -> None:
    now = [0.0]
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url), now=lambda: now[0])
    ledger.write([entry(execution(task_id="before"))])
    collections = ledger.database["tasks"], ledger.database["assignments"]
    made = [set(collection.index_information()) for collection in collections]
    ledger.database.client.drop_database(ledger.database.name)
    now[0] += PREPARE_S
    ledger.write([entry(execution(task_id="after"))])
    assert [set(collection.index_information()) for collection in collections] == made
    ledger.close()


def test_a_time_to_live_that_was_changed_since_stays(rts_mongo_url: str) -> None:
    """Two drains with other settings would change it back and forth."""
    now = [0.0]
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url), now=lambda: now[0])
    ledger.prepare()
    other = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=3600))
    other.prepare()
    other.close()
    now[0] += PREPARE_S
    ledger.prepare()
    index = ledger.database["tasks"].index_information()["arrival_1"]
    assert index["expireAfterSeconds"] == 3600
    ledger.close()


def test_refused_entries_are_kept_and_bounded(on_mongo: OnMongo) -> None:
    refused = on_mongo.ledger.database.refused
    on_mongo.ledger.refuse({b"r": b"\xff" * 100_000}, "not JSON")
    kept = refused.find_one()
    assert kept is not None
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
