"""``rts exporter`` as a process, and that all numbers agree with those it shows."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from rts.settings import Settings
from rts.testing import wait_until
from rts.testing.processes import OwnedProcess
from rts.views.slo import standings
from tests.conftest import CELERY, ROOT, MakeApp, MakeStage, Stage
from tests.metrics import values


@pytest.fixture
def producer(make_stage: MakeStage, apps: MakeApp) -> tuple[Stage, Celery]:
    stage = make_stage(rts_slo={"mixed": 0.99, "*": 0.9})
    return stage, apps(stage)


@pytest.fixture
def exporter(
    producer: tuple[Stage, Celery], tmp_path: Path
) -> Iterator[tuple[OwnedProcess, str, Path]]:
    """An exporter of the stage, the address of its metrics, and its log."""

    stage, _ = producer
    log = tmp_path / "exporter.log"
    env = {**os.environ, **stage.environment}
    process = OwnedProcess([*CELERY, "rts", "exporter", "--port", "0"], log, env=env, cwd=ROOT)
    try:
        found = wait_until(
            lambda: (
                re.search(r"http://127\.0\.0\.1:\d+/metrics", log.read_text())
                or not process.running
            )
        )
        assert isinstance(found, re.Match), log.read_text()
        yield process, found[0], log
    finally:
        process.stop(10)


def get(url: str, accept: str = "text/plain") -> tuple[str, str]:
    """Return content type and text."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


@pytest.mark.measured
def test_it_serves_both_formats_and_exits_on_a_signal(
    exporter: tuple[OwnedProcess, str, Path],
) -> None:
    process, url, log = exporter
    kind, text = get(url)
    assert kind.startswith("text/plain")
    assert values(text, "rts_up", "server") == {"redis": 1, "mongodb": 1, "broker": 1}
    kind, text = get(url, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    process.send(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_a_queue_of_workers_stays_when_they_are_gone(
    producer: tuple[Stage, Celery], exporter: tuple[OwnedProcess, str, Path], redis_client: Any
) -> None:
    stage, _ = producer
    queue = stage.prefix + "emails"
    beat = {"seen_at": time.time(), "worker": "w@h", "queues": [queue]}
    redis_client.hset(f"{stage.prefix}workers", "w@h/1", json.dumps(beat))
    for waiting in (1, 2):
        redis_client.rpush(queue, "message")
        messages = values(get(exporter[1])[1], "rts_queue_messages", "queue", "form")
        assert messages[queue, "plain"] == waiting
        redis_client.delete(f"{stage.prefix}workers")


def test_once_prints_and_exits(producer: tuple[Stage, Celery]) -> None:
    stage, _ = producer
    finished = stage.celery("rts", "exporter", "--once")
    assert finished.returncode == 0, finished.stderr
    assert values(finished.stdout, "rts_up", "server")["redis"] == 1
    assert 'rts_slo_target_ratio{objective="mixed"} 0.99' in finished.stdout


def test_a_broker_that_is_not_asked_is_not_told_to_be_up(
    make_stage: MakeStage, rts_redis_url: str
) -> None:
    stage = make_stage(broker="amqp://127.0.0.1:9//", rts_redis_url=rts_redis_url)
    finished = stage.celery("rts", "exporter", "--once")
    assert finished.returncode == 0, finished.stderr
    assert values(finished.stdout, "rts_up", "server") == {"redis": 1, "mongodb": 1}


def test_an_address_of_ipv6_is_told_as_a_url(
    producer: tuple[Stage, Celery], tmp_path: Path
) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    stage, _ = producer
    log = tmp_path / "log"
    command = [*CELERY, "rts", "exporter", "--host", "::1", "--port", "0"]
    process = OwnedProcess(command, log, env={**os.environ, **stage.environment}, cwd=ROOT)
    try:
        said = wait_until(lambda: re.search(r"http://\S+", log.read_text()))
        assert re.fullmatch(r"http://\[::1\]:\d+/metrics", said[0])
        assert 'server="redis"' in get(said[0])[1]
    finally:
        process.stop(10)


@pytest.mark.measured
def test_a_port_in_use_is_reported(producer: tuple[Stage, Celery]) -> None:
    stage, _ = producer
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = stage.celery("rts", "exporter", "--port", str(port))
    assert finished.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.measured
def test_all_numbers_agree(
    producer: tuple[Stage, Celery],
    exporter: tuple[OwnedProcess, str, Path],
    mongo: Any,
    redis_client: Any,
) -> None:
    """The command line, the metrics, the objectives and a direct count, over tasks that
    end in every way, and a worker that is killed and started anew in between.
    """
    stage, app = producer
    _, url, _ = exporter
    begin = datetime.now(timezone.utc)
    worker = stage.worker("tests.apps.basic")

    def send(name: str, *args: Any, **options: Any) -> str:
        return str(app.send_task(f"tests.apps.basic.{name}", args, **options).id)

    past = {"sla_deadline": 1_000_000}
    nobody = stage.prefix.strip(":") + "-nobody"
    ids = [send("ok") for _ in range(5)]
    ids += [send("ok", headers=past) for _ in range(3)]
    ids += [send(name) for name in ("fail", "kill_self", "retry_once", "rejected", "ignored")]
    ids += [send("hard_limit"), send("ok", expires=-1), send("no_such_task")]
    ids.append(send("ok", queue=nobody, headers={"sla_deadline": time.time() + 1}))
    redis_client.delete(nobody)
    for task_id in ids:
        wait_until(
            lambda task_id=task_id: mongo.tasks.find_one(
                {"_id": task_id, "sla_success": {"$ne": None}}
            )
        )
    before = get(url)[1]
    lost = send("ok", 60.0, headers={"sla_deadline": time.time() + 3600})
    running = f"{stage.prefix}running"
    wait_until(lambda: any(f.startswith(lost) for f in redis_client.hkeys(running)))
    worker.kill()
    again = stage.worker("tests.apps.basic")
    ids += [lost, send("ok")]
    wait_until(lambda: mongo.tasks.find_one({"_id": ids[-1]}), timeout=60)
    wait_until(lambda: mongo.tasks.find_one({"_id": lost}), timeout=60)
    wait_until(lambda: redis_client.xlen(f"{stage.prefix}outbox") == 0)
    assert again.running
    text = get(url)[1]

    # A direct count.
    tasks = list(mongo.tasks.find({"sla_success": {"$ne": None}}))
    assert {t["_id"] for t in tasks} == set(ids)
    counted = Counter((t["name"], "met" if t["sla_success"] else "missed") for t in tasks)
    runs = Counter(r["name"] for r in mongo.assignments.find())
    causes = Counter(t["cause"] or "late" for t in tasks if not t["sla_success"])
    assert {"killed", "lost", "overdue", "late", "time_limit", "expired"} <= causes.keys()

    # The metrics: of all time.
    assert Counter(values(text, "rts_deadlines_total", "task", "verdict")) == counted
    assert values(text, "rts_runs_total", "task") == runs
    in_metrics = values(text, "rts_misses_total", "cause")
    assert sum(in_metrics.values()) == sum(causes.values())
    exact = {"killed", "lost", "time_limit", "expired", "rejected", "unknown_task"}
    assert {c: in_metrics.get(c, 0) for c in exact} == {c: causes[c] for c in exact}
    for name in ("rts_runs_total", "rts_deadlines_total"):  # a restart takes nothing back
        for task, n in values(before, name, "task").items():
            assert values(text, name, "task")[task] >= n

    # The command line: of a window that holds everything (one deadline lies in 1970).
    arguments = ("report", "--since", "1970-01-01", "--by", "name", "--json")
    report = json.loads(stage.celery("rts", *arguments).stdout)
    assert report["total"]["tasks"] == len(tasks)
    assert report["total"]["runs"] == sum(runs.values())
    assert report["total"]["misses"] == causes
    for row in report["rows"]:
        met = round(row["on_time_ratio"] * row["tasks"]) if row["tasks"] else 0
        assert (met, row["tasks"] - met) == (
            counted[row["key"], "met"],
            counted[row["key"], "missed"],
        )

    # The objectives, in the ledger and in the metrics.
    settings = Settings.from_conf(app.conf)
    (mixed, _) = standings(mongo, settings, datetime.now(timezone.utc))
    window = [t for t in tasks if t["verdict_at"] >= begin]
    seen = mixed.windows["1h"]
    assert (seen.valid, seen.good) == (len(window), sum(t["sla_success"] for t in window))
    labels = ("objective", "window")
    assert values(text, "rts_slo_window_verdicts", *labels)["mixed", "1h"] == seen.valid
    assert (
        values(text, "rts_slo_window_missed", *labels)["mixed", "1h"] == seen.valid - seen.good
    )
    by_objective = values(text, "rts_slo_verdicts_total", "objective", "verdict")
    assert by_objective["mixed", "missed"] == sum(causes.values())
    assert by_objective["*", "met"] == by_objective["*", "missed"] == 0
    burn = values(text, "rts_slo_burn_rate", *labels)["mixed", "1h"]
    assert burn == pytest.approx(seen.burn_rate)
    assert burn == pytest.approx((seen.valid - seen.good) / seen.valid / (1 - 0.99))
