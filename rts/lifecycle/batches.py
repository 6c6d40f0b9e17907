"""A run that works off many tasks at once, as those of celery-batches do.

Such a task collects its messages in the worker's main process and hands a list of them to
the pool, where the signals of one run are sent. Its request has no id: each item of the list
has a task's id, and in ``request_dict`` what the task was published with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any
from weakref import ref as weakref

from rts.lifecycle.ends import Ends
from rts.lifecycle.owners import is_celerys
from rts.lifecycle.runs import Run, Runs


class _Going(threading.local):
    """The runs that this thread began last, and a weak reference to their batch's request."""

    on: tuple[Callable[[], Any], list[Run]] = (lambda: None, [])


_going = _Going()


def start(request: Any, args: object, ends: Ends, runs: Runs) -> None:
    """Begin a run of each task in *args*, what the task of *request* is called with."""
    _going.on = weakref(request), []
    items = args[0] if isinstance(args, list | tuple) and len(args) == 1 else ()
    for item in items if isinstance(items, list | tuple) else ():
        attributes = getattr(item, "request_dict", None)
        if not isinstance(attributes, Mapping) or not attributes.keys() >= {"id", "task"}:
            continue
        if not is_celerys(attributes["task"]):
            _going.on[1].append(runs.start(ends.plan_of(attributes), attributes))


def finish(request: Any, state: str, runs: Runs) -> None:
    """End the runs that were begun for *request*: the batch's *state* is that of each."""
    known, going = _going.on
    if going and known() is request:
        _going.on = type(_going).on
        for run in going:
            runs.finish(run, state)
