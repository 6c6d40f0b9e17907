"""Runs that execute several tasks at once, as celery-batches does.

Such a task collects its messages in the worker's main process and passes a list of them to
the pool, where the signals of a single run are sent. Its request has no id: each item of the
list has a task's id and, in ``request_dict``, the attributes of that task's message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any
from weakref import ref as weakref

from rts.lifecycle.owners import is_celerys
from rts.lifecycle.planning import Planner
from rts.lifecycle.runs import Run, Runs


class _Current(threading.local):
    """The batch that this thread started last: a weak reference to its request, its runs."""

    batch: tuple[Callable[[], Any], list[Run]] = (lambda: None, [])


_current = _Current()


def tasks_per_run(app: Any) -> int:
    """Return how many tasks a run in a worker of *app* is to execute at most."""
    sizes = (getattr(task, "flush_every", 1) for task in app.tasks.values())
    return max((size for size in sizes if isinstance(size, int)), default=1)


def start(request: Any, args: object, planner: Planner, runs: Runs) -> None:
    """Start a run for each task in *args*, the arguments of the batch task of *request*."""
    started: list[Run] = []
    _current.batch = weakref(request), started
    items = args[0] if isinstance(args, list | tuple) and len(args) == 1 else ()
    for item in items if isinstance(items, list | tuple) else ():
        attributes = getattr(item, "request_dict", None)
        if not isinstance(attributes, Mapping) or not attributes.keys() >= {"id", "task"}:
            continue
        if not is_celerys(attributes["task"]):
            started.append(runs.start(planner.plan_of(attributes), attributes))


def finish(request: Any, state: str, runs: Runs) -> None:
    """Finish the runs that were started for *request*, each with the batch's *state*."""
    known, started = _current.batch
    if started and known() is request:
        _current.batch = _Current.batch
        for run in started:
            runs.finish(run, state)
