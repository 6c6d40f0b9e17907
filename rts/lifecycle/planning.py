"""Publishing: a task gets its type, tau and deadline.

Runs in whatever process publishes (web process, beat, a task inside a worker),
and in the worker's main process for messages that came without a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from rts.clock import FleetClock
from rts.deadlines import MAX_INSTANT, deadline
from rts.headers import (
    NOTHING,
    REQUESTABLE,
    Request,
    instant,
    read_plan,
    read_request,
    refuse,
    write_plan,
)
from rts.lifecycle.propagation import NEXT, hand_on, note_next, share_with_chain
from rts.lifecycle.replacements import NESTING, OWED, succeed
from rts.records import Plan
from rts.settings import Settings
from rts.tasktypes import Resources, infer


class TauReader(Protocol):
    """Where planning reads tau: process memory, never a round trip of its own."""

    def tau(self, task_type: str, name: str) -> float:
        """Return the tau in seconds to use for one task."""

    def ratio(self, task_type: str) -> float | None:
        """Return the learned quantile of runtime over tau; ``None``: not known yet."""


#: Returns the ``rts={…}`` option of a registered task by its name, empty without
#: one; ``None`` where the name is not registered here.
TaskOptions = Callable[[str], object]

#: Where a message asks for something: of its own, or in an inner dict.
_ASKING = (*REQUESTABLE, "headers")


class _Own(NamedTuple):
    """What a task's own settings ask for, and what its type is where a message asks nothing."""

    asked: Request
    task_type: str
    type_source: str


class Planner:
    """Makes plans and writes them into message headers."""

    def __init__(
        self, settings: Settings, taus: TauReader, clock: FleetClock, task_options: TaskOptions
    ) -> None:
        self._settings = settings
        self._types = settings.task_types
        self._taus = taus
        self._clock = clock
        self._task_options = task_options
        #: Understood options by task name; only registered tasks get an entry.
        self._own: dict[str, _Own] = {}

    def plan_message(
        self,
        name: str,
        headers: dict[str, Any],
        priority: object,
        current: Mapping[str, Any] | None,
        body: object = None,
    ) -> Plan:
        """Write a plan into the *headers* of a message that is about to be published,
        and return it.

        *current* are the attributes of the request that the publishing process
        is running, ``None`` outside a task. A message with the same id and name
        is its retry and keeps its plan, also where another library has dropped
        our headers; any other message is new, also one that takes its place
        (:mod:`rts.lifecycle.replacements`).
        """
        plan = None
        if current is not None and current.get("id") == headers.get("id"):
            replaces = headers.get(NESTING, 0) != current.get(NESTING, 0)
            if current.get("task", name) == name and not replaces:
                plan = read_plan(current, self._types)
        elif headers.get("retries"):
            plan = read_plan(headers, self._types)
        if plan is None:
            headers.pop("rts_arrival_source", None)
            if "rts_type_source" in headers:
                _forget_copied(headers, current)
            plan = self.plan(name, headers, priority)
            if self._settings.propagate_deadline:
                plan = self._propagate(plan, headers, current, body)
            if current is not None and (headers.get(NESTING) or OWED in current):
                plan = succeed(plan, headers, current, read_plan(current, self._types), body)
        elif current is not None and OWED in current:
            headers[OWED] = current[OWED]
        write_plan(headers, plan)
        return plan

    def _propagate(
        self,
        plan: Plan,
        headers: dict[str, Any],
        current: Mapping[str, Any] | None,
        body: object,
    ) -> Plan:
        parent = None if current is None else read_plan(current, self._types)
        note_next(headers, body)
        if current is None or current.get(NEXT) != headers.get("id"):

            def due(name: str, options: Mapping[str, Any], at: float) -> float:
                asked = options.get("headers")
                asked = asked if isinstance(asked, Mapping) else {}
                return self.plan(name, {**asked, "eta": at}, options.get("priority")).deadline

            plan = share_with_chain(plan, body, due)
        if current is not None and parent is not None:
            plan = hand_on(plan, headers, current, parent.deadline)
        return plan

    def plan(
        self, name: str, headers: Mapping[str, Any], priority: object, source: str = "published"
    ) -> Plan:
        """Return the plan of a new task that is published, or received, now."""
        settings = self._settings
        usual = headers.keys().isdisjoint(_ASKING)
        asked = NOTHING if usual else self._read_headers(name, headers)
        own, task_type, type_source = self._own.get(name) or self._read_options(name)
        if asked is not NOTHING:
            task_type, type_source = typed(asked, own)

        # First, since it may measure the clock and load the taus.
        tau = self._taus.tau(task_type, name)
        arrival = self._clock.now()
        if (eta := headers.get("eta")) is not None:
            runnable = instant(eta)
            if runnable is None:
                refuse("eta", eta, f"the headers of {name}", "use ISO 8601")
            elif runnable > arrival:
                arrival = runnable

        k = asked.sla_multiplier or own.sla_multiplier
        if k is None and settings.priority_multipliers and isinstance(priority, int):
            k = settings.priority_multipliers.get(priority)
        if k is None and settings.deadline_policy == "quantile":
            k = self._taus.ratio(task_type)
        if k is None:
            k = self._types[task_type].sla_multiplier or settings.sla_multiplier
        until = asked.sla_deadline or own.sla_deadline
        if until is None:
            until = min(MAX_INSTANT, deadline(arrival, tau, k, settings.min_slack))
        return Plan(task_type, type_source, tau, k, arrival, until, source)

    def _read_headers(self, name: str, headers: Mapping[str, Any]) -> Request:
        """Return what the headers of one message ask for."""
        where = f"the headers of {name}"
        asked = read_request(headers, self._types, where)
        inner = headers.get("headers")
        if isinstance(inner, dict) and asked == NOTHING:
            # Tracing libraries move custom headers into an inner dict.
            asked = read_request(inner, self._types, where)
        return asked

    def _read_options(self, name: str) -> _Own:
        """Return what the task's own settings ask for, and remember it."""
        options = self._task_options(name)
        if options is None:
            return _Own(NOTHING, *typed(NOTHING, NOTHING))
        where = f"the settings of task {name}"
        if isinstance(options, Mapping):
            for key in options:
                if key not in REQUESTABLE:
                    refuse("task_option", key, where, f"use one of {', '.join(REQUESTABLE)}")
            asked = read_request(options, self._types, where)
        else:
            refuse(
                "task_option",
                options,
                where,
                "rts must be a dict, such as rts={'task_type': …}",
            )
            asked = NOTHING
        own = self._own[name] = _Own(asked, *typed(NOTHING, asked))
        return own


def _forget_copied(headers: dict[str, Any], current: Mapping[str, Any] | None) -> None:
    """Take the type that rts gave to another task off *headers*.

    A task that passes its own headers on (``headers=self.request.headers``, say for the sake
    of an id that all logs shall have) asks for no type with those that rts has put there.
    """
    headers.pop("rts_policy", None)
    asked_for = headers.pop("rts_type_source") == "explicit"
    if not asked_for and (
        current is None or headers.get("task_type") == current.get("task_type")
    ):
        headers.pop("task_type", None)


def typed(asked: Request, own: Request) -> tuple[str, str]:
    """Return a task's type and where it is from; *own*: what the task's settings ask."""
    if asked.task_type is not None:
        return asked.task_type, "explicit"
    if own.task_type is not None:
        return own.task_type, "task"
    amounts = {**(own.resources or {}), **(asked.resources or {})}
    return infer(Resources(**amounts)), "inferred"
