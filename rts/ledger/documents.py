"""Outbox entries as the documents of ``tasks`` and ``assignments``.

Pure functions. Instants become aware UTC datetimes of whole milliseconds (what
BSON holds), durations stay seconds as floats. Whatever stands in a record, the
documents can be stored: a record may hold a stranger's task id or queue.

This runs on worker machines for every record: the common record goes through
checks that cost little, and only one that fails them is cleaned field by field.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from rts.records import NOT_FINAL, OVERDUE, Execution, Learned, OutboxEntry

Document = dict[str, Any]

#: Characters of a string that are stored. Longer ones are no name of anything.
MAX_TEXT = 1024
#: Keys of ``load_at_start`` and items of a list in it; a host has fewer GPUs.
MAX_ITEMS = 64
#: Nesting of ``load_at_start``: a mapping with a list of mappings.
MAX_DEPTH = 3

#: A reading of a host without a GPU has no other keys, and needs no cleaning.
_LOAD_KEYS = frozenset({"load", "cpu", "memory", "gpu", "age_s"})

#: What a datetime can hold, in epoch seconds, whole milliseconds.
_LEAST_INSTANT, _GREATEST_INSTANT = -62135596800.0, 253402300799.999
_INT64 = 2**63
_UTC = timezone.utc
_from_timestamp = datetime.fromtimestamp


def documents(
    entry: OutboxEntry, at: Callable[[float | None], Any] | None = None
) -> tuple[Document, Document | None]:
    """Return the ``tasks`` document of *entry* and its ``assignments`` document.

    The latter is ``None`` where no run was started. Both hold what the reports need
    and, for :mod:`rts.ledger.merging`, ``run_id``, ``retries`` and ``instance``.

    ``verdict_at`` of a task is the instant at which its verdict was certain: its end,
    but no later than its deadline, since a task that is not done by then has missed it
    whether it ever ends or not. (A deadline that had passed on arrival counts as the
    arrival.)

    *at* makes the instants from epoch seconds, :func:`instant` unless given.
    """
    execution = entry.execution
    at = at or instant
    try:
        if _plain(execution, entry.learned):
            return _documents(execution, entry.learned, at)
    except (TypeError, ValueError, OverflowError, AttributeError):
        pass  # something is not of its type
    return _documents(cleaned(execution), cleaned_learned(entry.learned), at)


def instant(at: float | None) -> datetime | None:
    """Return epoch seconds as an aware UTC datetime, to the millisecond.

    Instants beyond the years 1 to 9999 become the nearest that can be held.
    """
    ms = milliseconds(at)
    return None if ms is None else _from_timestamp(ms / 1000, _UTC)


def milliseconds(at: float | None) -> int | None:
    """Return epoch seconds as the whole milliseconds of :func:`instant`."""
    if at is None or at != at:
        return None
    if not _LEAST_INSTANT <= at <= _GREATEST_INSTANT:
        at = min(max(at, _LEAST_INSTANT), _GREATEST_INSTANT)
    return round(at * 1000)


def certain_at(arrival: Any, deadline: Any, completed_at: Any) -> Any:
    """Return the instant from which on a miss was certain, of instants or ``None``."""
    if deadline is None:
        return completed_at
    missed_at = deadline if arrival is None else max(arrival, deadline)
    return missed_at if completed_at is None else min(missed_at, completed_at)


def text(value: object, limit: int = MAX_TEXT) -> str:
    """Return *value* as a string that BSON can hold, at most *limit* characters.

    One that is too long ends in a hash of the whole, so that two different ids
    stay different.
    """
    string = value if isinstance(value, str) else repr(value)
    if not string.isascii():
        string = string.encode("utf-8", "replace").decode("utf-8")
    if len(string) <= limit:
        return string
    digest = hashlib.sha256(string.encode("utf-8")).hexdigest()[:32]
    return f"{string[: limit - 33]}~{digest}"


def number(value: object) -> float | None:
    """Return *value* as a finite float, ``None`` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def integer(value: object) -> int | None:
    """Return *value* where it is a whole number of at most 64 bit, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -_INT64 <= value < _INT64 else None


def cleaned(execution: Execution) -> Execution:
    """Return the record with every field of its type, storable and bounded."""
    changes: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        value = getattr(execution, name)
        if kind is text:
            changes[name] = text(value)
        elif kind is bool:
            changes[name] = bool(value)
        elif value is not None:
            changes[name] = kind(value)
    for name in ("arrival", "deadline", "tau", "k"):
        value = changes.get(name)
        changes[name] = math.nan if value is None else value
    # An instant may be infinite and still tell before from after.
    for name in ("arrival", "deadline", "completed_at", "started_at"):
        if getattr(execution, name) in (math.inf, -math.inf):
            changes[name] = math.copysign(_GREATEST_INSTANT, getattr(execution, name))
    changes["retries"] = changes.get("retries") or 0
    return execution._replace(**changes)


def cleaned_learned(learned: Learned | None) -> Learned | None:
    """Return what was learned with numbers only; ``None`` where the type's are none."""
    if learned is None:
        return None
    before, after = number(learned.tau_before), number(learned.tau_after)
    if before is None or after is None:
        return None
    return Learned(
        before, after, number(learned.name_tau_before), number(learned.name_tau_after)
    )


def _optional_text(value: object) -> str | None:
    return None if value is None else text(value)


def _load(value: object, depth: int = MAX_DEPTH) -> Any:
    """Return a load reading with what cannot be stored left out."""
    if isinstance(value, Mapping):
        if depth == 0:
            return None
        items = list(value.items())[:MAX_ITEMS]
        return {_key(key): _load(item, depth - 1) for key, item in items}
    if isinstance(value, list | tuple):
        return [_load(item, depth - 1) for item in value[:MAX_ITEMS]] if depth else None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return number(value)
    return text(value)


def _mapping(value: object) -> Any:
    return _load(value) if isinstance(value, Mapping) else None


def _key(key: object) -> str:
    """Return *key* as the name of a field: no dot, no dollar, no null byte."""
    name = text(key, 64)
    for bad in ".$\0":
        name = name.replace(bad, "_")
    return name or "_"


#: How each field is cleaned.
_KINDS: dict[str, Any] = {
    "run_id": text,
    "task_id": text,
    "name": text,
    "task_type": text,
    "type_source": text,
    "tau": number,
    "k": number,
    "arrival": number,
    "deadline": number,
    "arrival_source": text,
    "queue": _optional_text,
    "retries": integer,
    "parent_id": _optional_text,
    "root_id": _optional_text,
    "worker": text,
    "instance": text,
    "pid": integer,
    "started_at": number,
    "load_at_start": _mapping,
    "completed_at": number,
    "runtime_s": number,
    "cpu_s": number,
    "max_rss_bytes": integer,
    "state": text,
    "cause": _optional_text,
    "ran": bool,
}
if set(_KINDS) != set(Execution._fields):  # pragma: no cover
    raise TypeError("rts.ledger.documents must know every field of an Execution")


def _plain(e: Execution, learned: Learned | None) -> bool:
    """Return whether *e* can be stored as it is: the usual case, checked quickly.

    All strings are joined first, which also refuses what is no string. A sum is
    finite only where every number in it is.
    """
    joined = "".join(
        (
            e.run_id, e.task_id, e.name, e.task_type, e.type_source, e.arrival_source,
            e.queue or "", e.parent_id or "", e.root_id or "", e.worker, e.instance,
            e.state, e.cause or "",
        )
    )  # fmt: skip
    if len(joined) > MAX_TEXT or not joined.isascii():
        return False
    total = (
        e.tau + e.k + e.arrival + e.deadline + (e.started_at or 0.0)
        + (e.completed_at or 0.0) + (e.runtime_s or 0.0) + (e.cpu_s or 0.0)
        + (e.max_rss_bytes or 0) + (e.pid or 0) + e.retries
    )  # fmt: skip
    if learned is not None:
        total += (
            learned.tau_before + learned.tau_after
            + (learned.name_tau_before or 0.0) + (learned.name_tau_after or 0.0)
        )  # fmt: skip
    load = e.load_at_start
    if load is not None:
        if not _LOAD_KEYS.issuperset(load):
            return False
        for value in load.values():
            if type(value) is not float and value is not None:
                return False
    # Below 1e18 no part is beyond 64 bit, unless another cancels it out: all are
    # positive in a record of ours, and what is not is caught when it is encoded.
    return -1e18 < total < 1e18


def _documents(
    e: Execution, learned: Learned | None, at: Callable[[float | None], Any]
) -> tuple[Document, Document | None]:
    arrival, deadline = at(e.arrival), at(e.deadline)
    started_at, completed_at = at(e.started_at), at(e.completed_at)
    cause = e.cause
    success: bool | None = None
    lateness_s: float | None = None
    verdict_at = None
    final = e.completed_at is not None and e.state not in NOT_FINAL
    overdue = cause == OVERDUE and not final
    if e.completed_at is not None and final:
        success = cause is None and e.completed_at <= e.deadline
        lateness_s = e.completed_at - e.deadline
        if lateness_s != lateness_s:
            lateness_s = None
        verdict_at = completed_at
        if lateness_s is not None and lateness_s > 0:
            verdict_at = certain_at(arrival, deadline, completed_at)
    elif overdue:
        success = False
        verdict_at = certain_at(arrival, deadline, None)
    tau = e.tau if e.tau == e.tau else None
    k = e.k if e.k == e.k else None
    runtime_s = None if e.runtime_s is None else float(e.runtime_s)
    task: Document = {
        "_id": e.task_id,
        "name": e.name,
        "task_type": e.task_type,
        "type_source": e.type_source,
        "tau": tau,
        "k": k,
        "arrival": arrival,
        "deadline": deadline,
        "arrival_source": e.arrival_source,
        "queue": e.queue,
        "state": e.state,
        "cause": cause,
        "started_at": started_at,
        "completed_at": completed_at if final else None,
        "verdict_at": verdict_at,
        "runtime_s": runtime_s,
        "sla_success": success,
        "lateness_s": lateness_s,
        "worker": e.worker,
        "attempts": 1 if e.ran else 0,
        "parent_id": e.parent_id,
        "root_id": e.root_id,
        "retries": e.retries,
        "instance": e.instance,
        "run_id": e.run_id if e.ran else None,
    }
    if overdue:
        task["_overdue"] = True
    if not e.ran:
        return task, None
    assignment: Document = {
        "_id": e.run_id,
        "task_id": e.task_id,
        "retries": e.retries,
        "name": e.name,
        "task_type": e.task_type,
        "type_source": e.type_source,
        "arrival_source": e.arrival_source,
        "tau": tau,
        "k": k,
        "arrival": arrival,
        "deadline": deadline,
        "queue": e.queue,
        "worker": e.worker,
        "instance": e.instance,
        "pid": e.pid,
        "started_at": started_at,
        "queueing_delay_s": None,
        "load_at_start": e.load_at_start,
        "completed_at": completed_at,
        "runtime_s": runtime_s,
        "cpu_s": e.cpu_s,
        "max_rss_bytes": e.max_rss_bytes,
        "state": e.state,
        "cause": cause,
        "sla_success": success,
        "lateness_s": lateness_s,
        "tau_before": None,
        "tau_after": None,
        "name_tau_before": None,
        "name_tau_after": None,
    }
    if started_at is None:
        assignment["_nostart"] = True
    elif e.started_at is not None and e.arrival == e.arrival:
        # A host whose clock lags a little may start a task "before" it arrived.
        assignment["queueing_delay_s"] = max(0.0, e.started_at - e.arrival)
    if learned is not None:
        assignment["tau_before"] = learned.tau_before
        assignment["tau_after"] = learned.tau_after
        assignment["name_tau_before"] = learned.name_tau_before
        assignment["name_tau_after"] = learned.name_tau_after
    return task, assignment
