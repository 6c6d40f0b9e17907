"""The fleet as ``rts status`` and ``rts watch`` show it: outbox, workers, unfinished tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rts.cli.table import NONE, Column, seconds
from rts.load.sample import FIGURES
from rts.views.json_values import utc
from rts.views.status import RedisState, worker_document

#: Alerts that nobody evaluates may be over, and new ones do not start.
UNLED = "but nothing evaluates them now (a worker with rts_drain and rts_webhooks would)"
NO_WORKERS = (
    "No workers. One that is running has no rts (add rts.install(app), and restart it), or "
    "another Redis."
)


def fleet_document(redis: RedisState) -> dict[str, Any]:
    """Return the outbox, the workers and the tasks that have not ended, for JSON."""
    return {
        "outbox": {
            "length": redis.outbox_length,
            "lag_s": redis.lag_s,
            "oldest_at": utc(redis.oldest_at),
        },
        "workers": [worker_document(worker, redis.now) for worker in redis.workers],
        "running": {"runs": redis.running, "overdue": redis.overdue},
        "open": {"tasks": redis.open_tasks, "overdue": redis.overdue_tasks},
    }


def outbox_text(redis: RedisState) -> str:
    """Return how many records wait, and for how long."""
    lag = f", the oldest for {seconds(redis.lag_s)} s" if redis.outbox_length else ""
    return f"{redis.outbox_length} waiting{lag}"


WORKER_COLUMNS = (
    Column("worker", number=False),
    Column("host", number=False),
    *map(Column, ("pid", "slots", "seen s ago", *FIGURES)),
    Column("", number=False),
)


def worker_rows(redis: RedisState) -> list[Sequence[str]]:
    """Return the cells of each worker for ``WORKER_COLUMNS``."""
    return [
        (
            worker.worker,
            *(
                NONE if it is None else str(it)
                for it in (worker.host, worker.pid, worker.slots)
            ),
            f"{worker.age_s(redis.now):.1f}",
            *(f"{worker.load[of]:.2f}" if of in worker.load else NONE for of in FIGURES),
            "silent" if worker.is_silent(redis.now) else "",
        )
        for worker in redis.workers
    ]
