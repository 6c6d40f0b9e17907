"""A soft time limit that strikes while a hook of ours is at work.

Celery raises it from a signal's handler, wherever the pool child is at that moment. In
a hook it would be caught like all else, by us or else by Celery, and the task would run
on without a limit. So it strikes once more, as soon as the hook is over.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded

from rts import health

#: Seconds until it strikes again: enough for a hook that was broken off to be over.
AGAIN_S = 0.01

_UID = "rts.limit"


def hook_failed(hook: str, exc: Exception) -> None:
    """Note that a hook which runs before or within a task has failed."""
    if isinstance(exc, SoftTimeLimitExceeded):
        strike_again()
    else:
        health.hook_failed(hook, exc)


def strike_again() -> None:
    """Send the signal of the soft time limit once more, unless the task ends before."""
    again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGUSR1))
    again.daemon = True

    def ended(**_: Any) -> None:
        again.cancel()
        signals.task_postrun.disconnect(dispatch_uid=_UID)

    signals.task_postrun.disconnect(dispatch_uid=_UID)  # of a strike before, in this task
    signals.task_postrun.connect(ended, weak=False, dispatch_uid=_UID)
    again.start()
