"""The app of order.py and flower_tab.py: no-op tasks on Redis, in the order of ORDER."""

from __future__ import annotations

import os

from celery import Celery

import rts

app = Celery("order_app", broker=os.environ["ORDER_BROKER"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
app.conf.rts_mongo_url = os.environ["ORDER_MONGO"]
if os.environ["ORDER"] == "edf":
    app.conf.rts_scheduler = "edf"
rts.install(app)


@app.task
def noop() -> None:
    """Do nothing."""
