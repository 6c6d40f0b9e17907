"""The app of :mod:`rts.testing.replay`: tasks that sleep, by the names of a trace."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from celery import Celery

import rts

spec = json.loads(Path(os.environ["RTS_REPLAY"]).read_text())
app = Celery("replay", broker=spec["broker"], set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    **spec["conf"],
)
rts.install(app)


def nap(seconds: float) -> None:
    """Sleep, like a task that waits for I/O."""
    time.sleep(seconds)


for name in spec["names"]:
    app.task(nap, name=name)
