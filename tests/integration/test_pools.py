"""Other pools, other brokers, fleets where not everybody has rts."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from redis import Redis

from rts.testing import RedisServer, wait_until
from tests.conftest import MakeApp, MakeStage

pytestmark = pytest.mark.measured

OK = "tests.apps.basic.ok"


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_verdicts_with_other_pools(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any, pool: str
) -> None:
    stage = make_stage()
    worker = stage.worker(pool=pool, concurrency=4)
    app = apps(stage)
    results = [app.send_task(OK, (0.05,)) for _ in range(20)]
    failed = app.send_task("tests.apps.basic.fail")
    assert all(result.get(timeout=60) == 0.05 for result in results)
    wait_until(lambda: mongo.tasks.count_documents({"sla_success": True}) == 21)
    assert mongo.assignments.count_documents({}) == 21
    assert mongo.tasks.find_one({"_id": failed.id})["state"] == "FAILURE"
    runs = list(mongo.assignments.find({"name": OK}))
    assert all(run["runtime_s"] >= 0.05 and run["cpu_s"] >= 0 for run in runs)
    assert all("load" in run["load_at_start"] for run in runs)
    assert redis_client.hget(f"{stage.prefix}count", f"mixed/{OK}") == "20"
    worker.stop()
    assert redis_client.hget(f"{stage.prefix}counters", "hook_errors") is None
    assert worker.log.count("Traceback") == 1, "that of the task that fails"
    # What has been shipped is gone: another Redis at this address must not learn it anew.
    assert list(stage.folder.glob("spool/*.jsonl")) == []


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_a_task_that_exits_holds_no_slot(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any, pool: str
) -> None:
    stage = make_stage(rts_scheduler="edf")
    stage.worker(pool=pool, concurrency=1)
    app = apps(stage)
    exited = app.send_task("tests.apps.basic.exits")
    assert app.send_task(OK, (0.01,)).get(timeout=30) == 0.01
    task = wait_until(lambda: mongo.tasks.find_one({"_id": exited.id}))
    assert (task["state"], task["cause"], task["sla_success"]) == ("FAILURE", "killed", False)
    assert mongo.assignments.find_one({"task_id": exited.id})["state"] == "FAILURE"
    wait_until(lambda: not redis_client.exists(f"{stage.prefix}running"))


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_task_that_is_cancelled_has_ended(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any, pool: str
) -> None:
    stage = make_stage()
    stage.worker(pool=pool, concurrency=1)
    cancelled = apps(stage).send_task("tests.apps.basic.cancelled")
    task = wait_until(lambda: mongo.tasks.find_one({"_id": cancelled.id}))
    assert (task["state"], task["cause"], task["sla_success"]) == ("FAILURE", "killed", False)
    (run,) = mongo.assignments.find({"task_id": cancelled.id})
    assert (run["state"], run["cause"]) == ("FAILURE", "killed")
    wait_until(lambda: not redis_client.exists(f"{stage.prefix}running"))


def test_a_hard_time_limit_ends_a_run_in_a_greenlet(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any
) -> None:
    stage = make_stage()
    stage.worker(pool="gevent", concurrency=1)
    struck = apps(stage).send_task("tests.apps.basic.hard_limit")
    task = wait_until(lambda: mongo.tasks.find_one({"_id": struck.id}))
    assert (task["state"], task["cause"]) == ("FAILURE", "time_limit")
    (run,) = mongo.assignments.find({"task_id": struck.id})
    assert (run["state"], run["cause"]) == ("FAILURE", "time_limit")
    wait_until(lambda: not redis_client.exists(f"{stage.prefix}running"))


def test_a_greenlet_that_is_cancelled_runs_again(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any, tmp_path: Any
) -> None:
    with RedisServer() as broker, Redis.from_url(broker.url) as client:
        stage = make_stage(
            broker=broker.url, worker_cancel_long_running_tasks_on_connection_loss=True
        )
        stage.conf["rts_redis_url"] = stage.redis_url
        stage.transport_options = {"visibility_timeout": 1}
        stage.worker(pool="gevent", concurrency=2)
        marker = tmp_path / "marker"
        again = apps(stage).send_task("tests.apps.basic.until", (str(marker),))
        wait_until(lambda: redis_client.exists(f"{stage.prefix}running"))
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        run = wait_until(lambda: mongo.assignments.find_one({"task_id": again.id}))
        assert (run["state"], run["cause"]) == ("LOST", "killed")
        marker.touch()
        wait_until(lambda: mongo.tasks.find_one({"_id": again.id, "state": "SUCCESS"}))
        assert mongo.assignments.count_documents({"task_id": again.id}) == 2
        wait_until(lambda: not redis_client.exists(f"{stage.prefix}running"))


def test_a_worker_without_rts_runs_what_was_published_with_it(
    make_stage: MakeStage, apps: MakeApp, mongo: Any
) -> None:
    stage = make_stage()
    app = apps(stage)
    stage.installed = False
    stage.worker(concurrency=1)
    assert app.send_task(OK, (0,), headers={"task_type": "cpu-light"}).get(timeout=30) == 0
    assert mongo.tasks.count_documents({}) == 0


def test_a_producer_without_rts_is_planned_for_by_the_worker(
    make_stage: MakeStage, mongo: Any
) -> None:
    stage = make_stage()
    stage.worker(concurrency=1)
    app = Celery("without", broker=stage.broker, backend=stage.backend)
    app.conf.task_default_queue = stage.conf["task_default_queue"]
    headers = {"task_type": "cpu-heavy", "sla_multiplier": 1.5}
    result = app.send_task(OK, (0.1,), headers=headers)
    retried = app.send_task("tests.apps.basic.retry_once")
    assert result.get(timeout=30) == 0.1
    assert retried.get(timeout=30) == 1
    wait_until(lambda: mongo.tasks.count_documents({"state": "SUCCESS"}) == 2)
    task = mongo.tasks.find_one({"_id": result.id})
    assert (task["arrival_source"], task["task_type"], task["k"]) == (
        "received",
        "cpu-heavy",
        1.5,
    )
    assert task["sla_success"] is True
    again = mongo.tasks.find_one({"_id": retried.id})
    assert (again["arrival_source"], again["attempts"]) == ("received", 2)
    app.close()


def test_a_broker_without_an_event_loop_tells_late_of_a_killed_process(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any, tmp_path: Any
) -> None:
    queues = tmp_path / "queues"
    queues.mkdir()
    # The pool waits for so many seconds until it takes a job for lost.
    stage = make_stage(broker="filesystem://", worker_lost_wait=6.0)
    stage.conf["rts_redis_url"] = stage.redis_url
    stage.backend = stage.redis_url
    stage.transport_options = {
        "data_folder_in": str(queues),
        "data_folder_out": str(queues),
        "control_folder": str(tmp_path / "control"),
    }
    stage.worker(concurrency=1)
    killed = apps(stage).send_task("tests.apps.basic.kill_self")
    (run,) = wait_until(lambda: list(mongo.assignments.find({"task_id": killed.id})))
    assert (run["state"], run["cause"]) == ("FAILURE", "killed")
    assert mongo.tasks.find_one({"_id": killed.id})["state"] == "FAILURE"
    wait_until(lambda: not redis_client.exists(f"{stage.prefix}running"))
