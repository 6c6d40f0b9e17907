"""A soft time limit that strikes while one of our hooks is running.

Celery raises it from a Unix signal handler, wherever the pool child is at that moment.
Inside a hook it would be caught like any other exception, by us or by Celery, and the
task would run on without a limit. So the signal is sent again once the hook is over.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.dispatch import Signal

from rts import health

#: Seconds between looks whether the interrupted hook has returned.
LOOK_S = 0.01
#: What runs the receivers of a signal, and catches whatever they raise.
_SEND = Signal.send.__code__

_UID = "rts.limit"


def hook_in_task_failed(hook: str, exc: Exception) -> None:
    """Handle the exception of a hook that runs before or within a task."""
    if isinstance(exc, SoftTimeLimitExceeded):
        resend_soft_limit()
    else:
        health.hook_failed(hook, exc)


def resend_soft_limit() -> None:
    """Send the signal of the soft time limit again once this thread has left the receivers of
    Celery's signals, unless the task ends before that.
    """
    thread, over = threading.get_ident(), threading.Event()
    # Once the task has ended, the signal would strike the next one.
    lock = threading.Lock()

    def resend() -> None:
        while not over.wait(LOOK_S):
            if _is_in_receiver(thread):
                continue
            with lock:
                if not over.is_set():
                    os.kill(os.getpid(), signal.SIGUSR1)
            return

    def ended(**_: Any) -> None:
        with lock:
            over.set()
        signals.task_postrun.disconnect(dispatch_uid=_UID)

    signals.task_postrun.disconnect(dispatch_uid=_UID)  # of an earlier one in this task
    signals.task_postrun.connect(ended, weak=False, dispatch_uid=_UID)
    threading.Thread(target=resend, daemon=True).start()


def _is_in_receiver(thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not _SEND:
        frame = frame.f_back
    return frame is not None
