"""The slots of a worker, how many tasks it may run at a time, and what it takes ahead."""

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


def ahead_of(worker: Any) -> int | None:
    """Return how many tasks *worker*, Celery's, takes for each slot while all are taken;
    ``None``: any number. Those that it acknowledges late count while they run.
    """
    app, pool = worker.app, worker.pool_cls.__module__.rpartition(".")[2]
    if getattr(app.conf, "worker_disable_prefetch", False):  # Celery 5.6 has it
        return 0
    if pool in ("solo", "gevent", "eventlet"):  # the task, or a full pool, stops the consumer
        return 0
    multiplier = int(worker.prefetch_multiplier or 0)
    if multiplier == 0:
        return None
    own = [task for name, task in app.tasks.items() if not name.startswith("celery.")]
    late = (
        all(getattr(task, "acks_late", False) for task in own)
        if own
        else bool(app.conf.task_acks_late)
    )
    return multiplier - late
