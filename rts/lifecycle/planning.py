"""Planning: give a task its type, tau and deadline.

Used in whatever process publishes (web process, beat, a task inside a worker), and in
workers: they read the plan of each message, and plan those that arrive without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rts.clock import FleetClock
from rts.deadlines import MAX_INSTANT, deadline
from rts.fields import priority_of
from rts.headers import (
    NO_REQUEST,
    PUBLISHED_HEADER,
    REQUESTABLE,
    Request,
    instant,
    read_plan,
    read_request,
    refuse,
    requested_deadline,
    write_plan,
)
from rts.lifecycle.propagation import (
    Due,
    extend_to_chain,
    inherit_deadline,
    is_next,
    write_next,
)
from rts.lifecycle.replacements import NESTING, OWED, plan_replacement, verdict_plan
from rts.records import Plan, of_fields
from rts.settings import Settings
from rts.tasktypes import infer

if TYPE_CHECKING:
    from rts.tau.cache import TauCache


#: Returns the ``rts={…}`` option of a registered task by its name, empty where it has
#: none; ``None`` where the name is not registered here.
TaskOptions = Callable[[str], object]

#: Headers in which a message may request something: its own, or an inner dict.
_REQUEST_HEADERS = (*REQUESTABLE, "headers")


class _TaskDefaults(NamedTuple):
    """What a task's settings request, and its type where the message requests nothing."""

    request: Request
    task_type: str
    type_source: str


class Planner:
    """Makes plans, writes them into message headers, and reads them there."""

    def __init__(
        self,
        settings: Settings,
        taus: TauCache,
        clock: FleetClock,
        task_options: TaskOptions,
        native_chords: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._types = settings.task_types
        self._taus = taus
        self._clock = clock
        self._task_options = task_options
        #: Whether a chord's body is published inside the last task of its header.
        self._native_chords = native_chords
        #: By task name; only registered tasks get an entry.
        self._defaults: dict[str, _TaskDefaults] = {}

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

        *current* are the attributes of the request of the running task, ``None`` outside a
        task. A message with the same id and name is a retry of that task and keeps its plan,
        even where another library has dropped our headers. Any other message is new, including
        one that replaces the task (:mod:`rts.lifecycle.replacements`).
        """
        plan = None  # what a retry keeps
        if current is not None and current.get("id") == headers.get("id"):
            replaces = headers.get(NESTING, 0) != current.get(NESTING, 0)
            if current.get("task", name) == name and not replaces:
                plan = read_plan(current, self._types)
        elif headers.get("retries"):
            plan = read_plan(headers, self._types)
        if plan is None:
            headers.pop("rts_arrival_source", None)
            if "rts_type_source" in headers:
                _drop_copied_type(headers, current)
            plan = self.plan(name, headers, priority)
            headers.pop(PUBLISHED_HEADER, None)
            if headers.get("eta") is not None:
                headers[PUBLISHED_HEADER] = self._clock.now()
            if self._settings.propagate_deadline:
                plan = self._propagate(plan, name, headers, priority, current, body)
            if current is not None and (headers.get(NESTING) or OWED in current):
                parent = read_plan(current, self._types)
                plan = plan_replacement(plan, headers, current, parent, body)
        elif current is not None and OWED in current:
            headers[OWED] = current[OWED]
        write_plan(headers, plan)
        return plan

    def _propagate(
        self,
        plan: Plan,
        name: str,
        headers: dict[str, Any],
        priority: object,
        current: Mapping[str, Any] | None,
        body: object,
    ) -> Plan:
        """Return *plan* with the deadline that the message shares: with the task that publishes
        it, and with the messages that follow it.
        """
        write_next(headers, body)
        current = current or {}
        parent = read_plan(current, self._types)
        own = requested_deadline(headers) is not None
        due = self._due_once()
        if parent is not None and is_next(current, headers, body):
            if own:
                return plan
            if requested_deadline(current) is None:
                return plan._replace(deadline=parent.deadline)  # which they share
            # The running task has a deadline of its own: the rest of the chain counts from it.
            options = {"headers": headers, "priority": priority}
            at = due(name, options, max(plan.arrival, parent.deadline))
            return extend_to_chain(plan._replace(deadline=at), body, due, self._native_chords)
        if not own:
            plan = extend_to_chain(plan, body, due, self._native_chords)
        return plan if parent is None else inherit_deadline(plan, headers, parent.deadline)

    def _due_once(self) -> Due:
        """Return a function that gives the deadline of each member of a canvas.

        For members that differ only in their arguments it is computed once. A canvas may have
        many: each message of a chord's header holds the whole body, which may be a group.
        """
        known: dict[tuple[str, object, float], float] = {}

        def due(name: str, options: Mapping[str, Any], at: float) -> float:
            given, priority = options.get("headers"), options.get("priority")
            if isinstance(given, Mapping) and not given.keys().isdisjoint(_REQUEST_HEADERS):
                return self.plan(name, {**given, "eta": at}, priority).deadline
            key = name, priority if isinstance(priority, int) else None, at
            if key not in known:
                known[key] = self.plan(name, {"eta": at}, priority).deadline
            return known[key]

        return due

    def plan(
        self, name: str, headers: Mapping[str, Any], priority: object, source: str = "published"
    ) -> Plan:
        """Return the plan of a new task that is published, or received, now."""
        settings = self._settings
        usual = headers.keys().isdisjoint(_REQUEST_HEADERS)
        request = NO_REQUEST if usual else self._read_headers(name, headers)
        defaults, task_type, type_source = self._defaults.get(name) or self._read_options(name)
        if request is not NO_REQUEST:
            task_type, type_source = resolve_type(request, defaults)

        # Before the clock is read: this may refresh the clock's offset with the taus.
        tau = self._taus.tau(task_type, name)
        arrival = self._clock.now()
        if (eta := headers.get("eta")) is not None:
            runnable = instant(eta)
            if runnable is None:
                refuse("eta", eta, f"the headers of {name}", "use ISO 8601")
            elif runnable > arrival:
                arrival = runnable

        k = request.sla_multiplier or defaults.sla_multiplier
        if k is None and settings.priority_multipliers:
            k = settings.priority_multipliers.get(priority_of(priority))
        if k is None and settings.deadline_policy == "quantile":
            k = self._taus.ratio(task_type)
        if k is None:
            k = self._types[task_type].sla_multiplier or settings.sla_multiplier
        until = request.sla_deadline or defaults.sla_deadline
        if until is None:
            until = min(MAX_INSTANT, deadline(arrival, tau, k, settings.min_slack))
        return of_fields(Plan, (task_type, type_source, tau, k, arrival, until, source))

    def plan_received(self, attributes: Mapping[str, Any]) -> Plan:
        """Return a plan for a task that came without one, or with an invalid one."""
        properties = attributes.get("properties") or {}
        priority = properties.get("priority")
        return self.plan(attributes["task"], attributes, priority, "received")

    def plan_of(self, attributes: Mapping[str, Any]) -> Plan:
        """Return the plan that decides the verdict on a task that a worker has received."""
        plan = read_plan(attributes, self._types) or self.plan_received(attributes)
        return verdict_plan(plan, attributes) if OWED in attributes else plan

    def _read_headers(self, name: str, headers: Mapping[str, Any]) -> Request:
        """Return what the headers of one message request."""
        where = f"the headers of {name}"
        request = read_request(headers, self._types, where)
        inner = headers.get("headers")
        if isinstance(inner, dict) and request == NO_REQUEST:
            # Tracing libraries move custom headers into an inner dict. In a worker, Celery's
            # own repeats the message's headers: what was refused above is left out.
            moved = {key: value for key, value in inner.items() if key not in headers}
            request = read_request(moved, self._types, where)
        return request

    def _read_options(self, name: str) -> _TaskDefaults:
        """Return what the task's own settings request, and cache it."""
        options, where = self._task_options(name), f"the settings of task {name}"
        request = NO_REQUEST
        if isinstance(options, Mapping):
            for key in options:
                if key not in REQUESTABLE:
                    refuse("task_option", key, where, f"use one of {', '.join(REQUESTABLE)}")
            request = read_request(options, self._types, where)
        elif options is not None:
            cure = "rts must be a dict, such as rts={'task_type': …}"
            refuse("task_option", options, where, cure)
        defaults = _TaskDefaults(request, *resolve_type(NO_REQUEST, request))
        if options is not None:
            self._defaults[name] = defaults
        return defaults


def _drop_copied_type(headers: dict[str, Any], current: Mapping[str, Any] | None) -> None:
    """Remove from *headers* the type that rts gave to another task.

    A task that passes its own headers on (``headers=self.request.headers``, to keep a
    correlation id for example) does not request the type that rts had written there.
    """
    headers.pop("rts_policy", None)
    explicit = headers.pop("rts_type_source") == "explicit"
    if not explicit and (
        current is None or headers.get("task_type") == current.get("task_type")
    ):
        headers.pop("task_type", None)


def resolve_type(request: Request, defaults: Request) -> tuple[str, str]:
    """Return a task's type and its source, by what its message and its settings request."""
    if request.task_type is not None:
        return request.task_type, "explicit"
    if defaults.task_type is not None:
        return defaults.task_type, "task"
    return infer({**(defaults.resources or {}), **(request.resources or {})}), "inferred"
