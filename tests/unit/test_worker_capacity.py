"""The slots of a worker."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.concurrency import prefork
from celery.concurrency.base import BasePool

from rts.scheduling.worker_capacity import kind_of_pool, slots_of


def test_greenlets_may_be_shrunk_to_none() -> None:
    """Celery < 5.7 keeps the first size as the pool's limit."""
    pytest.importorskip("gevent")
    from celery.concurrency.gevent import TaskPool

    pool = TaskPool(2)
    worker = SimpleNamespace(pool=pool, max_concurrency=None)
    found = [slots_of(worker)]
    pool.start()
    for change in (pool.shrink, pool.shrink, pool.grow):
        change(1)
        found.append(slots_of(worker))
    assert found == [2, 1, 0, 1]


def test_a_pool_of_an_apps_own_is_of_the_kind_it_derives_from() -> None:
    kinds = [kind_of_pool(type("Own", (base,), {})) for base in (prefork.TaskPool, BasePool)]
    assert kinds == ["prefork", "base"]
    assert kind_of_pool(object) == "base"
