"""Signals for the app's own receivers, and tracing, in real workers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from rts.testing import wait_until
from tests.conftest import FULL, LEAN, MakeStage, Stage, printed, python
from tests.told import Told

pytestmark = pytest.mark.measured

APP = "tests.apps.told"
BASIC = "tests.apps.basic"


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "told")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_missed_deadline_is_signalled_once_where_the_run_ends(
    producer: tuple[Stage, Celery], told: Told, redis_client: Any, mongo: Any, pool: str
) -> None:
    stage, app = producer
    worker = stage.worker(APP, pool=pool, env={"TEST_TOLD": str(told.path)})
    past = {"sla_deadline": 1_000_000}
    late = app.send_task(f"{BASIC}.ok", headers=past)
    second = app.send_task(f"{BASIC}.ok", headers=past)
    fine = app.send_task(f"{BASIC}.ok")
    failed = app.send_task(f"{BASIC}.fail", headers={"sla_deadline": 4_000_000_000})
    expired = app.send_task(f"{BASIC}.ok", expires=-1)
    unknown = app.send_task("no.such.task")
    killed = app.send_task(f"{BASIC}.kill_self") if pool == "prefork" else None
    cancelled = app.send_task(f"{BASIC}.cancelled", headers={"sla_deadline": 4_000_000_000})
    limited = [
        app.send_task(f"{BASIC}.{name}", args, time_limit=1)
        for name, args in (("hard_limit", ()), ("late", (30,)))
        if pool == "prefork"
    ]
    for result in (late, second, fine):
        assert result.get(timeout=30) == 0.0
    wait_until(lambda: told.lines("missed", task_id=unknown.id))
    wait_until(lambda: told.lines("missed", task_id=expired.id))
    if killed is not None:
        (line,) = wait_until(lambda: told.lines("missed", task_id=killed.id))
        assert (line["cause"], line["pid"]) == ("killed", worker.pid)
    (line,) = wait_until(lambda: told.lines("missed", task_id=cancelled.id))
    assert (line["cause"], line["state"]) == ("killed", "FAILURE")
    # The result is stored before the receivers are called.
    (line,) = wait_until(lambda: told.lines("missed", task_id=late.id))
    assert (line["sender"], line["cause"], line["state"]) == (f"{BASIC}.ok", "late", "SUCCESS")
    assert line["lateness_s"] == pytest.approx(line["completed_at"] - 1_000_000)
    assert (line["pid"] == worker.pid) == (pool == "threads")
    (line,) = told.lines("missed", task_id=expired.id)
    assert (line["cause"], line["pid"], line["started_at"]) == ("expired", worker.pid, None)
    (line,) = told.lines("missed", task_id=unknown.id)
    assert (line["cause"], line["sender"]) == ("unknown_task", "no.such.task")
    for result in limited:
        wait_until(lambda task_id=result.id: told.lines("missed", task_id=task_id))
    wait_until(lambda: mongo.tasks.find_one({"_id": failed.id, "sla_success": True}))
    assert not told.lines("missed", task_id=failed.id)  # in time, though not successful
    assert not told.lines("missed", task_id=fine.id)
    # What a receiver raises is counted, and logged once in each process.
    counted = f"{stage.prefix}counters"
    wait_until(lambda: int(redis_client.hget(counted, "receiver_errors") or 0) >= 4)
    assert redis_client.hget(counted, "hook_errors") is None
    wait_until(lambda: mongo.tasks.count_documents({"sla_success": False}) >= 4)
    worker.stop()
    for result in limited:  # Celery 5.7 says so twice
        (line,) = told.lines("missed", task_id=result.id)
        assert (line["cause"], line["state"]) == ("time_limit", "FAILURE")
    said = worker.log.count("tests.apps.told.broken, a receiver of rts.signals.deadline_missed")
    assert 1 <= said <= 3  # processes
    assert "on purpose" in worker.log


def test_a_subclass_of_the_prefork_pool_is_one(
    producer: tuple[Stage, Celery], told: Told, mongo: Any
) -> None:
    """In a pool of threads, a time limit is the hard one."""
    stage, app = producer
    (stage.folder / "own_pool.py").write_text(
        "from celery.concurrency.prefork import TaskPool\n\nclass Pool(TaskPool):\n    pass\n"
    )
    env = {
        "CELERY_CUSTOM_WORKER_POOL": "own_pool:Pool",
        "PYTHONPATH": f"{stage.folder}{os.pathsep}{LEAN}",
        "TEST_TOLD": str(told.path),
    }
    stage.worker(APP, pool="custom", concurrency=1, env=env)
    soft = app.send_task(f"{BASIC}.soft_limit")
    wait_until(lambda: mongo.tasks.find_one({"_id": soft.id, "sla_success": True}))
    assert not told.lines("missed")


@pytest.mark.parametrize("tracing", ["before", "child"])
def test_opentelemetry_spans_carry_the_plan_whoever_connected_first(
    make_stage: MakeStage, told: Told, tracing: str
) -> None:
    pytest.importorskip("opentelemetry.instrumentation.celery")
    stage = make_stage()
    env = {"TEST_TOLD": str(told.path), "TEST_TRACING": tracing, "PYTHONPATH": FULL}
    stage.worker(APP, concurrency=1, env=env)
    app = Celery("plain", broker=stage.broker, backend=stage.backend, set_as_current=False)
    app.conf.task_default_queue = stage.conf["task_default_queue"]
    for deadline in (1_000_000, 4_000_000_000):
        headers = {"task_type": "cpu-light", "sla_deadline": deadline}
        app.send_task(f"{BASIC}.nested", headers=headers).get(timeout=30)
        name = f"run/{BASIC}.nested"
        wait_until(
            lambda name=name, deadline=deadline: [
                line
                for line in told.lines("span", name=name)
                if line["attributes"].get("rts.deadline") == deadline
            ]
        )
    spans = told.lines("span", name=name)
    assert len(spans) == 2  # the very first one too
    for span, (deadline, missed) in zip(
        spans, ((1_000_000, True), (4_000_000_000, False)), strict=True
    ):
        facts = {k: v for k, v in span["attributes"].items() if k.startswith("rts.")}
        assert facts["rts.task_type"] == "cpu-light"
        assert facts["rts.deadline"] == deadline
        assert facts["rts.tau_s"] > 0
        assert (facts["rts.laxity_s"] < 0) == missed
        assert facts["rts.deadline_missed"] is missed
    # Those of publishing, inside the task.
    spans = told.lines("span", name=f"apply_async/{BASIC}.headers")
    assert len(spans) == 2
    for span in spans:
        facts = span["attributes"]
        assert facts["rts.task_type"] == "mixed"
        # Published with an eta slightly in the future: what is left beyond tau.
        assert 0 < facts["rts.laxity_s"] <= facts["rts.tau_s"]
        assert "rts.deadline_missed" not in facts
    # A run that is retried has no verdict yet.
    app.send_task(f"{BASIC}.retry_once")
    name = f"run/{BASIC}.retry_once"
    runs = wait_until(lambda: (found := told.lines("span", name=name))[1:] and found)
    verdicts = [run["attributes"].get("rts.deadline_missed") for run in runs]
    assert verdicts == [None, False]
    app.close()


@pytest.mark.parametrize("when", ["before", "after", "none"])
def test_the_span_of_a_publish_carries_the_plan_and_no_other(
    rts_redis_url: str, rts_key_prefix: str, when: str
) -> None:
    pytest.importorskip("opentelemetry.instrumentation.celery")
    done = python("-m", "tests.apps.traced", rts_redis_url, rts_key_prefix, when)
    assert done.returncode == 0, done.stderr
    spans = [json.loads(line) for line in done.stdout.splitlines()]
    publishes = [] if when == "none" else ["apply_async", "apply_async"]
    assert [span["name"].partition("/")[0] for span in spans] == [*publishes, "request"]
    planned = [span for span in spans if "rts.task_type" in span]
    # Without an instrumentor there is only the current span.
    assert planned == (spans if when == "none" else spans[:2])
    assert all(0 < span["rts.laxity_s"] <= span["rts.tau_s"] for span in planned)


def test_a_forked_child_may_set_up_tracing_of_its_own(
    rts_redis_url: str, rts_key_prefix: str
) -> None:
    """As one of a web server does, whose parent has published already."""
    pytest.importorskip("opentelemetry.sdk")
    script = f"""if True:
        import os
        from celery import Celery
        import rts
        app = Celery("forks", broker="memory://")
        app.conf.update(rts_redis_url={rts_redis_url!r}, rts_key_prefix={rts_key_prefix!r})
        rts.install(app)
        app.send_task("in the parent")
        if os.fork():
            os.wait()
        else:
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
            trace.set_tracer_provider(TracerProvider())
            with trace.get_tracer("web").start_as_current_span("request") as span:
                app.send_task("in the child")
            print(span.attributes["rts.task_type"], flush=True)
            os._exit(0)
    """
    assert printed(script) == "mixed\n"


def test_sentry_events_carry_the_plan_as_tags(make_stage: MakeStage, told: Told) -> None:
    pytest.importorskip("sentry_sdk")
    stage = make_stage()
    stage.worker(
        APP, concurrency=1, env={"TEST_TOLD": str(told.path), "TEST_TRACING": "sentry"}
    )
    app = Celery("plain", broker=stage.broker, backend=stage.backend, set_as_current=False)
    app.conf.task_default_queue = stage.conf["task_default_queue"]
    headers = {"task_type": "cpu-light", "sla_deadline": 1_000_000}
    app.send_task(f"{BASIC}.fail", headers=headers)
    app.send_task(f"{BASIC}.ok")
    wait_until(lambda: len(told.lines("event", type="transaction")) == 2)
    (error,) = told.lines("event", type="error")
    assert error["tags"]["rts.task_type"] == "cpu-light"
    assert float(error["tags"]["rts.deadline"]) == 1_000_000
    assert float(error["tags"]["rts.laxity_s"]) < 0
    assert error["tags"]["rts.deadline_missed"] == "true"
    late, fine = told.lines("event", type="transaction")
    assert late["tags"]["rts.deadline_missed"] == "true"
    assert fine["tags"]["rts.deadline_missed"] == "false"
    assert fine["tags"]["rts.task_type"] == "mixed"
    app.close()


def test_without_tracing_nothing_is_imported_or_connected() -> None:
    # redis-py itself imports OpenTelemetry's API where it is installed, without using it.
    script = """
import sys
import rts.parts, rts.worker, rts.lifecycle.receivers
from celery.signals import after_task_publish, task_postrun
from rts.lifecycle.tracing import TRACING
assert TRACING.enabled
TRACING.detect()
assert not TRACING.enabled
assert not after_task_publish.receivers and not task_postrun.receivers
assert not {"sentry_sdk", "opentelemetry.instrumentation.celery"} & set(sys.modules)
"""
    printed(script)
