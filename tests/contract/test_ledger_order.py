"""Records reach the ledger in any order, any number of times, from several drains at once."""

from __future__ import annotations

import random
import threading
from datetime import datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rts.ledger.documents import Document, documents
from rts.ledger.merging import merge_tasks
from rts.ledger.mongo import MongoLedger
from rts.ledger.writes import insert, store
from rts.records import Execution, is_provisional
from tests.ledgers import (
    UTC,
    InMemory,
    OnMongo,
    R,
    Subject,
    entry,
    execution,
    failed,
    killed,
    lost,
    never_run,
    overdue,
    retried,
)

STATES = st.sampled_from(
    [
        "SUCCESS",
        "FAILURE",
        "RETRY",
        "REPLACED",
        "REQUEUED",
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
                    runs.append(killed(**ended))
                case "PENDING":
                    runs.append(overdue())
                case "STARTED":
                    runs.append(overdue(**at, state=kind, started_at=start))
                case "REVOKED":
                    end = {**at, "completed_at": start + length, "cause": "revoked"}
                    runs.append(never_run(**end, state=kind))
                case _:
                    runs.append(execution(**ended, state=kind))
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
                        runs.append(killed(**run))
                    case _:
                        runs.append(never_run(**{**run, "started_at": None}))
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
    told = (run for run in history if run.ran and is_provisional(run.state, run.cause))
    if any(told) or any(run.cause == "overdue" for run in history):
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
    on_mongo.ledger.database.assignments.insert_one(assignment)
    store(on_mongo.ledger.database.tasks, {task["_id"]: task}, merge, insert)
    assert on_mongo.documents()[0] == outcome(InMemory(), runs, random.Random(0))[0]
    assert on_mongo.documents()[0][0]["attempts"] == 3


def test_drains_that_write_the_same_at_once(on_mongo: OnMongo, emptied_url: str) -> None:
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
    ledgers = [on_mongo.ledger, *(OnMongo(emptied_url).ledger for _ in range(3))]
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
