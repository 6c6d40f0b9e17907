"""Routes by risk on a real broker, with real workers."""

from __future__ import annotations

import json
from typing import Any

import redis

import rts
from rts.installation import parts_of
from rts.testing import RedisServer, wait_until
from tests.conftest import MakeApp, MakeStage
from tests.predictions import OK, PATIENCE_S, backlog_s, served, topic_queue, waiting


def test_tasks_are_routed_to_the_queue_of_least_risk(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis, mongo: Any
) -> None:
    stage = make_stage()
    name = stage.conf["task_default_queue"]
    flooded, free, deserted = (f"{name}-{kind}" for kind in ("flooded", "free", "deserted"))
    app = apps(
        stage,
        rts_timeout=PATIENCE_S,
        rts_routes={"gpu-inference": [flooded, free, deserted], "cpu-light": [deserted]},
        task_routes=(rts.route,),
    )

    @app.task(name="known", rts={"task_type": "gpu-inference"})
    def known() -> None:
        """Of a type that has routes."""

    gpu = {"headers": {"task_type": "gpu-inference"}}

    def queue_of(**options: Any) -> str:
        return str(app.amqp.router.route(dict(options), OK, (), {})["queue"].name)

    assert queue_of(**gpu) == name  # nobody works anywhere: Celery's own
    stage.worker(pool="threads", concurrency=1, queues=[flooded])
    stage.worker(pool="threads", concurrency=1, queues=[free])
    beats = f"{stage.prefix}workers"
    wait_until(lambda: redis_client.hlen(beats) == 2, message="both beat")
    for _ in range(40):
        app.send_task(OK, (5,), queue=flooded, **gpu)
    # The state of the queues is cached for a second.
    wait_until(lambda: queue_of(**gpu) == free, message="the flooded queue is avoided")
    chosen = [queue_of(**gpu) for _ in range(10)]
    assert deserted not in chosen
    assert chosen[0] == free
    assert queue_of(headers={"task_type": "cpu-light"}) == name  # no worker takes from it
    assert queue_of(headers={"task_type": "mixed"}) == name  # no routes
    assert queue_of(queue=flooded, **gpu) == flooded  # it says where
    sent = known.apply_async()  # a worker that does not know it reports it as well
    task = wait_until(lambda: mongo.tasks.find_one({"_id": sent.id}), message="it came")
    assert task["queue"] == free
    assert rts.predict_new(OK, **gpu, app=app).ahead < 20


def test_held_messages_count_for_a_route_under_any_routing_key(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage(worker_prefetch_multiplier=100)
    bound = topic_queue(stage)
    name = bound.name
    app = apps(stage, rts_timeout=PATIENCE_S, task_queues=[bound])
    stage.worker(pool="threads", concurrency=1, queues=[name])
    served(app, queue=name)
    for _ in range(10):
        app.send_task(OK, (60,), queue=name)
    wait_until(lambda: not waiting(redis_client, name), message="they are taken")
    assert backlog_s(app, name) > 0


def test_tasks_with_a_later_eta_count_for_no_route(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    app = apps(stage, rts_timeout=PATIENCE_S)
    name = app.conf.task_default_queue
    worker = stage.worker(pool="threads", concurrency=1, queues=[name])
    served(app, queue=name)
    for _ in range(10):
        app.send_task(OK, (0,), queue=name, countdown=3600)
    wait_until(lambda: not waiting(redis_client, name), message="they are taken")
    assert backlog_s(app, name) == 0
    worker.kill()  # for ten seconds it counts as one that lives
    app.send_task(OK, (0,), queue=name, countdown=3600)
    assert waiting(redis_client, name)
    assert backlog_s(app, name) == 0
    for countdown in [3600] * 25 + [0] * 25:
        app.send_task(OK, (0,), queue=name, countdown=countdown)
    assert backlog_s(app, name) > 0, "of those behind them"


def test_long_tasks_count_for_a_route_though_all_are_due_later(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_scheduler="edf", rts_task_types={"short": 1.0, "long": 100.0})
    app = apps(stage, rts_timeout=PATIENCE_S)
    queue = app.conf.task_default_queue
    beat = {"seen_at": redis_client.time()[0] + 60, "concurrency": 1, "queues": [queue]}
    redis_client.hset(f"{stage.prefix}workers", "w@h/1", json.dumps(beat))
    served(app)
    for kind in ("short", "long"):
        for _ in range(60):
            app.send_task(OK, (0,), headers={"task_type": kind})
    # It is 6,060 s by twenty of them, chosen at random.
    assert backlog_s(app, queue) > 900


def test_routing_never_waits_twice_for_an_unavailable_server(make_app: MakeApp) -> None:
    with RedisServer() as server:
        url = server.url
    app = make_app(url, rts_routes={"mixed": ["a", "b"]}, task_routes=(rts.route,))
    for _ in range(50):
        assert app.amqp.router.route({}, "some.task")["queue"].name == "celery"
    assert parts_of(app).link.breaker.succeeded(), "it was open"
