"""The companion process beside a real worker: its log, its heartbeat, GPUs in trouble."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import rts
from rts.companion.worker_chores import MAX_LOAD_AGE_S
from rts.testing import wait_until
from rts.unfinished.heartbeat import BEAT_S
from tests.conftest import ONE_REPLY, MakeApp, MakeStage

#: What every process that a test starts may take, on a busy machine.
PATIENCE_S = 60.0


def test_it_logs_to_the_file_of_the_workers_main_process(
    make_stage: MakeStage, redis_client: redis.Redis, tmp_path: Path
) -> None:
    stage, logs = make_stage(), tmp_path / "logs"
    logs.mkdir()
    arguments = [f"--logfile={logs}/%n-%i.log"]
    stage.worker(concurrency=1, loglevel="WARNING", arguments=arguments)
    # It beats after it has opened the file.
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), PATIENCE_S)
    assert {path.name for path in logs.iterdir()} <= {"w0-0.log", "w0-1.log"}


#: A binding without a working driver.
FAILING_NVML = """
class NVMLError(Exception):
    pass

def nvmlInit():
    raise NVMLError("none in this test")
"""


def test_gpus_that_cannot_be_read_are_logged_once(
    make_stage: MakeStage, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    env = {"PYTHONPATH": f"{stage.folder}{os.pathsep}{stage.environment['PYTHONPATH']}"}
    (stage.folder / "pynvml.py").write_text(FAILING_NVML)
    worker = stage.worker(concurrency=1, env=env)
    # The companion has read the load.
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), PATIENCE_S)
    worker.stop()
    assert worker.log.count("GPU load is not read in full") == 1


#: A GPU whose driver hangs, from a reading on.
HANGING_NVML = """
import itertools, time

NVMLError = RuntimeError
readings = itertools.count(1)

class Rates:
    gpu = 50

class Memory:
    used, total = 1, 2

def nvmlInit():
    pass

def nvmlDeviceGetCount():
    return 1

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlDeviceGetUtilizationRates(handle):
    time.sleep(1000 if next(readings) >= {hangs_at} else 0)
    return Rates

def nvmlDeviceGetMemoryInfo(handle):
    return Memory
"""


@pytest.mark.parametrize("hangs_at", [1, 2])
def test_it_beats_and_ships_while_the_driver_of_a_gpu_hangs(
    make_stage: MakeStage, redis_client: redis.Redis, mongo: Any, hangs_at: int
) -> None:
    stage = make_stage()
    env = {"PYTHONPATH": f"{stage.folder}{os.pathsep}{stage.environment['PYTHONPATH']}"}
    (stage.folder / "pynvml.py").write_text(HANGING_NVML.format(hangs_at=hangs_at))
    stage.worker(concurrency=1, env=env)
    beats: set[str] = set()

    def has_beaten_again() -> bool:
        beats.update(redis_client.hvals(f"{stage.prefix}workers"))
        return len(beats) > MAX_LOAD_AGE_S / BEAT_S + 3

    wait_until(has_beaten_again, PATIENCE_S)
    last = max(map(json.loads, beats), key=lambda beat: beat["seen_at"])
    assert last["load"] == {}
    with Celery(broker=stage.broker) as app:
        app.send_task(
            "tests.apps.basic.ok",
            (0,),
            queue=stage.conf["task_default_queue"],
            ignore_result=True,
        )
    wait_until(lambda: mongo.tasks.count_documents({"state": "SUCCESS"}), PATIENCE_S)


@pytest.mark.parametrize(
    ("arguments", "before", "changes"),
    [
        ([], 1, [("pool_grow", (2,), 3), ("pool_shrink", (1,), 2), ("pool_shrink", (2,), 0)]),
        (["--autoscale=3,1"], 3, [("autoscale", (5, 1), 5), ("autoscale", (0, 0), 0)]),
        (["--pool=solo", "--concurrency=4"], 1, []),
    ],
    ids=["prefork", "autoscale", "solo"],
)
def test_the_heartbeat_has_the_current_slots(
    make_stage: MakeStage,
    apps: MakeApp,
    redis_client: redis.Redis,
    arguments: list[str],
    before: int,
    changes: list[tuple[str, tuple[int, ...], int]],
) -> None:
    stage = make_stage()
    stage.worker(concurrency=1, arguments=arguments)
    app = apps(stage)
    predict = partial(rts.predict_new, "t", queue=stage.conf["task_default_queue"], app=app)

    def told() -> list[int]:
        beats = redis_client.hvals(f"{stage.prefix}workers")
        return [json.loads(beat)["concurrency"] for beat in beats]

    def predicted() -> int:
        try:
            return predict().slots
        except rts.CommandError as refusal:
            if "no worker with rts takes tasks" not in str(refusal):
                raise
            return 0

    def wait_for(slots: int) -> None:
        message = f"{slots} slots"
        wait_until(lambda: told() == [slots], PATIENCE_S, message=message)
        # A reading of the queue serves predictions for up to a second.
        wait_until(lambda: predicted() == slots, PATIENCE_S, message=f"{message} predicted")

    assert wait_until(told, PATIENCE_S) == [before]
    wait_for(before)
    for command, values, after in changes:
        getattr(app.control, command)(*values, **ONE_REPLY)
        wait_for(after)


def test_the_heartbeat_has_the_current_queues(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    stage.worker(concurrency=1)
    app = apps(stage)
    first, more = stage.conf["task_default_queue"], f"{stage.prefix}more"

    def told() -> list[list[str]]:
        beats = redis_client.hvals(f"{stage.prefix}workers")
        return [json.loads(beat)["queues"] for beat in beats]

    assert wait_until(told, PATIENCE_S) == [[first]]
    app.control.add_consumer(more, **ONE_REPLY)
    wait_until(lambda: told() == [[first, more]], PATIENCE_S, message="another queue")
    assert rts.predict_new("t", queue=more, app=app).slots == 1
    app.control.cancel_consumer(first, **ONE_REPLY)
    wait_until(lambda: told() == [[more]], PATIENCE_S, message="one queue less")
