"""Which app publishes a message. Celery's signals do not say.

A task that is declared without ``shared=False`` is in the registry of every app of the
process, so its name does not tell either. Each app has queue objects of its own, and
the signal before a publish names the one that the message goes to.
"""

from __future__ import annotations

from typing import Any

from celery._state import _apps

#: Celery's own tasks are not scheduled work, but for those that run a task of the app's on
#: each item of a list, as chunks do, and the one that ends a group which has taken the place
#: of a task, under the id of that one.
_OWN = "celery."
_OF_THE_APP = frozenset({"celery.map", "celery.starmap", "celery.accumulate"})


def several() -> bool:
    """Return whether there is more than one app in this process."""
    return len(_apps) > 1


def owner_of(declare: Any) -> Any:
    """Return the app that one of whose queues is first in *declare*.

    ``None``: not known, as where a call brings a queue of its own.
    """
    if not declare:
        return None
    queue = declare[0]
    for app in list(_apps):
        # An app that has neither yet has not published.
        queues = vars(vars(app).get("amqp", app)).get("queues")
        if isinstance(queues, dict) and queues.get(queue.name) is queue:
            return app
    return None


def is_celerys(name: str) -> bool:
    """Return whether a task of this name is none of the app's work."""
    return name.startswith(_OWN) and name not in _OF_THE_APP


def tasks_of(app: Any) -> Any:
    """Return the tasks of *app* by name. One that its owner finalizes by hand
    (``autofinalize=False``) may not have them yet, and raises where it is asked for them.
    """
    return app.tasks if app.autofinalize else app._tasks
