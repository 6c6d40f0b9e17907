"""The app of chaos.py: tasks that write their start and end to a journal on disk."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

import rts

app = Celery("chaos_app", broker=os.environ["CHAOS_BROKER"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=os.environ["CHAOS_ACKS"] == "late",
    task_reject_on_worker_lost=os.environ["CHAOS_ACKS"] == "late",
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ["CHAOS_OPTIONS"]),
    worker_hijack_root_logger=False,
    rts_mongo_url=os.environ["CHAOS_MONGO"],
    rts_scheduler="edf",
)
rts.install(app)


def journal_event(event: str, number: int) -> None:
    """Append a line to the journal unbuffered: it survives the process."""
    journal = os.open(os.environ["CHAOS_JOURNAL"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(journal, f"{event} {number}\n".encode())
    finally:
        os.close(journal)


@app.task
def work(number: int, seconds: float) -> None:
    """Sleep."""
    journal_event("begin", number)
    time.sleep(seconds)
    journal_event("end", number)
