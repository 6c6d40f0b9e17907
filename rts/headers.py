"""Message headers: what callers may request, and what rts writes.

Headers come from strangers. Each value is either understood or refused: a
refused value is counted, logged once with the reason, and treated as not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from operator import itemgetter
from typing import Any

from rts import health
from rts.deadlines import (
    MAX_INSTANT,
    MAX_LEARNED,
    MAX_MULTIPLIER,
    MAX_TAU,
    MIN_LEARNED,
    MIN_MULTIPLIER,
)
from rts.fields import queue_of
from rts.records import OpenTask, Plan, of_fields
from rts.tasktypes import DEFAULT_TASK_TYPES, RESOURCES, TaskType
from rts.validation import finite

#: What a caller may put into ``apply_async(headers={…})`` and into a task's
#: ``rts={…}`` option.
REQUESTABLE = ("task_type", *RESOURCES, "sla_multiplier", "sla_deadline")

TYPE_SOURCES = ("explicit", "task", "inferred")
#: Value of the header ``rts_policy`` in messages whose k was learned, and is outside the range
#: that a configured k may have.
LEARNED = "quantile"
#: Header that the deadline order gives a message that it drops as hopeless.
DROPPED_HEADER = "rts_dropped"
#: Header of a message with an eta: when it was published, epoch seconds.
PUBLISHED_HEADER = "rts_published"

_REQUESTABLE = frozenset(REQUESTABLE)

_PLANNED = itemgetter(
    "task_type", "rts_type_source", "rts_tau", "rts_k", "rts_arrival", "rts_deadline"
)

#: What to write in place of a type that nobody knows.
_KNOWN_TYPES = f"use {', '.join(DEFAULT_TASK_TYPES)}, or one that you add to rts_task_types"

#: A larger request is a mistake: no machine has so many cores, GiB or GPUs.
MAX_REQUEST = 1e9


@dataclass(frozen=True, slots=True)
class Request:
    """What one message, or one task's settings, request; ``None`` where they do not."""

    task_type: str | None = None
    #: Amounts by name, of :data:`rts.tasktypes.RESOURCES`.
    resources: Mapping[str, float] | None = None
    sla_multiplier: float | None = None
    #: Absolute deadline, epoch seconds.
    sla_deadline: float | None = None


NO_REQUEST = Request()


def read_request(
    values: Mapping[str, Any], types: Mapping[str, TaskType], where: str
) -> Request:
    """Return the valid part of the request in *values*; *where* names its source in logs."""
    if _REQUESTABLE.isdisjoint(values):
        return NO_REQUEST
    task_type = k = deadline = None
    resources: dict[str, float] | None = None
    if (value := values.get("task_type")) is not None:
        if isinstance(value, str) and value in types:
            task_type = types[value].name  # a plain str: an enum member prints differently
        else:
            refuse("task_type", value, where, _KNOWN_TYPES)
    if (value := values.get("sla_multiplier")) is not None:
        k = finite(value)
        if k is None or not MIN_MULTIPLIER <= k <= MAX_MULTIPLIER:
            k = None
            allowed = f"use a number from {MIN_MULTIPLIER} to {MAX_MULTIPLIER}"
            refuse("sla_multiplier", value, where, allowed)
    if (value := values.get("sla_deadline")) is not None:
        deadline = instant(value)
        if deadline is None:
            allowed = "use epoch seconds or ISO 8601, after 1970 and before year 10000"
            refuse("sla_deadline", value, where, allowed)
    for name in RESOURCES:
        if (value := values.get(name)) is not None:
            number = finite(value)
            if number is None or not 0 <= number <= MAX_REQUEST:
                refuse(name, value, where, "use a number, at least 0")
            else:
                resources = {**(resources or {}), name: number}
    return Request(task_type, resources, k, deadline)


def refuse(name: str, value: object, where: str, cure: str) -> None:
    """Count a refused value, and log it once."""
    health.count(f"refused_{name}")
    shown = health.shown(value)
    health.warn_once(
        f"refused:{name}:{shown}",
        "rts: %s = %s in %s is refused: %s",
        name,
        shown,
        health.one_line(where, 2 * health.MAX_SHOWN),  # it names the task, as a stranger does
        cure,
    )


def instant(value: object) -> float | None:
    """Return an instant in epoch seconds; ``None`` where *value* is not one.

    Takes numbers (also as strings), ``datetime`` and ISO 8601 strings; a time
    without a zone is UTC.

    >>> instant("1970-01-02T00:00:00Z"), instant(86400), instant("soon")
    (86400.0, 86400.0, None)
    """
    number = finite(value)
    if number is None:
        try:
            if isinstance(value, str) and len(value) <= 64:
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
            if not isinstance(value, datetime):
                return None
            if value.utcoffset() is None:
                value = value.replace(tzinfo=timezone.utc)
            number = value.timestamp()
        except (ValueError, OverflowError):
            return None
    return number if 0 < number <= MAX_INSTANT else None


def requested_deadline(values: Mapping[str, Any]) -> float | None:
    """Return the ``sla_deadline`` of a message, by its headers or attributes, in epoch seconds;
    ``None`` where it has none, or one that is refused.
    """
    return instant(values.get("sla_deadline"))


def write_plan(headers: dict[str, Any], plan: Plan) -> None:
    """Write *plan* into message headers, as flat scalars."""
    task_type, type_source, tau, k, arrival, deadline, arrival_source = plan
    headers["task_type"] = task_type
    headers["rts_tau"] = tau
    headers["rts_k"] = k
    headers["rts_arrival"] = arrival
    headers["rts_deadline"] = deadline
    headers["rts_type_source"] = type_source
    if arrival_source != "published":
        headers["rts_arrival_source"] = arrival_source
    if not MIN_MULTIPLIER <= k <= MAX_MULTIPLIER:
        headers["rts_policy"] = LEARNED


def open_task(values: Mapping[str, Any], queue: object) -> OpenTask:
    """Return the open task of a message with a plan; *queue* is its routing key."""
    queue = queue_of(queue)
    # By position, in the order of the fields: this is on the path of every publish.
    known = (
        values["id"],
        values["task"],
        values["task_type"],
        values["rts_type_source"],
        values["rts_tau"],
        values["rts_k"],
        values["rts_arrival"],
        values["rts_deadline"],
        values.get("rts_arrival_source", "published"),
        queue if isinstance(queue, str) else None,
        values.get("retries") or 0,
        values.get("parent_id"),
        values.get("root_id"),
    )
    return of_fields(OpenTask, known)


def read_plan(values: Mapping[str, Any], types: Mapping[str, TaskType]) -> Plan | None:
    """Return the plan that a message carries; ``None`` where it has none.

    A message is only as good as its sender: a plan with an invalid value, or of a type
    that is not in *types*, is refused as a whole (counted, logged).
    """
    try:
        # The usual plan passes with few checks: this is on the path of every task.
        task_type, type_source, tau, k, arrival, deadline = planned = _PLANNED(values)
        if (
            type(tau) is type(k) is type(arrival) is type(deadline) is float
            and 0 < tau < MAX_TAU
            and (
                MIN_MULTIPLIER <= k <= MAX_MULTIPLIER
                or (values.get("rts_policy") == LEARNED and MIN_LEARNED <= k <= MAX_LEARNED)
            )
            and 0 < arrival <= MAX_INSTANT
            and 0 < deadline <= MAX_INSTANT
            and task_type in types
        ):
            if type_source not in TYPE_SOURCES:
                planned = (task_type, "inferred", *planned[2:])
            if "rts_arrival_source" in values and values["rts_arrival_source"] == "received":
                return of_fields(Plan, (*planned, "received"))
            return of_fields(Plan, (*planned, "published"))
    except (LookupError, TypeError):
        pass  # a header is missing, or the type is no string
    if values.get("rts_deadline") is None:
        return None
    health.count("refused_plan")
    health.warn_once(
        "refused:plan",
        "rts: a message carries invalid rts_… headers, or a task_type that this process does "
        "not know (%s); the worker computes its deadline again. Give producers and workers "
        "the same rts_task_types",
        health.shown(values.get("task_type")),
    )
    return None
