"""Deadline propagation: to the tasks that a task publishes, and along a chain.

With ``rts_propagate_deadline``

- a task that is published inside another one is due no later than that one, unless it is only
  to run after that;
- the members of a chain share one deadline: that of the last one, if each were published when
  the one before it is due;
- so do a member of a chord's header and the chord's body, which a result backend with native
  chords publishes inside the member that ends last.

A message keeps its own ``sla_deadline``; what follows the message is due as if it were
published at that instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rts.deadlines import MAX_INSTANT
from rts.headers import instant
from rts.lifecycle.replacements import embed_of, replaces
from rts.records import Plan
from rts.validation import finite

#: Header: id of the chain's next member, a task or a group, or of the chord's body, which
#: shares the deadline.
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
    """Return a message's *plan* with the deadline of all that follows it, by its *body*."""
    chain, chord = _what_follows(body)
    if not chain and chord is None:
        return plan
    at = _due_in_sequence(reversed(chain), plan.deadline, due)
    if chord is not None and native_chords():
        for _ in range(MAX_DEPTH):
            at = _due(chord, at, due)
            # The body may itself be in the header of another chord.
            chord = _chord_in(_part(chord, "options"))
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


def is_next(current: Mapping[str, Any], headers: Mapping[str, Any], body: object) -> bool:
    """Return whether a message that the task *current* publishes shares its deadline: it is the
    next member of the chain, or in the group that is this member, or the chord's body.
    """
    shared = current.get(NEXT)
    if shared is None or replaces(headers, current):  # what replaces a task is in its group
        return False
    # Of a chain within the group, only the last member names the group.
    chain, _ = _what_follows(body)
    last = _part(chain[0], "options") if chain else {}
    return shared in (headers.get("id"), headers.get("group"), last.get("group_id"))


def _what_follows(body: object) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
    """Return the rest of the chain that a message with this *body* belongs to, the next
    member last, and the body of the chord whose header it belongs to.
    """
    embed = embed_of(body)
    chain = [each for each in _items(embed.get("chain")) if isinstance(each, Mapping)]
    # Of a chain within a header, the last member completes the member of the header.
    return chain, _chord_in(_part(chain[0], "options") if chain else embed)


def _chord_in(options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the body of the chord whose header these options place a task in."""
    chord = options.get("chord")
    return chord if isinstance(chord, Mapping) else None


def _first_id(signature: object) -> str | None:
    """Return the id of the message that a signature publishes first; ``None`` if unknown."""
    for _ in range(MAX_DEPTH):
        if not isinstance(signature, Mapping):
            break
        if signature.get("task") != "celery.chain":
            options = _part(signature, "options")
            first = options.get("task_id")
            if signature.get("task") == "celery.group":
                # With Celery >= 5.6, the tasks of a chord's body name the header's group.
                first = options.get("group_id") or first
            return first if isinstance(first, str) else None
        signature = next(iter(_items(_part(signature, "kwargs").get("tasks"))), None)
    return None


def _due_in_sequence(
    signatures: Iterable[object], at: float, due: Due, depth: int = 0
) -> float:
    """Return when the last of *signatures* is due if the first is published at *at*."""
    for each in signatures:
        at = _due(each, at, due, depth)
    return at


def _due_together(signatures: Iterable[object], at: float, due: Due, depth: int) -> float:
    """Return when the last of *signatures* is due if all are published at *at*."""
    return max((_due(each, at, due, depth) for each in signatures), default=at)


def _due(signature: object, at: float, due: Due, depth: int = 0) -> float:
    """Return when a signature published at *at* is due: a chain with its last member, a
    group with the member that is due last.
    """
    if not isinstance(signature, Mapping) or depth > MAX_DEPTH:
        return at
    name, depth = str(signature.get("task")), depth + 1
    kwargs, options = _part(signature, "kwargs"), _part(signature, "options")
    at = _arrival(options, at)
    if name == "celery.chain":
        return _due_in_sequence(_items(kwargs.get("tasks")), at, due, depth)
    if name == "celery.group":
        return _due_together(_items(kwargs.get("tasks")), at, due, depth)
    if name == "celery.chord":
        header = kwargs.get("header")
        members = [header] if isinstance(header, Mapping) else _items(header)
        at = _due_together(members, at, due, depth)
        return _due(kwargs.get("body"), at, due, depth)
    # A chord's body holds what follows it in a chain.
    rest = reversed(_items(options.get("chain")))
    return _due_in_sequence(rest, due(name, options, at), due, depth)


def _part(signature: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a signature; empty where it has none, or one that is no dict."""
    part = signature.get(name)
    return part if isinstance(part, Mapping) else {}


def _items(value: object) -> Sequence[Any]:
    """Return *value*; empty where it is no list."""
    return value if isinstance(value, list | tuple) else ()


def _arrival(options: Mapping[str, Any], at: float) -> float:
    """Return when a signature with these *options*, published at *at*, arrives."""
    countdown_s, eta = finite(options.get("countdown")), instant(options.get("eta"))
    if countdown_s is not None and countdown_s > 0:
        at += countdown_s
    return min(MAX_INSTANT, at if eta is None else max(at, eta))
