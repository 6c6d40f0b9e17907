"""Read the runs of a window from the ledger, in batches and with few fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from sys import intern
from typing import Any

from rts.fields import priority_of
from rts.keys import ASSIGNMENTS, TASKS
from rts.ledger.connection import LedgerDatabase
from rts.records import DROPPED, NOT_FINAL
from rts.simulation.recording import Run
from rts.validation import finite
from rts.views.intervals import Window, in_window

#: Maximum number of runs to read: the latest of the window.
MAX_RUNS = 1_000_000
#: Runs per batch from the server: a few megabytes.
BATCH = 10_000

_FIELDS = (
    *("task_id", "name", "task_type", "arrival", "deadline", "tau", "started_at"),
    *("completed_at", "runtime_s", "state", "cause", "sla_success", "retries", "worker", "pid"),
    *("priority", "again_at", "published_at", "queue"),
)


def count(database: LedgerDatabase, window: Window, queue: str | None = None) -> int:
    """Return how many runs :func:`runs` would yield; ``MAX_RUNS + 1``: there are more."""
    query = _query(window, queue)
    return int(database[ASSIGNMENTS].count_documents(query, limit=MAX_RUNS + 1))


def runs(database: LedgerDatabase, window: Window, queue: str | None = None) -> Iterator[Run]:
    """Yield the runs that ended in *window*, latest first, at most :data:`MAX_RUNS`; then the
    tasks that were dropped in it, as if each had run for its tau: another order, or more slots,
    would have run them.

    *queue*: only those from this queue. Runs without a known start and malformed documents are
    left out.

    Raises:
        PyMongoError: the server did not answer.
    """
    assignments = database[ASSIGNMENTS]
    query = _query(window, queue)
    # Runs older than those that are read are not looked at: a busy day has many millions.
    ends = assignments.find(query, {"_id": 0, "completed_at": 1}).sort("completed_at", -1)
    for first in ends.skip(MAX_RUNS - 1).limit(1):
        window = first["completed_at"], window[1]
        query = _query(window, queue)
    again = {"state": {"$in": [*NOT_FINAL]}}
    retried = {"$or": [again, {"cause": {"$ne": None}}, {"retries": {"$gt": 0}}]}
    marked = assignments.find({**query, **retried}, {"task_id": 1})
    repeated = {str(document.get("task_id")) for document in marked}
    families = _Families(repeated, _parents(database, window))
    found = assignments.find(query, dict.fromkeys(_FIELDS, 1), batch_size=BATCH)
    with found.sort("completed_at", -1).limit(MAX_RUNS) as documents:
        yield from _readable(documents, families)
    query = {**_query(window, queue, TASKS), "cause": DROPPED}
    dropped = database[TASKS].find(query, dict.fromkeys(_FIELDS, 1), batch_size=BATCH)
    yield from _readable(map(_as_run, dropped), families)


class _Families:
    """What is known of tasks by their ids."""

    def __init__(self, repeated: set[str], parents: dict[str, str]) -> None:
        #: Those that may have several runs.
        self.repeated = repeated
        #: The task that each one was published by, and all of these.
        self.parents = parents
        self.publishers = set(parents.values())


def _parents(database: LedgerDatabase, window: Window) -> dict[str, str]:
    """Return the ids of the tasks that others have published, by the ids of those."""
    query = {**_query(window, None, TASKS), "parent_id": {"$type": "string"}}
    found = database[TASKS].find(query, {"parent_id": 1}, batch_size=BATCH).limit(MAX_RUNS)
    return {intern(str(task["_id"])): intern(task["parent_id"]) for task in found}


def _as_run(task: dict[str, Any]) -> dict[str, Any]:
    """Return the document that a dropped task would have if it had run for its tau."""
    ran = {"started_at": task.get("completed_at"), "runtime_s": task.get("tau"), "pid": None}
    return {**task, "task_id": str(task["_id"]), **ran}


def _readable(documents: Iterable[dict[str, Any]], families: _Families) -> Iterator[Run]:
    for document in documents:
        try:
            run = _run(document, families)
        except (KeyError, TypeError, AttributeError):
            continue  # malformed
        if run is not None:
            yield run


def _query(window: Window, queue: str | None, of: str = ASSIGNMENTS) -> dict[str, Any]:
    ended = in_window(of, window)
    return ended if queue is None else {**ended, "queue": queue}


def _run(document: dict[str, Any], families: _Families) -> Run | None:
    started, arrival = document["started_at"], document["arrival"]
    if started is None or arrival is None or document["deadline"] is None:
        return None
    started_at, completed_at = started.timestamp(), document["completed_at"].timestamp()
    runtime_s = finite(document["runtime_s"])
    task_id, again_at = document["task_id"], document.get("again_at")
    published_at = document.get("published_at")
    return Run(
        name=intern(document["name"]),
        task_type=intern(document["task_type"]),
        arrival=arrival.timestamp(),
        tau=finite(document["tau"]),
        deadline=document["deadline"].timestamp(),
        started_at=started_at,
        completed_at=completed_at,
        runtime_s=max(0.0, completed_at - started_at if runtime_s is None else runtime_s),
        state=document["state"],
        cause=document["cause"],
        met=document["sla_success"],
        retries=document["retries"],
        place=(document["worker"], document["pid"]),
        task_id=task_id if task_id in families.repeated else None,
        priority=priority_of(document.get("priority")),
        again_at=None if again_at is None else again_at.timestamp(),
        key=intern(task_id) if task_id in families.publishers else "",
        parent=families.parents.get(task_id, ""),
        queue=intern(str(document.get("queue") or "")),
        published_at=None if published_at is None else published_at.timestamp(),
    )
