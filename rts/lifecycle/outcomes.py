"""How a run has ended, where the state that Celery sends does not say it all."""

from __future__ import annotations

import sys
from typing import Any

from billiard import VERSION, current_process
from celery.states import FAILURE, REJECTED, SUCCESS

from rts.deadlines import MAX_INSTANT
from rts.headers import instant
from rts.records import REQUEUED
from rts.validation import finite


def end_state(task: Any, state: Any, returned: object) -> Any:
    """Return the state of a run's record. It is Celery's, with two exceptions.

    - The task has rejected its message to have it queued again. (One that was acknowledged at
      the start is gone.)
    - The task has returned, but what follows it could not be published, such as a link with
      too few arguments: Celery stores a failure after postrun.
    """
    if state == REJECTED and task.acks_late and getattr(returned, "requeue", False):
        return REQUEUED
    if state == SUCCESS and _next_not_published(sys.exc_info()[1]):
        return FAILURE
    return state


def _next_not_published(exc: BaseException | None) -> bool:
    """Return whether *exc*, with which Celery's trace breaks off, comes from the publish of
    what follows the task: from Celery's canvas, called by Celery itself.
    """
    frame = None if exc is None else exc.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        if module == "celery.canvas":
            return True
        if not module.startswith("celery.app."):
            return False  # the result backend, or a handler of the task's
        frame = frame.tb_next
    return False


def process_outlives(exc: object) -> bool:
    """Return whether *exc*, which a task has raised, is no ``Exception`` and yet does not end
    its process: such as ``asyncio.CancelledError``, which ends one of billiard < 4.3's pool.
    """
    return (
        isinstance(exc, BaseException)
        and not isinstance(exc, (Exception, SystemExit, KeyboardInterrupt))
        and (VERSION >= (4, 3) or current_process().name == "MainProcess")
    )


def again_at(retry: object, completed_at: float) -> float | None:
    """Return when the task of a run that has completed may run again, by the exception with
    which it asked for a retry: its eta, or its countdown, which began a moment earlier.
    """
    when = getattr(retry, "when", None)
    countdown_s = finite(when)
    if countdown_s is None:
        return instant(when)
    again = completed_at + max(0.0, countdown_s)
    return again if again <= MAX_INSTANT else None
