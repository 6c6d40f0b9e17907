"""Servers go away, workers are killed: every task has one verdict, none is doubled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pymongo
import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import AsyncResult

from rts.testing import MongoServer, RedisServer, wait_until
from tests.conftest import MakeApp, MakeStage, Stage

OK = "tests.apps.basic.ok"
#: Tasks before a server is killed, and as many while it is away.
SOME = 300
#: Tasks of a worker whose children run one each.
SOME_CHILDREN = 4


def visible_again(stage: Stage, client: redis.Redis) -> None:
    """Wait until what a dead worker took may be handed out again. A worker that
    starts then does so at once; one that runs looks every 100 s only.
    """
    index = "unacked_index"
    timeout = stage.transport_options["visibility_timeout"]

    def over() -> bool:
        newest = client.zrange(index, -1, -1, withscores=True)
        return not newest or time.time() - float(newest[0][1]) > timeout

    wait_until(over)


def alive(process: psutil.Process) -> bool:
    """Return whether a process has not ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def verdicts(ledger: Any, results: list[AsyncResult]) -> None:
    """Wait until each task has a verdict; none may be doubled, none missing."""
    ids = {result.id for result in results}
    wait_until(
        lambda: ledger.tasks.count_documents({"completed_at": {"$ne": None}}) >= len(ids),
        timeout=90,
        interval=0.25,
        message="a verdict for each task",
    )
    assert {task["_id"] for task in ledger.tasks.find({}, {"_id": 1})} == ids
    assert ledger.assignments.count_documents({"state": "SUCCESS"}) == len(ids)


@pytest.mark.usefixtures("unmeasured")
def test_mongodb_away_for_the_whole_run(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    server = MongoServer()
    try:
        stage = make_stage(mongo_url=server.url)
        app = apps(stage)
        worker = stage.worker()
        results = [app.send_task(OK, (0,)) for _ in range(2000)]
        assert all(result.get(timeout=60) == 0 for result in results)
        wait_until(lambda: redis_client.xlen(f"{stage.prefix}outbox") == 2000)
        wait_until(lambda: "the ledger is unavailable" in worker.log)
        server.start()
        with pymongo.MongoClient(server.url) as client:
            verdicts(client.get_default_database(), results)
        # They are taken off the outbox once they are in the ledger.
        wait_until(lambda: redis_client.xlen(f"{stage.prefix}outbox") == 0)
    finally:
        server.stop()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("persistent", [True, False])
def test_redis_of_rts_killed_in_the_middle(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, persistent: bool
) -> None:
    with RedisServer(persistent=persistent) as own:
        stage = make_stage(rts_redis_url=own.url, rts_breaker_period=1.0)
        app = apps(stage)
        worker = stage.worker()
        results = [app.send_task(OK, (0,)) for _ in range(SOME)]
        assert all(result.get(timeout=60) == 0 for result in results)
        wait_until(lambda: mongo.tasks.count_documents({"state": "SUCCESS"}) == SOME)
        own.kill()
        results += [app.send_task(OK, (0,)) for _ in range(SOME)]
        assert all(result.get(timeout=60) == 0 for result in results)
        own.start()
        results += [app.send_task(OK, (0,)) for _ in range(50)]
        verdicts(mongo, results)
        assert mongo.tasks.count_documents({"arrival_source": "published"}) == len(results)
        client = redis.Redis.from_url(own.url, decode_responses=True)
        # Without persistence the first ones come back from the snapshot, if it was
        # taken by then; the others are learned in any case, and none twice.
        counts = client.hgetall(f"{stage.prefix}count")
        assert counts["mixed"] == counts[f"mixed/{OK}"]
        every = len(results)
        learned = {every} if persistent else range(every - SOME, every + 1)
        assert int(counts["mixed"]) in learned
        client.close()
        assert "Traceback" not in worker.log


def test_redis_of_rts_stalls(make_stage: MakeStage, apps: MakeApp, mongo: Any) -> None:
    with RedisServer() as own:
        stage = make_stage(rts_redis_url=own.url, rts_breaker_period=1.0)
        app = apps(stage)
        stage.worker()
        results = [app.send_task(OK, (0,)) for _ in range(50)]
        own.pause()
        results += [app.send_task(OK, (0,)) for _ in range(100)]
        assert all(result.get(timeout=60) == 0 for result in results)
        own.resume()
        verdicts(mongo, results)
        client = redis.Redis.from_url(own.url, decode_responses=True)
        wait_until(lambda: client.hget(f"{stage.prefix}count", "mixed") == "150")
        client.close()


def test_what_children_of_one_task_each_leave_takes_little_room(
    make_stage: MakeStage, apps: MakeApp, mongo: Any
) -> None:
    with RedisServer() as own:
        stage = make_stage(rts_redis_url=own.url)
        app = apps(stage)
        stage.worker(arguments=("--max-tasks-per-child", "1"))
        own.halt()
        results = [app.send_task(OK, (0,)) for _ in range(SOME_CHILDREN)]
        assert all(result.get(timeout=60) == 0 for result in results)

        def large() -> list[int]:
            sizes = [path.stat().st_size for path in stage.folder.glob("spool/*.jsonl")]
            return [size for size in sizes if size > 4096]

        wait_until(lambda: len(large()) <= 1, message="only one in use is of full size")
        own.start()
        verdicts(mongo, results)


@pytest.mark.parametrize("routes", [(), ("rts.route",)], ids=["plan", "route"])
def test_a_soft_time_limit_that_strikes_while_redis_is_asked(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, routes: tuple[str, ...]
) -> None:
    with RedisServer() as own:
        stage = make_stage(
            rts_redis_url=own.url,
            rts_timeout=60.0,
            rts_routes={"mixed": ["elsewhere"]},
            task_routes=routes,
        )
        app = apps(stage)
        worker = stage.worker()
        try:
            result = app.send_task("tests.apps.basic.soft_limit_in_a_publish", (own.pid,))
            with pytest.raises(SoftTimeLimitExceeded):
                result.get(timeout=60)
        finally:
            own.resume()
        wait_until(lambda: mongo.tasks.find_one({"_id": result.id, "state": "FAILURE"}))
        assert "hook failed" not in worker.log


def test_a_worker_killed_with_its_companion_in_the_middle(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    stage.transport_options = {"visibility_timeout": 2}
    app = apps(stage)
    first = stage.worker()
    results = [app.send_task("tests.apps.basic.late", (0.005,)) for _ in range(600)]
    queue = stage.conf["task_default_queue"]
    # Where the drain is slow, before all have run.
    wait_until(lambda: mongo.tasks.count_documents({}) > 100 or redis_client.llen(queue) < 300)
    companions = first.companions()
    first.kill()
    for companion in companions:
        companion.kill()
    visible_again(stage, redis_client)
    stage.worker()
    wait_until(
        lambda: not redis_client.llen(queue) and not redis_client.hlen("unacked"), timeout=90
    )
    ids = {result.id for result in results}
    # Kombu takes a message off the list before it notes it as unacked. The one that
    # a worker had in hand there is lost by the broker, with or without rts.
    wait_until(
        lambda: mongo.tasks.count_documents({"state": "SUCCESS"}) >= len(ids) - 1, timeout=60
    )
    assert {task["_id"] for task in mongo.tasks.find({}, {"_id": 1})} <= ids
    # A run that died with its worker is an assignment of its own, never a second end.
    runs = list(mongo.assignments.find({}, {"state": 1, "task_id": 1}))
    assert {run["state"] for run in runs} <= {"SUCCESS", "LOST"}


def test_a_run_that_died_with_its_worker_is_lost_and_runs_again(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis, tmp_path: Path
) -> None:
    stage = make_stage()
    stage.transport_options = {"visibility_timeout": 2}
    app, marker = apps(stage), tmp_path / "marker"
    first = stage.worker(concurrency=1)
    result = app.send_task("tests.apps.basic.until", (str(marker),))
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}running") == 1)
    first.kill()
    marker.touch()
    visible_again(stage, redis_client)
    stage.worker(concurrency=1)
    assert result.get(timeout=60) == "released"
    wait_until(
        lambda: mongo.assignments.count_documents({"task_id": result.id}) == 2, timeout=60
    )
    runs = list(mongo.assignments.find({"task_id": result.id}).sort("started_at"))
    assert [(run["state"], run["cause"]) for run in runs] == [
        ("LOST", "lost"),
        ("SUCCESS", None),
    ]
    assert runs[0]["load_at_start"]["load"] >= 0
    # Runs are written before the verdict.
    verdict = {"_id": result.id, "state": "SUCCESS", "attempts": 2}
    wait_until(lambda: mongo.tasks.count_documents(verdict) == 1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_that_died_with_its_worker_is_known_though_redis_was_away(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, whole: bool
) -> None:
    with RedisServer() as own:
        stage = make_stage(rts_redis_url=own.url, task_track_started=True)
        app = apps(stage)
        first = stage.worker(concurrency=1)
        (companion,) = first.companions()
        own.kill()
        result = app.send_task(OK, (300.0,))
        wait_until(lambda: result.state == "STARTED")
        # Its main process alone: the run goes on for a while.
        first.kill(group=whole)
        wait_until(lambda: not alive(companion), 60)
        first.kill()
        own.start()
        stage.worker(concurrency=1)
        lost = {"_id": result.id, "state": "LOST", "cause": "lost"}
        wait_until(lambda: mongo.tasks.count_documents(lost) == 1, 60)
        (assignment,) = mongo.assignments.find({"task_id": result.id})
        assert assignment["state"] == "LOST"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run_whose_result_cannot_be_stored_has_ended(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, pool: str
) -> None:
    stage = make_stage()
    stage.backend = None
    app = apps(stage)
    with RedisServer() as results:
        stage.backend = results.url
        stage.worker(pool=pool, concurrency=1)
        results.kill()
        failed = app.send_task("tests.apps.basic.fail")
        end = {"_id": failed.id, "state": "FAILURE", "cause": None}
        wait_until(lambda: mongo.tasks.count_documents(end) == 1, 60)
        (run,) = mongo.assignments.find()
        assert (run["state"], run["cause"]) == ("FAILURE", None)


def test_a_password_is_never_logged(make_stage: MakeStage, apps: MakeApp) -> None:
    with RedisServer() as own:
        url = own.url.replace("redis://", "redis://:hunter2@")
        mongo_url = "mongodb://user:hunter3@127.0.0.1:1/rts"
        hook = {"url": "https://127.0.0.1:1/services/hunter4", "secret": "hunter5-hunter5"}
        stage = make_stage(mongo_url=mongo_url, rts_redis_url=url, rts_webhooks=[hook])
        app = apps(stage)
        worker = stage.worker(loglevel="DEBUG")
        assert app.send_task(OK, (0,)).get(timeout=60) == 0  # AUTH fails: none is set
        wait_until(lambda: "is not usable" in worker.log)
        assert "hunter" not in worker.log
        # What Flower's page of a worker shows, and what people send with a question.
        shown = app.control.inspect(timeout=30, limit=1).conf()
        assert "rts_webhooks" in str(shown)
        assert "hunter" not in str(shown)
        assert "hunter" not in app.bugreport()
