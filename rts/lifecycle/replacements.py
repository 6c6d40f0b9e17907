"""What takes the place of a task that replaces itself (``self.replace``).

Celery gives it the task's id. A single task has that id at once. In a chain the last member
gets it, in a chord (which a group becomes) the body: these are published later, by runs of
other tasks, whose own messages say nothing of it. So each message with something to follow
it carries, in a header of ours, which ids are yet to be completed, and by when.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rts.headers import instant, requested_deadline
from rts.records import Plan

#: Celery's header: how often a task has replaced itself. A retry keeps it; a member of a
#: chain within a chord may lack it.
NESTING = "replaced_task_nesting"

#: Celery's task that waits for a chord's header and publishes the body, with result backends
#: that have no native chords.
CHORD_UNLOCK = "celery.chord_unlock"

#: Header: the ids yet to be completed, innermost first, each a line ``ARRIVAL DEADLINE ID``.
#: The message that has such an id itself carries its line, too.
OWED = "rts_owed"
#: Levels of nested canvas that are told apart, and characters of the header: it may come
#: from a stranger.
MAX_OWED, MAX_OWED_CHARS = 16, 8192

#: Seconds by which a successor arrives later than the task that it replaces, at least: the
#: ledger tells the two apart by their arrival, which it keeps in milliseconds, and each host
#: meets an eta by its own clock.
MIN_GAP_S = 0.0011


class Promise(NamedTuple):
    """What a replaced task was published with, epoch seconds."""

    arrival: float
    deadline: float


def replaces(headers: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return whether a message with *headers* is what the task *current* puts in its place,
    or the first part of that.
    """
    nesting = current.get(NESTING, 0)  # a stranger's may be anything
    return isinstance(nesting, int) and headers.get(NESTING, 0) == nesting + 1


def succeeds(headers: Mapping[str, Any]) -> bool:
    """Return whether a message has the id of a replaced task, to complete it."""
    return headers["id"] in _parse(headers)


def due_at(values: Mapping[str, Any]) -> float | None:
    """Return the deadline, epoch seconds, of the replaced task that a message with these
    headers, or attributes, completes; ``None`` if there is none, or the message has a
    deadline of its own.
    """
    own = _parse(values).get(values["id"])
    return None if own is None or requested_deadline(values) is not None else own.deadline


def verdict_plan(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """Return the plan that decides the verdict on a task with this *plan* in its message.

    A message that completes a replaced task is due when that task was; the deadline in the
    message follows from the formula, and serves to order the queue.
    """
    at = due_at(values)
    return plan if at is None else plan._replace(deadline=at)


def plan_replacement(
    plan: Plan,
    headers: dict[str, Any],
    current: Mapping[str, Any],
    parent: Plan | None,
    body: object,
) -> Plan:
    """Return the *plan* of a message, moved to arrive after the task that it replaces, if it
    replaces one; write into its *headers* which ids are yet to be completed.

    The message is published by the task *current*, whose own plan is *parent*.
    """
    task_id, owed = headers["id"], _parse(current)
    owed.pop(current["id"], None)  # the running task completes this one itself, or is replaced
    if parent is not None and replaces(headers, current):
        promise = Promise(parent.arrival, verdict_plan(parent, current).deadline)
        if current["id"] == task_id:
            plan = _arriving_after(promise, plan, headers)
        else:  # a later message gets its id
            owed = {current["id"]: promise, **owed}
    carried = {}
    if task_id in owed:
        carried[task_id] = own = owed.pop(task_id)
        plan = _arriving_after(own, plan, headers)
    embed = embed_of(body)
    if embed.get("chain") or embed.get("chord"):
        carried |= owed
    if carried:
        headers[OWED] = _format(carried)
    else:
        headers.pop(OWED, None)
    return plan


def annotate_unlock(
    headers: dict[str, Any], current: Mapping[str, Any], plan: Plan | None
) -> None:
    """Write into the *headers* of :data:`CHORD_UNLOCK` which ids are yet to be completed.

    It is published by the task *current*, whose own plan is *plan*, and the chord's body may
    take the place of that very task.
    """
    owed = _parse(current)
    if plan is not None:  # else chord_unlock retries itself
        owed.pop(current["id"], None)
        owed = {current["id"]: Promise(plan.arrival, plan.deadline), **owed}
    if owed:
        headers[OWED] = _format(owed)


def _format(owed: Mapping[str, Promise]) -> str:
    lines = [f"{p.arrival!r} {p.deadline!r} {task_id}" for task_id, p in owed.items()]
    return "\n".join(lines[:MAX_OWED])


def _arriving_after(promise: Promise, plan: Plan, headers: Mapping[str, Any]) -> Plan:
    """Return *plan*, moved where needed to arrive after the task with this *promise*."""
    arrival = promise.arrival + MIN_GAP_S
    if plan.arrival >= arrival:
        return plan
    shift_s = 0.0 if requested_deadline(headers) is not None else arrival - plan.arrival
    return plan._replace(arrival=arrival, deadline=plan.deadline + shift_s)


def embed_of(body: object) -> Mapping[str, Any]:
    """Return the third part of a message's body, which says what follows it: the rest of its
    chain, and the chord whose header it belongs to. Empty where there is none.
    """
    if isinstance(body, list | tuple) and len(body) == 3 and isinstance(body[2], Mapping):
        return body[2]
    return {}


def _parse(values: Mapping[str, Any]) -> dict[str, Promise]:
    """Return what is yet to be completed, by id; empty where the header cannot be read."""
    text = values.get(OWED)
    owed: dict[str, Promise] = {}
    if not isinstance(text, str) or len(text) > MAX_OWED_CHARS:
        return owed
    for line in text.split("\n")[:MAX_OWED]:
        arrival, _, rest = line.partition(" ")
        deadline, _, task_id = rest.partition(" ")
        r, d = instant(arrival), instant(deadline)
        if task_id and r is not None and d is not None:
            owed.setdefault(task_id, Promise(r, d))
    return owed
