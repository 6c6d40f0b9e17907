"""Real workers in deadline order: who runs first, what is lost when they die."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import TaskRevokedError

from rts.testing import wait_until
from tests.conftest import MakeApp, MakeStage
from tests.order import EDF, in_order, publish_shuffled, ran

OK = "tests.apps.basic.ok"


def left(client: redis.Redis, queue: str) -> list[str]:
    """Return what is left of a queue, and of all that is not acknowledged."""
    names = [queue, f"{queue}{EDF}", f"{queue}{EDF}:demoted"]
    return [name for name in (*names, "unacked", "unacked_index") if client.exists(name)]


@pytest.mark.measured
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_the_earliest_deadline_runs_first(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis, pool: str
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    results, queue = publish_shuffled(app), app.conf.task_default_queue
    assert redis_client.zcard(f"{queue}{EDF}") == len(results)
    assert redis_client.llen(queue) == 0
    worker = stage.worker(pool=pool, concurrency=1)
    for result in results.values():
        assert result.get(timeout=60) == 0.02
    assert ran(mongo, in_order(results)) == in_order(results)
    wait_until(lambda: not left(redis_client, queue))
    stage.stop()
    assert "Traceback" not in worker.log


@pytest.mark.measured
def test_what_fleets_without_the_order_publish_is_run_too(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_scheduler="edf")
    ordered, fifo = apps(stage), apps(stage, rts_scheduler=None)
    bare = Celery("bare", broker=stage.broker, backend=stage.backend, set_as_current=False)
    bare.conf.task_default_queue = ordered.conf.task_default_queue
    now = time.time()
    results = [
        bare.send_task(OK, (0.05,)),
        fifo.send_task(OK, (0.05,), headers={"sla_deadline": now + 500}),
        ordered.send_task(OK, (0.05,), headers={"sla_deadline": now + 400}),
        fifo.send_task(OK, (0.05,), headers={"sla_deadline": now + 300}),
    ]
    stage.worker(concurrency=1)
    assert [result.get(timeout=30) for result in results] == [0.05] * 4
    ids = [result.id for result in results]
    assert [ids.index(task_id) for task_id in ran(mongo, ids)] == [0, 3, 2, 1]
    # An idle worker finds what rings no bell.
    assert bare.send_task(OK, (0.05,)).get(timeout=30) == 0.05
    assert bare.control.inspect(timeout=30, limit=1).ping()
    wait_until(lambda: not left(redis_client, ordered.conf.task_default_queue))
    bare.close()


@pytest.mark.measured
def test_hopeless_tasks_wait_or_are_dropped(
    make_stage: MakeStage, apps: MakeApp, mongo: Any
) -> None:
    past = {"headers": {"sla_deadline": time.time() - 100}}
    later = {"headers": {"sla_deadline": time.time() + 600}}  # the worker starts first
    stage = make_stage(rts_scheduler="edf", rts_late_share=0)
    app = apps(stage)
    hopeless = [app.send_task(OK, (0,), **past).id for _ in range(2)]
    hopeful = [app.send_task(OK, (0,), **later).id for _ in range(2)]
    stage.worker(concurrency=1)
    assert ran(mongo, hopeful + hopeless) == hopeful + hopeless

    stage = make_stage(rts_scheduler="edf", rts_hopeless="drop")
    app = apps(stage)
    stage.worker(concurrency=1)
    dropped = app.send_task(OK, (0,), **past)
    with pytest.raises(TaskRevokedError):
        dropped.get(timeout=30)
    verdict = wait_until(lambda: mongo.tasks.find_one({"_id": dropped.id}))
    assert (verdict["state"], verdict["sla_success"]) == ("REVOKED", False)
    assert verdict["cause"] == "dropped"
    assert mongo.assignments.count_documents({"task_id": dropped.id}) == 0


def test_demoted_tasks_leave_a_slot_to_the_hopeful(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis, tmp_path: Path
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app, marker = apps(stage), tmp_path / "marker"
    past = {"headers": {"sla_deadline": time.time() - 100}}
    hopeless = [
        app.send_task("tests.apps.basic.until", (str(marker),), **past).id for _ in range(4)
    ]
    stage.worker(concurrency=2)
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}running"), message="one runs")
    # 0.75 of two slots is one: the other one is free.
    assert app.send_task(OK, (0,)).get(timeout=30) == 0
    marker.touch()
    ran(mongo, hopeless)
    runs = list(mongo.assignments.find({"task_id": {"$in": hopeless}}).sort("started_at"))
    for before, run in pairwise(runs):
        assert before["completed_at"] <= run["started_at"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_free_slot_is_filled_at_once(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, pool: str
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    ids = [app.send_task(OK, (0.2,)).id for _ in range(12)]
    stage.worker(pool=pool, concurrency=2)
    ran(mongo, ids)
    runs = list(mongo.assignments.find({}).sort("started_at"))
    # Of six pairs, one after the other, the median of the pauses: where the worker did
    # not notice the end of a run by itself it was most of a second.
    pauses = sorted(
        (run["started_at"] - before["completed_at"]).total_seconds()
        for before, run in zip(runs[0:], runs[2:], strict=False)
    )
    assert pauses[len(pauses) // 2] < 0.3
