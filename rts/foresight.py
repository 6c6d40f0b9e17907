"""What an app may ask before and after it publishes: predictions, and a route by risk.

What asks the servers is imported inside functions: this module is loaded with the
package, also by the companion process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rts import health
from rts.errors import CommandError, StoreUnavailable
from rts.installation import parts_of
from rts.scheduling.forecast import Prediction

if TYPE_CHECKING:
    from rts.parts import Parts
    from rts.scheduling.outlook import Outlook

#: Weights of the risk of a queue: of lateness in seconds, and of load.
ALPHA, BETA = 10.0, 1.0
#: Seconds for which what was read of the queues is used.
FRESH_S = 1.0


def predict(task_id: str, *, queue: str | None = None, app: Any = None) -> Prediction | None:
    """Return when a published task will start and finish; ``None`` where it neither
    waits nor runs. Works with the broker's own order too.

    *queue*: where it waits, by default the app's default queue. *app*: by default the
    current one.

    Raises:
        CommandError: the app does not have rts, the broker is not Redis, or no worker
            takes from the queue.
        StoreUnavailable: Redis is away.
    """
    app, parts = _installed(app)
    return _outlook(app, parts).of_task(task_id, queue or app.conf.task_default_queue)


def predict_new(
    task: Any,
    *,
    queue: str | None = None,
    headers: Mapping[str, Any] | None = None,
    app: Any = None,
) -> Prediction:
    """Return when a task would start and finish, were it published now.

    *task* is a task or its name; *headers* as for ``apply_async``. *queue*: by default
    where the app routes it.

    Raises:
        CommandError: the app does not have rts, the broker is not Redis, or no worker
            takes from the queue.
        StoreUnavailable: Redis is away.
    """
    app, parts = _installed(app if app is not None else getattr(task, "app", None))
    name = str(getattr(task, "name", task))
    if queue is None:
        queue = app.amqp.router.route({}, name)["queue"].name
    plan = parts.planner.plan(name, dict(headers or {}), None)
    return _outlook(app, parts).of_new(plan, queue)


def _outlook(app: Any, parts: Parts) -> Outlook:
    from rts.scheduling.outlook import Outlook

    return Outlook(app, parts.settings, parts.link)


def _installed(app: Any) -> tuple[Any, Parts]:
    if app is None:
        from celery import current_app

        app = current_app._get_current_object()
    parts = parts_of(app)
    if parts is None:
        raise CommandError("rts is not installed in this app: call rts.install(app)")
    return app, parts


@dataclass(frozen=True)
class _Queue:
    """What a route is chosen by."""

    read_at: float
    #: Seconds of work that wait, and tasks that may run at a time.
    backlog_s: float
    slots: int
    #: Mean load of the workers, a fraction of what they may use.
    load: float


_queues: dict[tuple[int, str], _Queue | None] = {}
_lock = threading.Lock()


def route(
    name: str,
    args: Any = (),
    kwargs: Any = None,
    options: Mapping[str, Any] | None = None,
    task: Any = None,
    **_: Any,
) -> dict[str, str] | None:
    """Choose the queue of least risk, for Celery's ``task_routes = (rts.route, …)``.

    Among the queues that ``rts_routes`` gives for the task's type, by
    ``10 · max(0, F − d) + load`` with F the finish that the queue's backlog, slots and
    load let expect, and d the deadline. ``None``, which leaves it to Celery, where the
    type has no routes, where nothing fresh is known, and on a tie. Never raises.
    """
    try:
        app = getattr(task, "app", None)
        if app is None:
            from celery import current_app

            app = current_app._get_current_object()
        parts = parts_of(app)
        if parts is None or not parts.settings.routes:
            return None
        headers = dict((options or {}).get("headers") or {})
        priority = (options or {}).get("priority")
        plan = parts.planner.plan(name, headers, priority)
        candidates = parts.settings.routes.get(plan.task_type)
        if not candidates:
            return None
        now = parts.clock.now()
        risks = []
        for candidate in candidates:
            known = _known(app, parts, candidate)
            if known is None or not known.slots:
                continue
            slowdown = max(1.0, known.load)
            finish = now + (known.backlog_s / known.slots + plan.tau) * slowdown
            risk = ALPHA * max(0.0, finish - plan.deadline) + BETA * known.load
            risks.append((risk, candidate))
        risks.sort(key=lambda pair: pair[0])
        if not risks or (len(risks) > 1 and risks[0][0] == risks[1][0]):
            return None
        return {"queue": risks[0][1]}
    except Exception as exc:  # noqa: BLE001  Celery's own route is there
        health.hook_failed("route", exc)
        return None


def _known(app: Any, parts: Parts, queue: str) -> _Queue | None:
    """Return what is known of a queue, at most FRESH_S old; ``None``: nothing fresh."""
    key = id(parts), queue
    with _lock:
        known = _queues.get(key)
        if known is None or time.monotonic() - known.read_at >= FRESH_S:
            try:
                backlog_s, slots, load = _outlook(app, parts).pressure(queue)
                known = _Queue(time.monotonic(), backlog_s, slots, load)
            except (StoreUnavailable, CommandError):
                # Asked again as late: whoever publishes must not wait for each task.
                known = _Queue(time.monotonic(), 0.0, 0, 0.0)
            _queues[key] = known
        return known


__all__ = ["Prediction", "predict", "predict_new", "route"]
