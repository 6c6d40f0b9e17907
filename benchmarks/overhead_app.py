"""The app of overhead.py: no-op tasks, with rts or without (OVERHEAD_RTS), which have
OVERHEAD_SLACK seconds until their deadlines.
"""

from __future__ import annotations

import os
import sys

from celery import Celery

app = Celery("overhead_app", broker=os.environ["OVERHEAD_BROKER"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
if os.environ.get("OVERHEAD_RTS") == "1":
    import rts

    app.conf.rts_mongo_url = os.environ["OVERHEAD_MONGO"]
    app.conf.rts_min_slack = float(os.environ["OVERHEAD_SLACK"])
    rts.install(app)


@app.task
def noop() -> None:
    """Do nothing."""


@app.task
def tell(path: str) -> None:
    """Write down which modules this pool child has loaded."""
    with open(path, "w") as file:
        file.write("\n".join(sorted(sys.modules)))
