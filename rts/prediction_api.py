"""What an app can ask before and after it publishes: predictions, and a route by risk.

Modules that talk to servers are imported inside functions: this one is loaded with the
package, also by the companion process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rts import health
from rts.errors import CommandError
from rts.fields import plain
from rts.installation import apps_with_rts, installed, parts_of, publisher
from rts.predictions.prediction import Prediction

if TYPE_CHECKING:
    from rts.parts import Parts
    from rts.predictions.predictor import Predictor


def predict(task_id: str, *, queue: str | None = None, app: Any = None) -> Prediction | None:
    """Return when a published task will start and finish; ``None`` if it is neither
    waiting nor running. Works with the broker's own order too.

    *queue*: where it waits; by default the queue that it was sent to and all that the app,
    its routes or its workers know are searched. *app*: by default the current one, or the
    only one with rts.

    Raises:
        CommandError: *task_id* is no text, rts is not installed, or off, in the app, the
            broker is not Redis, or no worker consumes from the queue.
        StoreUnavailable: Redis is away.
    """
    if not isinstance(task_id, str):
        raise CommandError(f"{health.shown(task_id)} is no id of a task; pass result.id")
    return _predictor(_installed(app)).of_task(task_id, queue)


def predict_new(
    task: Any,
    queue: Any = None,
    *,
    headers: Mapping[str, Any] | None = None,
    priority: int | None = None,
    app: Any = None,
) -> Prediction:
    """Return when a task would start and finish, were it published now.

    *task* is a task or its name; *queue*, *headers* and *priority* as for ``apply_async``; an
    eta goes into the headers, as ISO 8601. *queue* and *priority*: by default the task's own,
    or those that the app's routes give it. It may be called for each request of a web process:
    one reading of the queues serves all calls for a fifth of a second, or longer if it was
    slow, and takes into account what the process itself publishes meanwhile.

    Raises:
        CommandError: rts is not installed, or off, in the app, the broker is not Redis, the
            task's route names an exchange alone, or no worker consumes from the queue.
        StoreUnavailable: Redis is away.
    """
    parts = _installed(app if app is not None else getattr(task, "app", None))
    name = plain(task if isinstance(task, str) else task.name)
    requested = dict(headers or {})
    if priority is None:
        priority = getattr(task, "priority", None)
    if queue is None:
        options: dict[str, Any] = {"headers": requested, "priority": priority}
        for key in ("queue", "exchange", "routing_key"):
            if (own := getattr(task, key, None)) is not None:
                options[key] = own
        queue, priority = _routed(parts.app, name, options)
    plan = parts.planner.plan(name, requested, priority)
    if parts.prioritise is not None:
        priority = parts.prioritise(plan, priority, False)
    queue = plain(queue if isinstance(queue, str) else queue.name)
    return _predictor(parts).of_new(plan, name, queue, priority or 0, parts.clock.now)


def _routed(app: Any, name: str, options: dict[str, Any]) -> tuple[Any, int | None]:
    """Return the queue and the priority that *app*'s routes give to a task with *options*."""
    routed = app.amqp.router.route(options, name, task_type=app.tasks.get(name))
    chosen = routed.get("queue")
    if chosen is None and routed.get("exchange"):
        raise CommandError(
            f"{name} is routed to the exchange {routed['exchange']}: name its queue"
        )
    # A route may have no destination; Celery then publishes to the default queue.
    return chosen or app.conf.task_default_queue, routed.get("priority")


def _predictor(parts: Parts) -> Predictor:
    from rts.predictions.predictor import Predictor

    with parts.predicting:
        if parts.predictor is None:
            predictor = Predictor(parts.app, parts.settings, parts.link, parts.taus.tau)
            for task in parts.open_tasks.undelivered() if parts.open_tasks else ():
                predictor.published(task)  # before there was anybody to tell
            parts.predictor = predictor
        return parts.predictor


def _installed(app: Any) -> Parts:
    """Return the parts of *app*; of ``None``: of the current app, or the only one with rts."""
    if app is None:
        from celery import current_app

        app = current_app._get_current_object()
        apps = apps_with_rts()
        if app not in apps and len(apps) == 1:
            # In a thread of a web server: unless a default app was set, Celery knows the
            # current app only in the thread that made it.
            (app,) = apps
    parts = parts_of(app)
    if parts is not None:
        return parts
    if app in installed:
        raise CommandError(
            f"rts is off in the app {app.main!r}: rts_enabled is False, or a setting is "
            "invalid (see the log)"
        )
    raise CommandError(
        f"the app {app.main!r} does not have rts: call rts.install(app), or name one that "
        "has it with app=…"
    )


def route(
    name: str,
    args: Any = (),
    kwargs: Any = None,
    options: Mapping[str, Any] | None = None,
    task: Any = None,
    **_: Any,
) -> dict[str, str] | None:
    """Choose the queue of least risk, for Celery's ``task_routes = (rts.route, …)``.

    Among the queues that ``rts_routes`` lists for the task's type, the risk is
    ``10 · max(0, F − d) + load``, with d the deadline and F the finish to be expected
    from the queue's backlog, slots and load. Returns ``None``, which leaves the choice to
    Celery, where the type has no routes, nothing recent is known, there is a tie, or the
    call, or a retry, has a queue already. Never raises, but lets a task's soft time limit pass.
    """
    try:
        options = options or {}
        if any(options.get(key) for key in ("queue", "exchange", "routing_key")):
            return None
        own = getattr(task, "app", None)
        parts = publisher(name) if own is None else parts_of(own)
        if parts is None or not parts.settings.routes:
            return None
        headers = dict(options.get("headers") or {})
        plan = parts.planner.plan(plain(name), headers, options.get("priority"))
        queues = parts.app.amqp.queues
        candidates = [
            queue
            for queue in parts.settings.routes.get(plan.task_type, ())
            if queue in queues or queues.create_missing
        ]
        if not candidates:
            return None
        chosen = _predictor(parts).risks.choose(plan, candidates, parts.clock.now())
        return None if chosen is None else {"queue": chosen}
    except Exception as exc:  # Celery's own route remains
        from celery.exceptions import SoftTimeLimitExceeded

        if isinstance(exc, SoftTimeLimitExceeded):
            raise  # it is for the task that publishes
        health.hook_failed("route", exc)
        return None
