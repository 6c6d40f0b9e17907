"""Deadlines that a task hands on: to what it publishes, and along a chain.

With ``rts_propagate_deadline`` a task that is published inside another one has at
most the time that the other has left; the members of a chain share one end-to-end
deadline, the sum of what each would have had alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rts.records import Plan

#: Header with the id of the chain's next member, which shares the deadline.
NEXT = "rts_next"

#: Canvas nested deeper than this counts as nothing: a stranger may have sent it.
MAX_DEPTH = 16

#: Returns the seconds that a task of a name, with such headers, would have alone.
Allowance = Callable[[str, Mapping[str, Any]], float]


def hand_on(
    plan: Plan, headers: dict[str, Any], current: Mapping[str, Any], deadline: float
) -> Plan:
    """Return the *plan* of a task that the task *current*, due at *deadline*, publishes."""
    if current.get(NEXT) == headers.get("id"):
        return plan._replace(deadline=deadline)
    return plan._replace(deadline=min(plan.deadline, deadline))


def share_with_chain(plan: Plan, body: object, allowance: Allowance) -> Plan:
    """Return the *plan* of a chain's first member with the deadline of the whole chain."""
    rest = rest_of_chain(body)
    if not rest:
        return plan
    return plan._replace(
        deadline=plan.deadline + sum(_allowance(each, allowance, 0) for each in rest)
    )


def rest_of_chain(body: object) -> list[Mapping[str, Any]]:
    """Return the signatures that a message's body says are to follow, the next one last."""
    if isinstance(body, list | tuple) and len(body) == 3 and isinstance(body[2], Mapping):
        chain = body[2].get("chain")
        if isinstance(chain, list | tuple):
            return [each for each in chain if isinstance(each, Mapping)]
    return []


def note_next(headers: dict[str, Any], body: object) -> None:
    """Note in the *headers* which message shares the deadline with this one."""
    rest = rest_of_chain(body)
    options = rest[-1].get("options") if rest else None
    if isinstance(options, Mapping) and isinstance(options.get("task_id"), str):
        headers[NEXT] = options["task_id"]
    else:
        headers.pop(NEXT, None)


def _allowance(signature: object, allowance: Allowance, depth: int) -> float:
    """Return the seconds of a signature: a sum along chains, the most of a group."""
    if not isinstance(signature, Mapping) or depth > MAX_DEPTH:
        return 0.0
    kwargs = signature.get("kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    name = str(signature.get("task"))

    def of(signatures: object) -> list[float]:
        members = signatures if isinstance(signatures, list | tuple) else ()
        return [_allowance(member, allowance, depth + 1) for member in members]

    if name == "celery.chain":
        return sum(of(kwargs.get("tasks")))
    if name == "celery.group":
        return max(of(kwargs.get("tasks")), default=0.0)
    if name == "celery.chord":
        header = kwargs.get("header")
        if isinstance(header, Mapping):
            most = _allowance(header, allowance, depth + 1)
        else:
            most = max(of(header), default=0.0)
        return most + _allowance(kwargs.get("body"), allowance, depth + 1)
    options = signature.get("options")
    headers = options.get("headers") if isinstance(options, Mapping) else None
    return allowance(name, headers if isinstance(headers, Mapping) else {})
