"""Ways to have an order besides "edf" for all: turned off again, mixed fleets, priorities,
deadlines that are handed on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group, uuid

import rts
from rts.testing import wait_until
from tests.conftest import MakeApp, MakeStage, Stage
from tests.order import EDF, in_order, ran
from tests.rabbitmq import RabbitServer

OK, HEADERS, NESTED = (f"tests.apps.basic.{name}" for name in ("ok", "headers", "nested"))


def test_a_half_migrated_fleet_loses_nothing(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_scheduler="edf")
    ordered, fifo = apps(stage), apps(stage, rts_scheduler=None)
    stage.worker(concurrency=1)
    stage.conf["rts_scheduler"] = None
    stage.worker(concurrency=1)
    results = [app.send_task(OK, (0.02,)) for _ in range(20) for app in (ordered, fifo)]
    assert [result.get(timeout=60) for result in results] == [0.02] * 40
    queue = ordered.conf.task_default_queue
    wait_until(lambda: not redis_client.exists(queue, queue + EDF, "unacked"))


def test_turning_it_off_leaves_nothing_behind(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_scheduler="edf", rts_task_types={"long": 10_000.0})
    app = apps(stage)
    queue = app.conf.task_default_queue
    now = time.time()
    results = {
        offset: app.send_task(
            OK, (0.02,), headers={"sla_deadline": now + offset, "task_type": task_type}
        )
        for offset, task_type in ((3000, None), (1000, None), (500, "long"), (2000, None))
    }
    assert not json.loads(stage.celery("rts", "status", "--json").stdout)["problems"]
    stage.conf["rts_scheduler"] = None
    told = stage.celery("rts", "status")
    assert told.returncode == 1
    assert f"4 messages in deadline order in the queue {queue}" in told.stderr
    assert "--to-fifo" in told.stderr
    moved = json.loads(stage.celery("rts", "queues", "--to-fifo", "--json").stdout)["moved"]
    assert moved[queue] == 4
    assert redis_client.llen(queue) == 4
    assert stage.celery("rts", "status").returncode == 0
    other = f"{queue}-other"  # which the command's app does not know, but a worker does
    more = app.send_task(OK, (0.02,), queue=other)
    stage.worker(concurrency=1, queues=[queue, other])
    wait_until(
        lambda: (
            f"1 message in deadline order in the queue {other}"
            in stage.celery("rts", "status").stderr
        )
    )
    stage.conf["rts_scheduler"] = "edf"  # the command's app has it, and no worker there
    assert (
        f"1 message in deadline order in the queue {other}"
        in stage.celery("rts", "status").stderr
    )
    stage.celery("rts", "queues", "--to-fifo")
    assert more.get(timeout=60) == 0.02
    # As the first worker in order would have taken them; the hopeless one was first
    # by its deadline, since no claim had looked at it.
    expected = in_order(results)
    assert ran(mongo, expected) == expected


def test_deadlines_propagate_through_a_real_canvas(
    make_stage: MakeStage, apps: MakeApp, mongo: Any
) -> None:
    # Learning nothing, so that the taus stay as they are.
    stage = make_stage(rts_propagate_deadline=True, rts_scheduler="edf", rts_learning_rate=1e-9)
    app = apps(stage)
    stage.worker(concurrency=1)

    def of(task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = wait_until(
            lambda: mongo.tasks.find_one({"_id": task_id, "state": "SUCCESS"})
        )
        return found

    def seconds(task: dict[str, Any]) -> float:
        return float((task["deadline"] - task["arrival"]).total_seconds())

    def link(*arguments: Any) -> Any:
        return app.signature(HEADERS, args=arguments)

    alone = seconds(of(app.send_task(HEADERS).id))
    last = chain(link(), link(), link(), app=app).apply_async()
    last.get(timeout=30)
    members = [of(last.id), of(last.parent.id), of(last.parent.parent.id)]
    # One end-to-end deadline: what three of them would have had.
    assert len({task["deadline"] for task in members}) == 1
    assert seconds(members[-1]) == pytest.approx(3 * alone, rel=0.05)

    # A child has at most what its parent has left.
    due = time.time() + 7.5
    parent = app.send_task(NESTED, headers={"sla_deadline": due})
    child = of(parent.get(timeout=30))
    assert child["deadline"].timestamp() == pytest.approx(due, abs=0.002)
    assert child["parent_id"] == parent.id

    # A chord's header and body share one as well, and what follows them in a chain.
    # Before Celery 5.7 the result of a body within a chain does not lead to the header.
    ids = [uuid(), uuid()]
    ends = [link().set(task_id=task_id) for task_id in ids]
    canvas = chain(group(ends[0], chain(link(), ends[1])), link(), link(), app=app)
    last = canvas.apply_async()
    last.get(timeout=30)
    body, end = of(last.parent.id), of(last.id)
    header = [of(task_id) for task_id in ids]
    assert end["deadline"] == body["deadline"]
    assert body["deadline"] in [member["deadline"] for member in header]
    assert seconds(header[0]) == pytest.approx(3 * alone, rel=0.05)
    assert end["sla_success"] is True

    # A group on the way shares that of its chain, as does a chain within the group.
    ids = [uuid() for _ in range(5)]
    first, short, inner, long, last = (link().set(task_id=task_id) for task_id in ids)
    canvas = chain(first, group(short, chain(inner, long)), last, app=app)
    canvas.apply_async().get(timeout=30)
    members = [of(task_id) for task_id in ids]
    assert {task["deadline"] for task in members} == {members[0]["deadline"]}
    assert seconds(members[0]) == pytest.approx(4 * alone, rel=0.05)

    # So do the tasks of a chord's body, whose result comes only with Celery >= 5.7.
    ids = [uuid() for _ in range(5)]
    first, *header, left, right = (link().set(task_id=task_id) for task_id in ids)
    chain(first, group(header), group(left, right), app=app).apply_async()
    members = [of(task_id) for task_id in ids]
    assert {task["deadline"] for task in members} == {members[0]["deadline"]}
    assert seconds(members[0]) == pytest.approx(3 * alone, rel=0.05)

    # Members that have deadlines of their own keep them; the body's counts from there.
    asked = link().set(headers={"sla_deadline": due + 60})
    last = chord([asked, asked], link(), app=app).apply_async()
    last.get(timeout=30)
    header = [of(member.id)["deadline"].timestamp() for member in last.parent.results]
    assert header == pytest.approx([due + 60] * 2, abs=0.002)
    assert of(last.id)["deadline"].timestamp() == pytest.approx(due + 60 + alone, abs=0.1)


def check_priorities(app: Celery, stage: Stage, mongo: Any) -> None:
    """Check the order on a broker of priorities."""
    now = time.time()
    results = {
        offset: app.send_task(OK, (0.02,), headers={"sla_deadline": now + offset})
        for offset in (900, 12, 250, 50, 20)
    }
    own = app.send_task(OK, (0.02,), priority=0)
    stage.worker(concurrency=1, arguments=("--prefetch-multiplier", "1"))
    expected = in_order(results)
    found = ran(mongo, [*expected, own.id])
    # A priority that is given is left alone: on Redis the most urgent, elsewhere the least.
    found.remove(own.id)
    assert found == expected


def test_priorities_on_redis(make_stage: MakeStage, apps: MakeApp, mongo: Any) -> None:
    stage = make_stage(rts_scheduler="priority")
    stage.transport_options = {"priority_steps": list(range(10))}
    app = apps(stage, broker_transport_options=stage.transport_options)
    check_priorities(app, stage, mongo)


def test_priorities_on_rabbitmq(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, tmp_path: Path
) -> None:
    with RabbitServer(tmp_path) as rabbit:
        stage = make_stage(
            broker=rabbit.url, rts_scheduler="priority", task_queue_max_priority=10
        )
        stage.conf["rts_redis_url"] = stage.redis_url
        stage.backend = stage.redis_url
        app = apps(stage)
        check_priorities(app, stage, mongo)
        assert mongo.tasks.count_documents({"state": "SUCCESS", "arrival_source": "published"})
        with pytest.raises(rts.ConfigurationError, match=r"edf.*priority.*amqp"):
            apps(stage, rts_scheduler="edf")
        stage.conf["rts_scheduler"] = "edf"
        told = stage.celery("rts", "status")
        assert told.returncode != 0
        assert "'priority' or None if the broker is not Redis" in told.stderr
        stage.stop()
