"""The slots of a worker: how many tasks it may run at a time."""

from __future__ import annotations

from typing import Any


def slots_of(worker: Any) -> int:
    """Return the slots of *worker*, Celery's, whose pool is made: as many as there are
    now, which remote control may change; with autoscaling the most there may be.
    """
    scaler, pool = getattr(worker, "autoscaler", None), worker.pool
    most = getattr(scaler, "max_concurrency", None) or getattr(worker, "max_concurrency", None)
    if most is None and pool.is_green:
        # Celery < 5.7 tells as processes of gevent how many tasks run just now.
        most = getattr(getattr(pool, "_pool", None), "size", None) or pool.limit
    return int(most or pool.num_processes or 1)
