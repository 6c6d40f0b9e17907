"""Which app publishes a message, and which tasks are an app's own: Celery's signals do not say.

A task declared without ``shared=False`` is in the registry of every app of the process,
so its name does not identify the app either. But each app has queue objects of its own,
and ``before_task_publish`` names the one that the message goes to.
"""

from __future__ import annotations

from typing import Any

from celery._state import _apps

from rts.forks import copied

#: The tasks of Celery that are the app's work: those that run one of its tasks on each item of
#: a list, as chunks do, and the one that completes a group which has replaced a task, under
#: the id of that task.
_APP_WORK = frozenset({"celery.map", "celery.starmap", "celery.accumulate"})


def several_apps() -> bool:
    """Return whether there is more than one app in this process."""
    return len(_apps) > 1


def owner_of(declare: Any) -> Any:
    """Return the app that the first queue in *declare* belongs to; ``None`` where that is
    not known, as for a call that passes a queue of its own.
    """
    if not declare:
        return None
    queue = declare[0]
    for app in copied(_apps):
        # By vars(): both are cached properties, not yet made in an app that never published.
        queues = vars(vars(app).get("amqp", app)).get("queues")
        if isinstance(queues, dict) and queues.get(queue.name) is queue:
            return app
    return None


def is_celerys(name: str) -> bool:
    """Return whether a task of this name is Celery's own, not the app's work."""
    return name.startswith("celery.") and name not in _APP_WORK


def task_of(app: Any, name: str) -> Any:
    """Return the task of *app* that has this name; ``None`` where there is none.

    To look among ``app.tasks`` finalizes the app, which publishing does not: its receivers of
    ``on_after_finalize`` would run in a process that only publishes. So that is done only for a
    task which is not evaluated yet, as with ``send_task``; an app that is finalized by hand
    (``autofinalize=False``) would raise.
    """
    task = app._tasks.get(name)
    if task is None and app.autofinalize:
        task = app.tasks.get(name)
    return task
