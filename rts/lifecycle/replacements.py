"""What takes the place of a task that replaces itself.

Celery gives it the id. A single task has it at once. Of a chain the last member has it, of
a chord (which a group becomes) the body: these are published later, by runs of other tasks
whose messages tell none of it. So whatever has something to follow it carries, in a header
of ours, which ids are to end, and by when.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rts.deadlines import MAX_INSTANT
from rts.records import Plan
from rts.validation import finite

#: How often a task has replaced itself; a retry keeps it. Celery's header, which a member
#: of a chain within a chord may lack.
NESTING = "replaced_task_nesting"

#: Celery's task that waits for a chord's header and publishes the body, with result backends
#: that have no chords of their own.
UNLOCKS = "celery.chord_unlock"

#: Header: the ids that are to end, the innermost first, each a line ``ARRIVAL DEADLINE ID``.
#: What has got such an id keeps its line.
OWED = "rts_owed"
#: Canvas within canvas that is told apart, and characters of the header: a stranger may
#: have sent it.
MOST, MAX_OWED = 16, 8192

#: Seconds by which a successor arrives later at least: the ledger, which tells the two
#: apart by that, keeps milliseconds, and an eta is met by each host's own clock.
LATER_S = 0.0011


class Promise(NamedTuple):
    """What a task whose place is taken was published with, epoch seconds."""

    arrival: float
    deadline: float


def replaces(headers: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return whether a message with *headers* is of what the task *current* puts in its
    place, or of the beginning of that.
    """
    return bool(headers.get(NESTING, 0) == current.get(NESTING, 0) + 1)


def succeeds(headers: Mapping[str, Any]) -> bool:
    """Return whether a message is the one that got the id of a task of a moment ago."""
    return headers["id"] in _read(headers)


def due_at(values: Mapping[str, Any]) -> float | None:
    """Return the deadline, epoch seconds, of the task whose id a message with these headers,
    or attributes, is to end; ``None`` where it is none, or asks for a deadline of its own.
    """
    own = _read(values).get(values["id"])
    return None if own is None or values.get("sla_deadline") is not None else own.deadline


def due(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """Return the plan by which the verdict is of a task with this *plan* in its message.

    What ends the id of an earlier task is due when that one was; its message has the
    deadline of the formula, by which it is put in order.
    """
    at = due_at(values)
    return plan if at is None else plan._replace(deadline=at)


def succeed(
    plan: Plan,
    headers: dict[str, Any],
    current: Mapping[str, Any],
    parent: Plan | None,
    body: object,
) -> Plan:
    """Return the *plan* of a message that the task *current* publishes, whose own plan is
    *parent*, arriving after the task whose place it takes; note in its *headers* what is
    to end.
    """
    task_id, owed = headers["id"], _read(current)
    owed.pop(current["id"], None)
    own = None
    if parent is not None and replaces(headers, current):
        promise = Promise(parent.arrival, due(parent, current).deadline)
        if current["id"] == task_id:
            plan = _later(plan, promise, headers)
        else:
            owed = {current["id"]: promise, **owed}
    if task_id in owed:
        own = owed.pop(task_id)
        plan = _later(plan, own, headers)
    told = {} if own is None else {task_id: own}
    if _goes_on(body):
        told |= owed
    if told:
        headers[OWED] = _text(told)
    else:
        headers.pop(OWED, None)
    return plan


def tell(headers: dict[str, Any], current: Mapping[str, Any], plan: Plan | None) -> None:
    """Note in the *headers* of :data:`UNLOCKS`, which the task *current* of this *plan*
    publishes, what is to end: the chord's body may take the place of that very task.
    """
    owed = _read(current)
    if plan is not None:  # else it is the retry of that one
        owed.pop(current["id"], None)
        owed = {current["id"]: Promise(plan.arrival, plan.deadline), **owed}
    if owed:
        headers[OWED] = _text(owed)


def _text(owed: Mapping[str, Promise]) -> str:
    lines = [f"{p.arrival!r} {p.deadline!r} {task_id}" for task_id, p in owed.items()]
    return "\n".join(lines[:MOST])


def _later(plan: Plan, promise: Promise, headers: Mapping[str, Any]) -> Plan:
    arrival = promise.arrival + LATER_S
    if plan.arrival >= arrival:
        return plan
    later_s = 0.0 if headers.get("sla_deadline") is not None else arrival - plan.arrival
    return plan._replace(arrival=arrival, deadline=plan.deadline + later_s)


def _goes_on(body: object) -> bool:
    """Return whether a message's body says that something follows: a chain, or a chord."""
    if isinstance(body, list | tuple) and len(body) == 3 and isinstance(body[2], Mapping):
        return bool(body[2].get("chain") or body[2].get("chord"))
    return False


def _read(values: Mapping[str, Any]) -> dict[str, Promise]:
    """Return what the header says that is to end, by id; nothing where it cannot be read."""
    text = values.get(OWED)
    owed: dict[str, Promise] = {}
    if not isinstance(text, str) or len(text) > MAX_OWED:
        return owed
    for line in text.split("\n")[:MOST]:
        arrival, _, rest = line.partition(" ")
        deadline, _, task_id = rest.partition(" ")
        given = [finite(arrival), finite(deadline)]
        promise = [at for at in given if at is not None and 0 < at <= MAX_INSTANT]
        if task_id and len(promise) == len(given):
            owed.setdefault(task_id, Promise(*promise))
    return owed
