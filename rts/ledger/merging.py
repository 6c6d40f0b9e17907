"""Merges two records of one task, or of one run.

Records arrive in any order and any number of times: streams are read at least
once, workers die, brokers deliver twice. Each rule here is therefore the
maximum of a total order, or a union, so that the outcome depends only on the set of
records (a join-semilattice: Shapiro et al., *Conflict-free Replicated
Data Types*, 2011).

The verdict of a task, strongest first:

1. a SUCCESS; of several, the one that completed first: the work was done then;
2. the record with the latest arrival: a task that takes another one's place arrives later
   than that one, and starts with no retries; a retry keeps its arrival. (An arrival that
   was set on receipt counts as the earliest: each delivery has a new one.)
3. the record with the most retries;
4. any other record over LOST;
5. the later start (or end, if the task never ran);
6. a final state over RETRY;
7. an overdue verdict, given before the end, only if nothing else is known. It is
   remembered, so that the miss stands until there is a final state, which then decides.
   So is a provisional end of a run.

What only the merging needs is in private fields, which no reader shows:

- ``_rev``: how often the document was replaced; absent: never (:mod:`rts.ledger.writes`).
- ``_runs`` of a task: all its runs, if it has several.
- ``_ended`` of a task: the end that it wrote itself and that arrived first, if that is not
  this document's. Only this depends on the order: the others are not counted, however often
  each is delivered.
- ``_overdue`` of a task: it was found overdue, or another process wrote the end of one of its
  runs. Should it go on nevertheless, nobody looks any more whether it is overdue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rts.ledger.documents import Document, certain_at
from rts.records import IGNORED, LOST, NOT_FINAL, OVERDUE, PENDING, STARTED, is_provisional

#: Runs of one task that are told apart. A task that polls by retrying for ever
#: must not grow its document for ever; beyond this, ``attempts`` follows ``retries``.
MAX_RUNS = 100

_BEGINNING = datetime(1, 1, 1, tzinfo=timezone.utc)


def merge_tasks(stored: Document, new: Document) -> Document:
    """Merge two ``tasks`` documents of the same task.

    Returns the object *stored* itself if *new* changes nothing.
    """
    runs = _join_runs(_runs(stored), _runs(new))
    winner = new if _task_rank(new) > _task_rank(stored) else stored
    overdue = "_overdue" in stored or "_overdue" in new
    first = _own_end(stored) or _own_end(new)
    if (
        winner is stored
        and runs == _runs(stored)
        and overdue == ("_overdue" in stored)
        and first == _own_end(stored)
    ):
        return stored
    recomputed = ("_runs", "_rev", "_ended")
    merged = {key: value for key, value in winner.items() if key not in recomputed}
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
    """Return whether *new* ends a task that another of its deliveries had ended by itself.

    Not after an end that was written on its behalf, or IGNORED: the task may go on then.
    """
    if new.get("completed_at") is None:
        return False
    return _own_end(stored) not in (None, _this_end(new))


def merge_assignments(stored: Document, new: Document) -> Document:
    """Merge two documents of the same run: the better witness wins.

    The process that ran it, over its main process, over LOST; among equals the
    one that ended first. Returns *stored* itself if *new* changes nothing.
    """
    if _run_rank(new) <= _run_rank(stored):
        return stored
    return {key: value for key, value in new.items() if key != "_rev"}


def _task_rank(task: Document) -> tuple[Any, ...]:
    completed_at = task.get("completed_at") or _BEGINNING
    arrival = task.get("arrival") or _BEGINNING
    cause = task.get("cause")
    if cause == OVERDUE:  # says nothing about the document's run
        cause = None
    ties = (task.get("run_id") or "", cause or "", task.get("state") or "")
    if task.get("state") == "SUCCESS":
        return (1, -completed_at.timestamp(), *ties)
    if task.get("state") in (PENDING, STARTED):
        return (-1, task.get("started_at") or _BEGINNING, task.get("retries") or 0, *ties)
    return (
        0,
        _BEGINNING if task.get("arrival_source") == "received" else arrival,
        task.get("retries") or 0,
        task.get("state") != LOST,
        task.get("started_at") or completed_at,
        task.get("state") not in NOT_FINAL,
        cause in (None, "rejected"),  # the only ones known to the process that ran it
        -completed_at.timestamp(),
        *ties,
    )


def _this_end(task: Document) -> str | None:
    """Return an identity of a document's end, ``None`` if it has none, or one that the task
    did not write itself.
    """
    completed_at, state = task.get("completed_at"), task.get("state") or ""
    if completed_at is None or state == IGNORED or is_provisional(state, task.get("cause")):
        return None
    return f"{completed_at.isoformat()} {task.get('run_id') or state}"


def _own_end(task: Document) -> str | None:
    """Return the identity of the end that the task wrote itself and that arrived first."""
    known: str | None = task.get("_ended")
    return _this_end(task) if known is None else known


def _run_rank(assignment: Document) -> tuple[Any, ...]:
    completed_at = assignment.get("completed_at") or _BEGINNING
    state, cause = assignment["state"], assignment.get("cause")
    by_itself = not is_provisional(state, cause)
    return (state != LOST, by_itself, -completed_at.timestamp(), cause or "", state)


#: A run in the private field ``_runs``: retries and run id. A list, because that is what BSON
#: returns.
_Run = list[Any]


def _own_run(task: Mapping[str, Any]) -> list[_Run]:
    """Return the run of a verdict; empty if the task never ran."""
    if task.get("run_id") is None:
        return []
    return [[task.get("retries") or 0, task["run_id"]]]


def _runs(task: Mapping[str, Any]) -> list[_Run]:
    """Return the runs that a document knows; a field of their own only if there are several."""
    known: list[_Run] = task["_runs"] if "_runs" in task else _own_run(task)
    return known


def _join_runs(some: Iterable[_Run], more: Iterable[_Run]) -> list[_Run]:
    retries = {run[-1]: run[0] for runs in (some, more) for run in runs}
    united = sorted((number, run_id) for run_id, number in retries.items())
    return [list(run) for run in united[-MAX_RUNS:]]


def _attempts(runs: Sequence[_Run]) -> int:
    """Return the number of runs, which from MAX_RUNS on only the retries tell."""
    return len(runs) if len(runs) < MAX_RUNS else max(MAX_RUNS, int(runs[-1][0]) + 1)
