"""No-op tasks on the Redis BENCH_BROKER. BENCH_RTS: the settings of rts, as JSON; without any
it is plain Celery. BENCH_CELERY: further settings of Celery.
"""

from __future__ import annotations

import json
import os
import sys

from celery import Celery

app = Celery("noop_app", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
app.conf.update(json.loads(os.environ["BENCH_CELERY"]))
if settings := json.loads(os.environ["BENCH_RTS"]):
    import rts

    app.conf.update(settings)
    rts.install(app)


@app.task
def noop() -> None:
    """Do nothing."""


@app.task
def write_modules(path: str) -> None:
    """Write the names of the modules that this pool child has loaded to a file."""
    with open(path, "w") as file:
        file.write("\n".join(sorted(sys.modules)))
