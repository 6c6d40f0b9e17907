"""Three tasks that go wrong, each in its own way: the ledger has a verdict on each."""

from __future__ import annotations

import os
import signal
from typing import Any

from billiard import current_process

from workers.app import app


@app.task(bind=True, rts={"task_type": "cpu-light"}, max_retries=2)
def flaky(self: Any) -> int:
    """Retry once, then succeed; return the number of retries."""
    if self.request.retries == 0:
        raise self.retry(countdown=0.5)
    return int(self.request.retries)


@app.task(rts={"task_type": "cpu-light"})
def broken() -> None:
    """Raise an exception."""
    raise ValueError("this task fails on purpose")


@app.task(rts={"task_type": "cpu-light"})
def killed() -> None:
    """Kill the process that runs it, as the kernel does when memory is short.

    Raises:
        RuntimeError: the process is not a pool child; killing it would kill the worker.
    """
    if not hasattr(current_process(), "index"):
        raise RuntimeError("only a prefork pool survives this task")
    os.kill(os.getpid(), signal.SIGKILL)
