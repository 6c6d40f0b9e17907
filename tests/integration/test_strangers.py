"""Whatever strangers send: the task runs, the value is refused, nothing is shaped by it."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
import redis

from rts.keys import Keys
from rts.tasktypes import DEFAULT_TASK_TYPES
from rts.testing import wait_until
from tests.conftest import MakeApp, MakeStage

#: What people, other languages and attackers put into headers.
HOSTILE: list[dict[str, Any]] = [
    {"task_type": "x" * 1_000_000},
    {"task_type": "a\x00b"},
    {"task_type": "a.b.c"},
    {"task_type": "$where"},
    {"task_type": {"$gt": ""}},
    {"task_type": ["cpu-light"]},
    {"task_type": 7},
    {"task_type": ""},
    {"sla_deadline": float("nan")},
    {"sla_deadline": float("inf")},
    {"sla_deadline": -1},
    {"sla_deadline": "10000-01-01T00:00:00Z"},
    {"sla_deadline": 253402300800},
    {"sla_deadline": [1]},
    {"req_gpu": "many"},
    {"req_cpu": -3},
    {"req_memory": float("nan")},
    {"sla_multiplier": 99},
    {"sla_multiplier": "2.0.0"},
    {"sla_multiplier": True},
]

#: Headers that only rts writes, forged in messages that never went through it.
FORGED: list[dict[str, Any]] = [
    {"task_type": "cpu-light", "rts_deadline": "soon", "rts_tau": 1.0, "rts_k": 2.0},
    {"rts_deadline": float("nan"), "rts_tau": -1.0, "rts_k": 2.0, "rts_arrival": 1.0},
    {"rts_deadline": 1e300, "rts_tau": 1e300, "rts_k": 1e300, "rts_arrival": 1e300},
    {"rts_deadline": {"$gt": 0}, "rts_run": "x", "rts_type_source": "a\x00b"},
    {"rts_run": {"execution": 1}, "rts_arrival_source": ["x"]},
]


def publish_raw(client: redis.Redis, queue: str, task: str, headers: dict[str, Any]) -> str:
    """Put a message into the queue as another language would; return the task id."""
    task_id = str(uuid.uuid4())
    body = base64.b64encode(b'[[0], {}, {"callbacks": null, "errbacks": null}]').decode()
    message = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": task_id, "root_id": task_id, **headers},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    client.lpush(queue, json.dumps(message))
    return task_id


def test_hostile_headers_leave_every_task_a_sound_plan_and_verdict(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    queue = stage.conf["task_default_queue"]
    worker = stage.worker()
    app = apps(stage)
    name = "tests.apps.basic.ok"
    results = [app.send_task(name, (0,), headers=dict(headers)) for headers in HOSTILE]
    assert all(result.get(timeout=60) == 0 for result in results)
    raw = [publish_raw(redis_client, queue, name, h) for h in [*HOSTILE, *FORGED]]
    ended = {"state": "SUCCESS", "sla_success": True}
    wait_until(lambda: mongo.tasks.count_documents(ended) == len(results) + len(raw))

    for task in mongo.tasks.find():
        slack = max(task["k"] * task["tau"], task["tau"] + 1.0)
        span = (task["deadline"] - task["arrival"]).total_seconds()
        assert span == pytest.approx(slack, abs=0.002)
        assert task["task_type"] in DEFAULT_TASK_TYPES
        wanted = "received" if task["_id"] in raw else "published"
        assert task["arrival_source"] == wanted
    fields = set(redis_client.hkeys(f"{stage.prefix}tau"))
    types = ("mixed", "gpu-inference", "cpu-light", "memory-heavy")
    assert fields <= {*types, *(f"{t}/{name}" for t in types)}
    # All keys are among those that rts.keys knows: none is shaped by a stranger.
    plain = [part for part in vars(Keys(stage.prefix)).values() if part != stage.prefix]
    for key in redis_client.scan_iter(f"{stage.prefix}*", count=1000):
        assert any(key == name or key.startswith(f"{name.rstrip(':')}:") for name in plain), key
        assert len(key) < 200

    def counted() -> dict[str, int]:
        # One publish a second brings what was counted before it.
        app.send_task(name, (0,)).get(timeout=60)
        found = redis_client.hgetall(f"{stage.prefix}counters")
        return {k: int(v) for k, v in found.items()}

    wait_until(lambda: counted().get("refused_task_type") == 16)
    counters = counted()
    assert counters["refused_sla_multiplier"] == 6
    assert counters["refused_plan"] >= len(FORGED) - 1
    assert "hook_errors" not in counters
    assert "task_type" in worker.log
    assert "x" * 200 not in worker.log


def test_ids_and_names_of_any_length_leave_no_more_than_usual_ones(
    make_stage: MakeStage, mongo: Any, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    queue = stage.conf["task_default_queue"]
    worker = stage.worker()
    long = "x" * 1_000_000
    unknown = {
        "id": f"{long}1",
        "task": f"\n[CRITICAL] forged\x1b[31m{long}",
        "task_type": "none",
    }
    publish_raw(redis_client, queue, "none", unknown)
    late = {"id": f"{long}2", "root_id": long, "parent_id": [long], "sla_deadline": 1.0}
    publish_raw(redis_client, queue, "tests.apps.basic.ok", late)
    wait_until(lambda: mongo.tasks.count_documents({"completed_at": {"$ne": None}}) == 2)
    assert {len(task["_id"]) for task in mongo.tasks.find()} == {1024}
    for key in redis_client.scan_iter(f"{stage.prefix}*", count=1000):
        assert redis_client.memory_usage(key, samples=0) < 100_000, key
    assert "none" in worker.log
    assert not [line for line in worker.log.splitlines() if line.startswith("[CRITICAL]")]


def test_no_more_taus_than_allowed(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_max_types=6)
    stage.worker()
    app = apps(stage)
    names = ("ok", "late", "plan", "pid")
    for task_type in ("cpu-light", "cpu-heavy", "mixed"):
        for name in names:
            arguments = (0,) if name in ("ok", "late") else ()
            headers = {"task_type": task_type}
            app.send_task(f"tests.apps.basic.{name}", arguments, headers=headers)
    wait_until(lambda: mongo.tasks.count_documents({"state": "SUCCESS"}) == 12)
    assert redis_client.hlen(f"{stage.prefix}tau") == 6
    assert int(redis_client.hget(f"{stage.prefix}counters", "tau_keys_refused") or 0) > 0
