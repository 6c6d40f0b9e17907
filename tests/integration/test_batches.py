"""Tasks that are executed in batches."""

from __future__ import annotations

from typing import Any

import pytest

from rts.records import LOST
from rts.testing import wait_until
from tests.conftest import MakeApp, MakeStage

pytestmark = pytest.mark.measured

#: Messages in a batch of ``tests.apps.batched.killed``: more than the notes that a worker of
#: two slots would have room for, if it had no batches.
MANY = 50


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_each_task_of_a_batch_has_its_verdict(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any, pool: str
) -> None:
    stage = make_stage()
    worker = stage.worker("tests.apps.batched", pool=pool)
    app = apps(stage)
    results = [app.send_task("tests.apps.batched.batched", (n,)) for n in range(6)]
    for _ in range(3):
        app.send_task("tests.apps.batched.failing", (0,))
    assert [result.get(timeout=60) for result in results] == [0, 2, 4, 6, 8, 10]
    ended = {"completed_at": {"$ne": None}}
    wait_until(lambda: mongo.tasks.count_documents(ended) == 9)
    assert mongo.tasks.count_documents({"state": "SUCCESS", "sla_success": True}) == 6
    assert mongo.tasks.count_documents({"state": "FAILURE", "attempts": 1}) == 3
    assert mongo.assignments.count_documents(ended) == 9
    # All of them were published, and none is left to be found overdue.
    wait_until(lambda: redis_client.zcard(f"{stage.prefix}open") == 0)
    worker.stop()
    assert redis_client.hget(f"{stage.prefix}counters", "hook_errors") is None
    assert "rts start hook failed" not in worker.log


def test_all_tasks_of_a_batch_that_is_killed_are_lost(
    make_stage: MakeStage, apps: MakeApp, mongo: Any
) -> None:
    stage = make_stage(worker_prefetch_multiplier=0)  # or a batch would never be full
    stage.worker("tests.apps.batched")
    app = apps(stage)
    for n in range(MANY):
        app.send_task("tests.apps.batched.killed", (n,))
    lost = {"state": LOST, "cause": "killed", "started_at": {"$ne": None}}
    wait_until(lambda: mongo.tasks.count_documents(lost) == MANY)


def test_a_worker_with_threads_keeps_no_message_of_a_batch(
    make_stage: MakeStage, apps: MakeApp
) -> None:
    stage = make_stage()
    stage.worker("tests.apps.batched", pool="threads")
    app = apps(stage)
    app.send_task("tests.apps.batched.collect_no_cycles").get(timeout=60)
    results = [app.send_task("tests.apps.batched.batched", (n,)) for n in range(6)]
    assert [result.get(timeout=60) for result in results] == [0, 2, 4, 6, 8, 10]
    alive = "tests.apps.batched.requests_alive"
    wait_until(lambda: app.send_task(alive).get(timeout=60) == 1)
