"""Deadline propagation: to the tasks that a task publishes, and along a chain.

With ``rts_propagate_deadline`` a task that is published inside another one gets at most
the time that the other has left, unless it is only to run after that; the members of a
chain share one end-to-end deadline: when the last one would be due if each began at the
deadline of the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rts.deadlines import MAX_INSTANT
from rts.headers import instant
from rts.records import Plan
from rts.validation import finite

#: Header: id of the chain's next member, which shares the deadline.
NEXT = "rts_next"

#: Canvas nested deeper than this adds no time: the message may come from a stranger.
MAX_DEPTH = 16

#: Returns the deadline of a task from its name, the options of its signature and its
#: arrival.
Due = Callable[[str, Mapping[str, Any], float], float]


def inherit_deadline(
    plan: Plan, headers: dict[str, Any], current: Mapping[str, Any], deadline: float
) -> Plan:
    """Return the *plan* of a task that the task *current*, due at *deadline*, publishes."""
    if current.get(NEXT) == headers.get("id"):
        return plan._replace(deadline=deadline)
    if headers.get("eta") is not None and plan.arrival > deadline:
        return plan  # it could not even start in time
    return plan._replace(deadline=min(plan.deadline, deadline))


def extend_to_chain(plan: Plan, body: object, due: Due) -> Plan:
    """Return the *plan* of a chain's first member with the deadline of the whole chain."""
    rest = rest_of_chain(body)
    if not rest:
        return plan
    return plan._replace(deadline=_due_in_sequence(reversed(rest), plan.deadline, due, 0))


def rest_of_chain(body: object) -> list[Mapping[str, Any]]:
    """Return the signatures that are to follow a message, by its body, the next one last."""
    if isinstance(body, list | tuple) and len(body) == 3 and isinstance(body[2], Mapping):
        chain = body[2].get("chain")
        if isinstance(chain, list | tuple):
            return [each for each in chain if isinstance(each, Mapping)]
    return []


def write_next(headers: dict[str, Any], body: object) -> None:
    """Write into *headers* which message shares its deadline with this one."""
    rest = rest_of_chain(body)
    options = rest[-1].get("options") if rest else None
    if isinstance(options, Mapping) and isinstance(options.get("task_id"), str):
        headers[NEXT] = options["task_id"]
    else:
        headers.pop(NEXT, None)


def _due_in_sequence(signatures: Iterable[object], at: float, due: Due, depth: int) -> float:
    """Return when the last of *signatures* is due if the first is published at *at*."""
    for each in signatures:
        at = _due(each, at, due, depth)
    return at


def _due(signature: object, at: float, due: Due, depth: int) -> float:
    """Return when a signature published at *at* is due: a chain with its last member, a
    group with the member that is due last.
    """
    if not isinstance(signature, Mapping) or depth > MAX_DEPTH:
        return at
    kwargs = signature.get("kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    options = signature.get("options")
    options = options if isinstance(options, Mapping) else {}
    name = str(signature.get("task"))
    at = _arrival(options, at)

    def last(signatures: object) -> float:
        members = signatures if isinstance(signatures, list | tuple) else ()
        return max((_due(each, at, due, depth + 1) for each in members), default=at)

    if name == "celery.chain":
        tasks = kwargs.get("tasks")
        return _due_in_sequence(
            tasks if isinstance(tasks, list | tuple) else (), at, due, depth + 1
        )
    if name == "celery.group":
        return last(kwargs.get("tasks"))
    if name == "celery.chord":
        header = kwargs.get("header")
        is_group = isinstance(header, Mapping)
        over = _due(header, at, due, depth + 1) if is_group else last(header)
        return _due(kwargs.get("body"), over, due, depth + 1)
    return due(name, options, at)


def _arrival(options: Mapping[str, Any], at: float) -> float:
    """Return when a signature with these *options*, published at *at*, arrives."""
    countdown_s, eta = finite(options.get("countdown")), instant(options.get("eta"))
    if countdown_s is not None and countdown_s > 0:
        at += countdown_s
    return min(MAX_INSTANT, at if eta is None else max(at, eta))
