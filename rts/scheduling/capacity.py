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
    if pool in ("solo", "gevent", "eventlet"):  # the task, or a full pool, stops the consumer
        return 0
    own = [task for name, task in app.tasks.items() if not name.startswith("celery.")]
    late = (
        all(getattr(task, "acks_late", False) for task in own)
        if own
        else bool(app.conf.task_acks_late)
    )
    disabled = getattr(app.conf, "worker_disable_prefetch", False)  # Celery 5.6 has it
    return ahead_per_slot(worker.prefetch_multiplier, late=late, disabled=bool(disabled))


def ahead_per_slot(multiplier: int | None, *, late: bool, disabled: bool) -> int | None:
    """Return how many tasks a worker takes for each slot beside those that run, by Celery's
    settings; ``None``: any number. *late*: those that run are not acknowledged yet.

    >>> [ahead_per_slot(4, late=late, disabled=False) for late in (False, True)]
    [4, 3]
    >>> [ahead_per_slot(0, late=False, disabled=disabled) for disabled in (False, True)]
    [None, 0]
    """
    if disabled:
        return 0
    if not multiplier or multiplier < 0:
        return None
    return int(multiplier) - late
