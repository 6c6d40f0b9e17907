"""Deadline propagation: to the tasks that a task publishes, and along a chain.

With ``rts_propagate_deadline`` a task that is published inside another one gets at most
the time that the other has left, unless it is only to run after that; the members of a
chain share one end-to-end deadline: when the last one would be due if each began at the
deadline of the one before it. So do a member of a chord's header and the chord's body,
which a result backend with native chords publishes inside the member that ends last.

What follows a message does not move an ``sla_deadline`` that this message itself has, and
is due as if it were published then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

from rts.deadlines import MAX_INSTANT
from rts.headers import instant
from rts.records import Plan
from rts.validation import finite

#: Header: id of the chain's next member, or of the chord's body, which shares the deadline.
NEXT = "rts_next"

#: Canvas nested deeper than this adds no time: the message may come from a stranger.
MAX_DEPTH = 16

#: Returns the deadline of a task from its name, the options of its signature and its
#: arrival.
Due = Callable[[str, Mapping[str, Any], float], float]


def inherit_deadline(plan: Plan, headers: Mapping[str, Any], deadline: float) -> Plan:
    """Return the *plan* of a task that is published inside one due at *deadline*."""
    if headers.get("eta") is not None and plan.arrival > deadline:
        return plan  # it could not even start in time
    return plan._replace(deadline=min(plan.deadline, deadline))


def extend_to_chain(
    plan: Plan, body: object, due: Due, native_chords: Callable[[], bool]
) -> Plan:
    """Return the *plan* of a message with the deadline of all that is to follow it, by its
    *body*.
    """
    chain, chord = _what_follows(body)
    if not chain and chord is None:
        return plan
    at = _due_in_sequence(reversed(chain), plan.deadline, due, 0)
    if chord is not None and native_chords():
        for _ in range(MAX_DEPTH):
            at = _due(chord, at, due, 0)
            chord = _chord_of(chord)  # that it is itself in the header of
            if chord is None:
                break
    return plan._replace(deadline=at)


def write_next(headers: dict[str, Any], body: object) -> None:
    """Write into *headers* which message shares its deadline with this one."""
    chain, chord = _what_follows(body)
    task_id = _first_id(chain[-1] if chain else chord)
    if task_id is not None:
        headers[NEXT] = task_id
    else:
        headers.pop(NEXT, None)


def _what_follows(body: object) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
    """Return the rest of the chain that a message with this *body* belongs to, the next
    member last, and the body of the chord whose header it belongs to.
    """
    if not isinstance(body, list | tuple) or len(body) != 3 or not isinstance(body[2], Mapping):
        return [], None
    chain, chord = body[2].get("chain"), body[2].get("chord")
    members = [each for each in chain if isinstance(each, Mapping)] if _is_list(chain) else []
    if members:  # the last one completes the member of the header
        return members, _chord_of(members[0])
    return members, chord if isinstance(chord, Mapping) else None


def _chord_of(signature: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the body of the chord whose header a signature belongs to."""
    options = signature.get("options")
    chord = options.get("chord") if isinstance(options, Mapping) else None
    return chord if isinstance(chord, Mapping) else None


def _first_id(signature: object) -> str | None:
    """Return the id of the message that a signature publishes first; ``None`` if unknown."""
    for _ in range(MAX_DEPTH):
        if not isinstance(signature, Mapping):
            break
        if signature.get("task") != "celery.chain":
            options = signature.get("options")
            task_id = options.get("task_id") if isinstance(options, Mapping) else None
            return task_id if isinstance(task_id, str) else None
        kwargs = signature.get("kwargs")
        tasks = kwargs.get("tasks") if isinstance(kwargs, Mapping) else None
        signature = tasks[0] if _is_list(tasks) and tasks else None
    return None


def _due_in_sequence(signatures: Iterable[object], at: float, due: Due, depth: int) -> float:
    """Return when the last of *signatures* is due if the first is published at *at*."""
    for each in signatures:
        at = _due(each, at, due, depth)
    return at


def _due_together(signatures: object, at: float, due: Due, depth: int) -> float:
    """Return when the last of *signatures* is due if all are published at *at*."""
    members = signatures if _is_list(signatures) else ()
    return max((_due(each, at, due, depth) for each in members), default=at)


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
    if name == "celery.chain":
        tasks = kwargs.get("tasks")
        return _due_in_sequence(tasks if _is_list(tasks) else (), at, due, depth + 1)
    if name == "celery.group":
        return _due_together(kwargs.get("tasks"), at, due, depth + 1)
    if name == "celery.chord":
        header = kwargs.get("header")
        together = _due if isinstance(header, Mapping) else _due_together
        over = together(header, at, due, depth + 1)
        return _due(kwargs.get("body"), over, due, depth + 1)
    at = due(name, options, at)
    rest = options.get("chain")  # a chord's body holds what follows it in a chain
    return _due_in_sequence(reversed(rest), at, due, depth + 1) if _is_list(rest) else at


def _is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    return isinstance(value, list | tuple)


def _arrival(options: Mapping[str, Any], at: float) -> float:
    """Return when a signature with these *options*, published at *at*, arrives."""
    countdown_s, eta = finite(options.get("countdown")), instant(options.get("eta"))
    if countdown_s is not None and countdown_s > 0:
        at += countdown_s
    return min(MAX_INSTANT, at if eta is None else max(at, eta))
