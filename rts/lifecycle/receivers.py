"""The receivers of Celery's signals: the boundary between the host app and rts.

Each catches everything, counts it and logs it once: Celery would log a
traceback for every task, and the host app must not notice at all.

=======================  =======================================================
signal                   where it is sent
=======================  =======================================================
before_task_publish      whatever process publishes, also for retries, beat,
                         canvas
after_task_publish       the same, once the broker has the message
task_received            worker, main process
task_prerun              process that runs the task (a pool child with prefork)
task_postrun             the same
task_failure             the same, before postrun; and in the main process for
                         runs whose process was killed or whose hard time limit
                         struck
task_revoked             worker, main process
task_unknown             worker, main process
worker_process_init      a new pool child (prefork); with solo the worker itself
worker_process_shutdown  a pool child (prefork) that ends in order
worker_shutdown          worker, main process, when it ends in order
=======================  =======================================================
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import signals
from celery._state import get_current_worker_task
from celery.exceptions import Reject, TimeLimitExceeded

from rts import health
from rts.headers import open_task, read_plan
from rts.lifecycle.neighbours import NEIGHBOURS
from rts.lifecycle.owners import owner_of, several
from rts.lifecycle.planning import NESTING
from rts.lifecycle.runs import ATTRIBUTE, run_of

if TYPE_CHECKING:
    from rts.parts import Parts

#: Returns the parts of an app, ``None`` where it does not have rts.
PartsOf = Callable[[Any], "Parts | None"]
#: Returns the parts of the app that publishes a task of this name.
Publisher = Callable[[str], "Parts | None"]

#: Celery's own tasks are not scheduled work, but for those that run a task of the app's on
#: each item of a list, as chunks do.
OWN, OF_THE_APP = "celery.", frozenset({"celery.map", "celery.starmap"})

_connected: list[tuple[Any, Any]] = []


class _Announced(threading.local):
    """The message that this thread publishes, by its headers, and whose it is, where
    there are several apps: the signal after a publish does not tell.
    """

    what: tuple[Any, Parts | None] = (None, None)


def connect(parts_of: PartsOf, publisher: Publisher) -> None:
    """Connect all receivers, once per process."""
    if _connected:
        return
    announced = _Announced()

    def publishing(
        sender: Any = None,
        headers: Any = None,
        properties: Any = None,
        body: Any = None,
        declare: Any = None,
        **_: Any,
    ) -> None:
        try:
            name = str(sender)
            if _is_celerys(name):
                return
            owner = owner_of(declare) if several() else None
            parts = publisher(name) if owner is None else parts_of(owner)
            if owner is not None:
                announced.what = headers, parts
            if parts is None:
                return
            if "id" not in headers:
                health.count("unsupported_protocol")
                health.warn_once("protocol", "rts needs task_protocol = 2, Celery's default")
                return
            # What a task publishes has a parent; to ask Celery for the task costs half as
            # much as the plan.
            task = None if headers.get("parent_id") is None else get_current_worker_task()
            current = None if task is None else vars(task.request)
            priority = properties.get("priority")
            plan = parts.planner.plan_message(name, headers, priority, current, body)
            if parts.prioritise is not None and priority is None:
                properties["priority"] = parts.prioritise(plan)
            if NEIGHBOURS.maybe:
                NEIGHBOURS.look()
        except Exception as exc:  # noqa: BLE001  the message must go out
            health.hook_failed("publish", exc)

    def published(
        sender: Any = None, headers: Any = None, routing_key: Any = None, **_: Any
    ) -> None:
        try:
            if "rts_deadline" not in headers:
                return
            running = _same_task(headers)
            replaces = running is not None and _replaces(headers, running)
            if running is not None and not replaces:
                return  # a retry is noted; another note might come after its end
            known, parts = announced.what
            if known is not headers:
                parts = publisher(str(sender))
            if parts is not None and parts.open_tasks is not None:
                task = open_task(headers, routing_key)
                parts.open_tasks.note(task, again=replaces)
                if parts.outlook is not None:
                    parts.outlook.published(task)
        except Exception as exc:  # noqa: BLE001  the message is sent
            health.hook_failed("published", exc)

    def received(sender: Any = None, request: Any = None, **_: Any) -> None:
        try:
            parts = parts_of(sender.app)
            if parts is None or parts.worker is None:
                return
            attributes = request.request_dict
            parts.worker.board.received.put(attributes["id"])
            if _is_celerys(attributes["task"]):
                return
            ends = parts.worker.ends
            if "rts_deadline" not in attributes:
                ends.received(attributes)
            ends.watch(request)
        except Exception as exc:  # noqa: BLE001  the task must run
            health.hook_failed("received", exc)

    def prerun(task: Any = None, **_: Any) -> None:
        try:
            parts = parts_of(task.app)
            request = task.request
            if (
                parts is None
                or parts.worker is None
                or request.is_eager
                or _is_celerys(task.name)
            ):
                return
            attributes = vars(request)
            plan = read_plan(attributes, parts.settings.task_types)
            if plan is None:
                plan = parts.worker.ends.plan_received(attributes)
            attributes[ATTRIBUTE] = parts.worker.runs.start(plan, attributes)
            if NEIGHBOURS.maybe:
                NEIGHBOURS.started(task)
        except Exception as exc:  # noqa: BLE001  the task must run
            health.hook_failed("start", exc)

    def postrun(task: Any = None, state: Any = None, **_: Any) -> None:
        try:
            run = run_of(task.request)
            # Without a state the run was broken off; the main process reports it.
            if run is None or not state:
                return
            parts = parts_of(task.app)
            if parts is not None and parts.worker is not None:
                parts.worker.runs.finish(run, state)
        except Exception as exc:  # noqa: BLE001  the task has run
            health.hook_failed("finish", exc)

    def failed(
        sender: Any = None, task_id: Any = None, exception: Any = None, **_: Any
    ) -> None:
        try:
            # Within the run postrun follows; so it does for a rejected task, which
            # the main process announces once more. (Celery 5.7 puts the request on
            # the stack in the main process too, so the request alone does not tell.)
            request = sender.request
            if isinstance(exception, Reject) or (
                request.id == task_id and run_of(request) is not None
            ):
                return
            parts = parts_of(sender.app)
            if parts is not None and parts.worker is not None:
                cause = "time_limit" if isinstance(exception, TimeLimitExceeded) else "killed"
                parts.worker.ends.broken_off(task_id, cause)
        except Exception as exc:  # noqa: BLE001  the worker must go on
            health.hook_failed("failure", exc)

    def revoked(
        sender: Any = None,
        request: Any = None,
        terminated: Any = False,
        expired: Any = False,
        **_: Any,
    ) -> None:
        try:
            parts = parts_of(sender.app)
            if parts is not None and parts.worker is not None and not _is_celerys(sender.name):
                parts.worker.ends.revoked(
                    vars(request), terminated=bool(terminated), expired=bool(expired)
                )
        except Exception as exc:  # noqa: BLE001  the worker must go on
            health.hook_failed("revoked", exc)

    def unknown(sender: Any = None, message: Any = None, **_: Any) -> None:
        try:
            parts = parts_of(sender.app)
            if parts is not None and parts.worker is not None and "id" in message.headers:
                attributes = {**message.headers, "delivery_info": message.delivery_info}
                parts.worker.ends.unknown(attributes)
        except Exception as exc:  # noqa: BLE001  the worker must go on
            health.hook_failed("unknown", exc)

    def process_shutdown(**_: Any) -> None:
        try:
            from celery import current_app

            parts = parts_of(current_app._get_current_object())
            if parts is not None and parts.open_tasks is not None:
                parts.open_tasks.flush()
        except Exception as exc:  # noqa: BLE001  the process must end
            health.hook_failed("process_shutdown", exc)

    def process_init(**_: Any) -> None:
        try:
            from celery import current_app

            parts = parts_of(current_app._get_current_object())
            if parts is not None and parts.worker is not None:
                parts.worker.in_child()
        except Exception as exc:  # noqa: BLE001  the pool must start
            health.hook_failed("process_init", exc)

    def shutdown(sender: Any = None, **_: Any) -> None:
        try:
            parts = parts_of(sender.app)
            if parts is not None and parts.worker is not None:
                parts.worker.stop()
        except Exception as exc:  # noqa: BLE001  the worker must stop
            health.hook_failed("shutdown", exc)

    def now_published(name: str) -> float | None:
        parts = publisher(name)
        return None if parts is None else parts.clock.now()

    def now_run(app: Any) -> float | None:
        parts = parts_of(app)
        return None if parts is None else parts.clock.now()

    NEIGHBOURS.connect(now_published, now_run)
    for signal, receiver in (
        (signals.before_task_publish, publishing),
        (signals.after_task_publish, published),
        (signals.task_received, received),
        (signals.task_prerun, prerun),
        (signals.task_postrun, postrun),
        (signals.task_failure, failed),
        (signals.task_revoked, revoked),
        (signals.task_unknown, unknown),
        (signals.worker_process_init, process_init),
        (signals.worker_process_shutdown, process_shutdown),
        (signals.worker_shutdown, shutdown),
    ):
        # The uid is what disconnects it: a closure is another object each time.
        signal.connect(receiver, weak=False, dispatch_uid=f"rts.{receiver.__name__}")
        _connected.append((signal, f"rts.{receiver.__name__}"))


def _is_celerys(name: str) -> bool:
    """Return whether a task of this name is none of the app's work."""
    return name.startswith(OWN) and name not in OF_THE_APP


def _same_task(headers: Any) -> Any:
    """Return the request of the task that is running where a message with *headers* is of
    the same task: its retry, or what takes its place.
    """
    if not headers.get("retries") and not headers.get(NESTING):
        return None
    task = get_current_worker_task()
    return task.request if task is not None and task.request.id == headers["id"] else None


def _replaces(headers: Any, request: Any) -> bool:
    """Return whether a message with *headers* takes the place of the task that *request*
    is of, and note that for the end of its run.
    """
    run = run_of(request)
    if run is None or headers.get(NESTING, 0) == request.get(NESTING, 0):
        return False
    run.replaced = True
    return True


def disconnect() -> None:
    """Disconnect all receivers."""
    NEIGHBOURS.disconnect()
    while _connected:
        signal, uid = _connected.pop()
        signal.disconnect(dispatch_uid=uid)
