"""A worker's capacity: its slots (tasks it runs at a time) and its prefetch."""

from __future__ import annotations

from typing import Any


def kind_of_pool(pool_cls: type) -> str:
    """Return the module of Celery that a pool's class comes from: prefork, solo, thread, gevent
    or eventlet, also of a subclass of an app's own (``--pool custom``); else base.
    """
    modules = [cls.__module__.rpartition(".") for cls in pool_cls.__mro__]
    return next(
        (name for package, _, name in modules if package == "celery.concurrency"), "base"
    )


def slots_of(worker: Any) -> int:
    """Return the slots of a Celery *worker* whose pool has been created.

    The current size, which remote control may change; with autoscaling the maximum.
    """
    # 0, wherever it comes from: remote control has shrunk the pool to nothing.
    pool = worker.pool
    most = getattr(getattr(worker, "autoscaler", None), "max_concurrency", None)
    if most is None:
        most = getattr(worker, "max_concurrency", None)
    if most is None and pool.is_green:
        # Celery < 5.7: num_processes of gevent is the number of tasks that run right now.
        most = getattr(getattr(pool, "_pool", None), "size", pool.limit)
    if most is None:
        most = pool.num_processes
    return 1 if most is None else int(most)


def prefetch_of(worker: Any) -> int | None:
    """Return how many tasks per slot a Celery *worker* prefetches while all are busy;
    ``None``: unlimited. Running tasks count if all tasks are acknowledged late.
    """
    app = worker.app
    if kind_of_pool(worker.pool_cls) in ("solo", "gevent", "eventlet"):
        # A running task, or a full pool, blocks consuming.
        return 0
    own = [task for name, task in app.tasks.items() if not name.startswith("celery.")]
    late = (
        all(getattr(task, "acks_late", False) for task in own)
        if own
        else bool(app.conf.task_acks_late)
    )
    disabled = getattr(app.conf, "worker_disable_prefetch", False)  # Celery >= 5.6
    return prefetch_per_slot(worker.prefetch_multiplier, late=late, disabled=bool(disabled))


def prefetch_per_slot(multiplier: int | None, *, late: bool, disabled: bool) -> int | None:
    """Return how many tasks a worker prefetches per slot in addition to those that run;
    ``None``: unlimited.

    Args:
        multiplier: Celery's ``worker_prefetch_multiplier``.
        late: whether running tasks are still unacknowledged, so that they count.
        disabled: Celery's ``worker_disable_prefetch``.

    >>> [prefetch_per_slot(4, late=late, disabled=False) for late in (False, True)]
    [4, 3]
    >>> [prefetch_per_slot(0, late=False, disabled=disabled) for disabled in (False, True)]
    [None, 0]
    """
    if disabled:
        return 0
    if not multiplier or multiplier < 0:
        return None
    return int(multiplier) - late
