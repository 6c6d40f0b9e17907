"""Receivers of the signals around a publish, in whatever process publishes, including
retries, beat and canvas.

This is on the path of every publish: each method catches exceptions itself, since a
wrapper would cost as much as what it wraps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery._state import get_current_worker_task

from rts import health
from rts.fields import plain
from rts.headers import open_task
from rts.lifecycle.owners import is_celerys, owner_of, several_apps
from rts.lifecycle.replacements import (
    CHORD_UNLOCK,
    NESTING,
    OWED,
    annotate_unlock,
    due_at,
    replaces,
    succeeds,
)
from rts.lifecycle.runs import run_of
from rts.lifecycle.soft_time_limit import hook_in_task_failed
from rts.lifecycle.tracing import TRACING

if TYPE_CHECKING:
    from rts.parts import Parts


class _Publishing(threading.local):
    """The headers of the message that this thread is publishing, and its app's parts. Set
    where there are several apps, since ``after_task_publish`` does not say which.
    """

    message: tuple[Any, Parts | None] = (None, None)


class ProducerSide:
    """Plans each message, and notes it once the broker has it.

    *publisher* returns the parts of the app that publishes a task, by the task's name,
    *parts_of* those of an app; ``None`` where it does not have rts.
    """

    def __init__(
        self, parts_of: Callable[[Any], Parts | None], publisher: Callable[[str], Parts | None]
    ) -> None:
        self._parts_of = parts_of
        self._publisher = publisher
        self._publishing = _Publishing()

    def publishing(
        self,
        sender: Any = None,
        headers: Any = None,
        properties: Any = None,
        body: Any = None,
        declare: Any = None,
        **_: Any,
    ) -> None:
        """Plan the message that is about to be sent, in its headers."""
        try:
            name = plain(sender)
            if is_celerys(name):
                if name == CHORD_UNLOCK:
                    _annotate_unlock(headers)
                return
            owner = owner_of(declare) if several_apps() else None
            parts = self._publisher(name) if owner is None else self._parts_of(owner)
            if owner is not None:
                self._publishing.message = headers, parts
            if parts is None:
                return
            if "id" not in headers:
                health.count("unsupported_protocol")
                health.warn_once(
                    "protocol",
                    "rts: messages carry no deadline, as task_protocol is 1: set it to 2, "
                    "Celery's default",
                )
                return
            # What a task publishes has a parent; asking Celery for the current task costs
            # half as much as planning.
            task = None if headers.get("parent_id") is None else get_current_worker_task()
            current = None if task is None else vars(task.request)
            priority = properties.get("priority")
            plan = parts.planner.plan_message(name, headers, priority, current, body)
            if parts.prioritise is not None:
                retry = bool(headers.get("retries"))
                properties["priority"] = parts.prioritise(plan, priority, retry)
            if TRACING.enabled:
                TRACING.detect()
        except Exception as exc:  # noqa: BLE001  the message must go out
            hook_in_task_failed("publish", exc)

    def published(
        self, sender: Any = None, headers: Any = None, routing_key: Any = None, **_: Any
    ) -> None:
        """Note the task as open once the broker has its message, unless it is a retry."""
        try:
            if "rts_deadline" not in headers or "id" not in headers:
                return  # not planned, or a retry by protocol 1, which passes old headers on
            task = None
            if headers.get("retries") or headers.get(NESTING) or OWED in headers:
                task = get_current_worker_task()
            replacement = False  # of a task that is noted under its id
            if task is not None:
                replaced, same = _mark_replaced(task, headers), task.request.id == headers["id"]
                if same and not replaced:
                    return  # a retry is noted already; another note might come after its end
                replacement = same or succeeds(headers)
            known, parts = self._publishing.message
            if known is not headers:
                parts = self._publisher(plain(sender))
            if parts is None or (parts.open_tasks is None and parts.predictor is None):
                return
            noted = open_task(headers, routing_key)
            if OWED in headers and (deadline := due_at(headers)) is not None:
                noted = noted._replace(deadline=deadline)
            if parts.open_tasks is not None:
                parts.open_tasks.note(noted, replaces=replacement)
            if parts.predictor is not None:
                parts.predictor.published(noted)
        except Exception as exc:  # noqa: BLE001  the message is sent
            hook_in_task_failed("published", exc)


def _annotate_unlock(headers: Any) -> None:
    """Write into a chord_unlock message which ids the chord's body will complete."""
    task = get_current_worker_task()
    if task is not None:
        run = run_of(task.request)
        annotate_unlock(headers, vars(task.request), None if run is None else run.plan)


def _mark_replaced(task: Any, headers: Any) -> bool:
    """Return whether a message with *headers* replaces the running *task*, or is the first part
    of what does; if so, mark its run.
    """
    run = run_of(task.request)
    if run is None or not replaces(headers, vars(task.request)):
        return False
    run.replaced = True
    return True
