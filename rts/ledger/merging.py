"""What two records of one task, or of one run, come to.

Records arrive in any order and any number of times: streams are read at least
once, workers die, brokers deliver twice. Each rule here is therefore the
maximum of a total order, or a union, so that the outcome depends on the set of
the records only (a join-semilattice: Shapiro et al., *Conflict-free Replicated
Data Types*, 2011).

The verdict of a task, strongest first:

1. a SUCCESS, among several the one that completed first: the work was done then;
2. the record of what arrived last: a task that takes another one's place arrives later
   than that one did, and begins with no retries; a retry keeps its arrival. (What was
   planned where it was received came first: each delivery of it has a new arrival.)
3. the record of the most retries;
4. a run whose start is known, over one whose end alone is known, over LOST;
5. the later start (or end, where the task never ran);
6. a final state over RETRY;
7. what was found overdue, before it ended, only where nothing else is known. That it
   was remains, so that the miss stands until there is a final state, which then tells.

A run is one of its worker's *life* (``instance``): an end without a known start
belongs to the run of the same task, retries and instance, if there is one.
Such an end comes from a second report of the same death, or from the main
process about a child that had already written its end itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rts.ledger.documents import Document, certain_at
from rts.records import IGNORED, LOST, NOT_FINAL, OVERDUE, PENDING, STARTED, is_provisional

#: Runs of one task that are told apart. A task that polls by retrying for ever
#: must not grow its document for ever; past this ``attempts`` follows ``retries``.
MAX_RUNS = 100

_BEGINNING = datetime(1, 1, 1, tzinfo=timezone.utc)

#: Fields of an assignment that tell how the run ended; the rest is known from its start.
_END = ("completed_at", "runtime_s", "state", "cause", "sla_success", "lateness_s")

Triple = tuple[str, int, str]


def merge_tasks(stored: Document, new: Document) -> Document:
    """Return what the ``tasks`` documents of the same task come to.

    The object *stored* itself is returned where *new* changes nothing.
    """
    runs = _join_runs(_runs(stored), _runs(new))
    winner = new if _task_rank(new) > _task_rank(stored) else stored
    overdue = "_overdue" in stored or "_overdue" in new
    ends = [end for end in (_own_end(stored), _own_end(new)) if end is not None]
    first = min(ends, default=None)
    if (
        winner is stored
        and runs == _runs(stored)
        and overdue == ("_overdue" in stored)
        and first == _own_end(stored)
    ):
        return stored
    left_out = ("_runs", "_rev", "_ended")
    merged = {key: value for key, value in winner.items() if key not in left_out}
    if first != _this_end(winner):
        merged["_ended"] = first
    merged["attempts"] = _attempts(runs)
    if runs != _own_run(winner):
        merged["_runs"] = runs
    if overdue:
        merged["_overdue"] = True
        if merged.get("completed_at") is None:
            merged["sla_success"] = False
            merged["cause"] = OVERDUE
            merged["verdict_at"] = certain_at(
                merged.get("arrival"), merged.get("deadline"), None
            )
    return merged


def ends_again(stored: Document, new: Document) -> bool:
    """Return whether *new* ends a task that has ended by itself: another delivery of it.

    Not after an end that was given, or IGNORED: after those the task may go on.
    """
    if new.get("completed_at") is None:
        return False
    return _own_end(stored) not in (None, _this_end(new))


def merge_assignments(stored: Document, new: Document) -> Document:
    """Return what two documents of the same run come to: the better witness's.

    The process that ran it, over its main process, over LOST; among equals the
    one that ended first. *stored* itself is returned where *new* changes nothing.
    """
    if _run_rank(new) <= _run_rank(stored):
        return stored
    return {key: value for key, value in new.items() if key != "_rev"}


def triple(assignment: Mapping[str, Any]) -> Triple:
    """Return task id, retries and instance: at most one run of a task, as a rule."""
    return assignment["task_id"], assignment["retries"], assignment["instance"]


def settle(group: Sequence[Document]) -> tuple[Document | None, list[str]]:
    """Tell ends without a start apart from runs, among documents of one :func:`triple`.

    Returns a document to put in the place of that with the same ``_id``
    (``None``: none), and the ids of the documents to remove.
    """
    ends = sorted((d for d in group if d.get("_nostart")), key=_end_order)
    runs = [d for d in group if not d.get("_nostart")]
    if not ends:
        return None, []
    if not runs:
        return None, [end["_id"] for end in ends[1:]]
    run = max(runs, key=lambda d: (d["started_at"], d["_id"]))
    removed = [end["_id"] for end in ends]
    end = ends[0]
    if run["state"] == LOST or (
        "_end_of" in run and _end_order(end) < (run["completed_at"], run["_end_of"])
    ):
        merged = {key: value for key, value in run.items() if key != "_rev"}
        merged.update({key: end[key] for key in _END}, _end_of=end["_id"])
        if end["runtime_s"] is None and end["completed_at"] is not None:
            runtime_s = (end["completed_at"] - run["started_at"]).total_seconds()
            merged["runtime_s"] = max(0.0, runtime_s)
        return merged, removed
    return None, removed


def _end_order(end: Document) -> tuple[datetime, str]:
    return end["completed_at"] or _BEGINNING, end["_id"]


def _task_rank(task: Document) -> tuple[Any, ...]:
    completed_at = task.get("completed_at") or _BEGINNING
    arrival = task.get("arrival") or _BEGINNING
    cause = task.get("cause")
    if cause == OVERDUE:  # which says nothing of the run that the document is of
        cause = None
    ties = (task.get("run_id") or "", cause or "", task.get("state") or "")
    if task.get("state") == "SUCCESS":
        return (1, -completed_at.timestamp(), *ties)
    if task.get("state") in (PENDING, STARTED):
        return (-1, task.get("started_at") or _BEGINNING, task.get("retries") or 0, *ties)
    if task.get("state") == LOST:
        witness = 0
    elif task.get("run_id") is not None and task.get("started_at") is None:
        witness = 1
    else:
        witness = 2
    return (
        0,
        _BEGINNING if task.get("arrival_source") == "received" else arrival,
        task.get("retries") or 0,
        witness,
        task.get("started_at") or completed_at,
        task.get("state") not in NOT_FINAL,
        cause in (None, "rejected"),  # the process that ran it knows no others
        -completed_at.timestamp(),
        *ties,
    )


def _this_end(task: Document) -> str | None:
    """Return what tells the end that a document is of from others, ``None`` where it is of
    none, or not of one of the task's own.
    """
    completed_at, state = task.get("completed_at"), task.get("state") or ""
    if completed_at is None or state == IGNORED or is_provisional(state, task.get("cause")):
        return None
    return f"{completed_at.isoformat()} {task.get('run_id') or state}"


def _own_end(task: Document) -> str | None:
    """Return the same of the first end of its own that a document knows."""
    known: str | None = task.get("_ended")
    return _this_end(task) if known is None else known


def _run_rank(assignment: Document) -> tuple[Any, ...]:
    completed_at = assignment.get("completed_at") or _BEGINNING
    if assignment.get("state") == LOST:
        witness = 0
    elif "_end_of" in assignment:
        witness = 1
    elif assignment.get("runtime_s") is None:
        witness = 2
    else:
        witness = 3
    return (
        witness,
        -completed_at.timestamp(),
        assignment.get("cause") or "",
        assignment["state"],
    )


#: A run in the private field ``_runs``: retries, whether its start is known,
#: instance, run id. Lists, because that is what BSON gives back.
_Run = list[Any]


def _own_run(task: Mapping[str, Any]) -> list[_Run]:
    """Return the run that a verdict is of; empty where the task never ran."""
    if task.get("run_id") is None:
        return []
    started = task.get("started_at") is not None
    return [[task.get("retries") or 0, started, task.get("instance") or "", task["run_id"]]]


def _runs(task: Mapping[str, Any]) -> list[_Run]:
    """Return the runs that a document knows: kept apart only where they are several."""
    known: list[_Run] = task["_runs"] if "_runs" in task else _own_run(task)
    return known


def _join_runs(some: Iterable[_Run], more: Iterable[_Run]) -> list[_Run]:
    united = sorted({tuple(run) for runs in (some, more) for run in runs})
    return [list(run) for run in united[-MAX_RUNS:]]


def _attempts(runs: Sequence[_Run]) -> int:
    """Return the number of runs, an end without a start not counted beside its run."""
    if len(runs) == MAX_RUNS:
        return max(MAX_RUNS, int(runs[-1][0]) + 1)
    started = {(retries, instance) for retries, known, instance, _ in runs if known}
    unknown = {(retries, instance) for retries, known, instance, _ in runs if not known}
    started_runs = {run_id for _, known, _, run_id in runs if known}
    return len(started_runs) + len(unknown - started)
