"""Outbox entries as documents of ``tasks`` and ``assignments``.

Pure functions. Instants become whole milliseconds (BSON's resolution), durations stay
seconds as floats. Whatever a record holds, such as an untrusted task id or queue, its
documents can be stored (:mod:`rts.ledger.storable`).
"""

from __future__ import annotations

from typing import Any

from bson.datetime_ms import DatetimeMS

from rts.ledger.storable import (
    GREATEST_INSTANT,
    LEAST_INSTANT,
    cleaned,
    cleaned_learned,
    is_storable,
)
from rts.records import (
    NOT_FINAL,
    OVERDUE,
    Execution,
    Learned,
    OutboxEntry,
    is_provisional,
    sla_success,
)

Document = dict[str, Any]
#: In place of what was learned, where a run taught nothing.
_NOTHING = (None,) * len(Learned._fields)


def documents(entry: OutboxEntry) -> tuple[Document, Document | None]:
    """Return the ``tasks`` document of *entry* and its ``assignments`` document.

    The latter is ``None`` if no run was started. Both hold what the reports need
    and, for :mod:`rts.ledger.merging`, ``run_id`` and ``retries``.

    ``verdict_at`` of a task is the instant at which its verdict was certain: its end,
    but no later than its deadline, since a task that is not done by then has missed it
    whether it ever ends or not. (A deadline before the arrival counts as the arrival.)
    """
    execution = entry.execution
    try:
        if is_storable(execution, entry.learned):
            return _documents(execution, entry.learned)
    except (TypeError, ValueError, OverflowError, AttributeError):
        pass  # a field has the wrong type
    return _documents(cleaned(execution), cleaned_learned(entry.learned))


def certain_at(arrival: Any, deadline: Any, completed_at: Any) -> Any:
    """Return the instant at which a miss became certain. All are instants or ``None``."""
    if deadline is None:
        return completed_at
    missed_at = deadline if arrival is None else max(arrival, deadline)
    return missed_at if completed_at is None else min(missed_at, completed_at)


def _datetime(at: float | None) -> DatetimeMS | None:
    """Return epoch seconds as a type that costs the driver a third of a datetime to encode;
    ``None`` for NaN. Instants outside the years 1 to 9999 are clamped.
    """
    if at is None or at != at:
        return None
    if not LEAST_INSTANT <= at <= GREATEST_INSTANT:
        at = min(max(at, LEAST_INSTANT), GREATEST_INSTANT)
    return DatetimeMS(round(at * 1000))


def _documents(e: Execution, learned: Learned | None) -> tuple[Document, Document | None]:
    arrival, deadline = _datetime(e.arrival), _datetime(e.deadline)
    completed_at = _datetime(e.completed_at)
    ended_at = lateness_s = verdict_at = None
    if e.completed_at is not None and e.state not in NOT_FINAL:
        ended_at = completed_at
        late_s = e.completed_at - e.deadline
        lateness_s = late_s if late_s == late_s else None
        verdict_at = certain_at(arrival, deadline, completed_at) if late_s > 0 else completed_at
    elif e.cause == OVERDUE:
        verdict_at = certain_at(arrival, deadline, None)
    shared: Document = {
        "name": e.name,
        "task_type": e.task_type,
        "type_source": e.type_source,
        "tau": e.tau if e.tau == e.tau else None,
        "k": e.k if e.k == e.k else None,
        "arrival": arrival,
        "deadline": deadline,
        "arrival_source": e.arrival_source,
        "queue": e.queue,
        "retries": e.retries,
        "worker": e.worker,
        "instance": e.instance,
        "state": e.state,
        "cause": e.cause,
        "started_at": _datetime(e.started_at),
        "completed_at": completed_at,
        "runtime_s": None if e.runtime_s is None else float(e.runtime_s),
        "sla_success": sla_success(e),
        "lateness_s": lateness_s,
    }
    task: Document = {
        "_id": e.task_id,
        **shared,
        "completed_at": ended_at,
        "verdict_at": verdict_at,
        "attempts": 1 if e.ran else 0,
        # To Celery a retry is published by the attempt before it: by the same task.
        "parent_id": None if e.parent_id == e.task_id else e.parent_id,
        "root_id": e.root_id,
        "run_id": e.run_id if e.ran else None,
    }
    if e.cause is not None and (
        e.cause == OVERDUE or (e.ran and is_provisional(e.state, e.cause))
    ):
        task["_overdue"] = True
    return task, _assignment(e, learned, shared) if e.ran else None


def _assignment(e: Execution, learned: Learned | None, shared: Document) -> Document:
    tau_before, tau_after, name_tau_before, name_tau_after = learned or _NOTHING
    assignment: Document = {
        "_id": e.run_id,
        "task_id": e.task_id,
        **shared,
        "pid": e.pid,
        "queueing_delay_s": None,
        "load_at_start": e.load_at_start,
        "cpu_s": e.cpu_s,
        "max_rss_bytes": e.max_rss_bytes,
        "tau_before": tau_before,
        "tau_after": tau_after,
        "name_tau_before": name_tau_before,
        "name_tau_after": name_tau_after,
    }
    if e.priority:
        assignment["priority"] = e.priority
    if e.again_at is not None:
        assignment["again_at"] = _datetime(e.again_at)
    if e.published_at is not None:
        assignment["published_at"] = _datetime(e.published_at)
    if e.started_at is not None and e.arrival == e.arrival:
        # A host whose clock lags a little may start a task "before" it arrived.
        assignment["queueing_delay_s"] = max(0.0, e.started_at - e.arrival)
    return assignment
