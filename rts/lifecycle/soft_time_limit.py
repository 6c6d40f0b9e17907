"""A soft time limit that strikes while one of our hooks is running.

Celery raises it from a Unix signal handler, wherever the pool child is at that moment.
Inside a hook it would be caught like any other exception, by us or by Celery, and the
task would run on without a limit. So the signal is sent again once the hook is over.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded

from rts import health

#: Seconds until the signal is sent again: enough for the interrupted hook to return.
RESEND_AFTER_S = 0.01

_UID = "rts.limit"


def hook_failed(hook: str, exc: Exception) -> None:
    """Handle the exception of a hook that runs before or within a task."""
    if isinstance(exc, SoftTimeLimitExceeded):
        resend_soft_limit()
    else:
        health.hook_failed(hook, exc)


def resend_soft_limit() -> None:
    """Send the signal of the soft time limit again, unless the task ends before that."""
    timer = threading.Timer(RESEND_AFTER_S, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.daemon = True

    def ended(**_: Any) -> None:
        timer.cancel()
        signals.task_postrun.disconnect(dispatch_uid=_UID)

    signals.task_postrun.disconnect(dispatch_uid=_UID)  # of an earlier one in this task
    signals.task_postrun.connect(ended, weak=False, dispatch_uid=_UID)
    timer.start()
