"""The app of overhead.py: no-op tasks, with or without rts (OVERHEAD_RTS), with deadlines
OVERHEAD_SLACK seconds from their publication.
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
def write_modules(path: str) -> None:
    """Write the names of the modules that this pool child has loaded to a file."""
    with open(path, "w") as file:
        file.write("\n".join(sorted(sys.modules)))
