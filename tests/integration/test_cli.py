"""The command line on real servers and a real worker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from pymongo.database import Database

import rts as rts_of
from rts.cli import rts
from rts.ledger.mongo import MongoLedger
from rts.records import Execution, OutboxEntry
from rts.settings import Settings
from rts.testing import RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

ROOT = Path(__file__).parent.parent.parent

#: Ports of nobody: nothing listens there.
NO_REDIS, NO_MONGO = "redis://:secret@127.0.0.1:1/0", "mongodb://u:secret@127.0.0.1:1/rts"

Run = Callable[..., Result]


@pytest.fixture
def conf(
    rts_redis_url: str, rts_mongo_url: str, rts_key_prefix: str, tmp_path: Path
) -> dict[str, Any]:
    """The configuration of the app; tests may change it."""
    return {
        "rts_redis_url": rts_redis_url,
        "rts_mongo_url": rts_mongo_url,
        "rts_key_prefix": rts_key_prefix,
        "rts_spool_dir": str(tmp_path / "spool"),
    }


@pytest.fixture
def cli(conf: dict[str, Any]) -> Run:
    """Run a command in this process."""

    def run(*arguments: str, charset: str = "utf-8", **options: Any) -> Result:
        app = Celery("cli", set_as_current=False)
        rts_of.install(app)
        app.conf.update(conf)
        context = CLIContext(app=app, no_color=True, workdir=None)
        result = CliRunner(charset).invoke(rts, arguments, obj=context, **options)
        rts_of.uninstall(app)
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    return run


def run_at(second: float, number: int = 0, **changes: Any) -> Execution:
    """Return a successful run that ended *second* seconds before now."""
    completed_at = time.time() - second
    run = Execution(
        run_id=f"run-{number}",
        task_id=f"task-{number}",
        name="tests.work",
        task_type="cpu-light",
        type_source="explicit",
        tau=5.0,
        k=2.0,
        arrival=completed_at - 4,
        deadline=completed_at + 6,
        arrival_source="published",
        queue="q",
        retries=0,
        parent_id=None,
        root_id=None,
        worker="w@host",
        instance="w@host/1",
        pid=1,
        started_at=completed_at - 3,
        load_at_start={"load": 0.25, "cpu": 0.25, "memory": None, "gpu": None},
        completed_at=completed_at,
        runtime_s=3.0,
        state="SUCCESS",
    )
    return run._replace(**changes)


def write(conf: dict[str, Any], *runs: Execution) -> None:
    ledger = MongoLedger(Settings.from_conf(conf))
    ledger.write([OutboxEntry(str(n), run) for n, run in enumerate(runs)])
    ledger.close()


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# --- through celery itself ----------------------------------------------------------


class Shell:
    """``python -m celery -A tests.apps.basic rts …`` for a stage."""

    def __init__(self, stage: Any) -> None:
        self.environment = {**os.environ, **stage.environment}
        self.command = [sys.executable, "-m", "celery", "-A", "tests.apps.basic", "rts"]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.mark.parametrize("installed", [True, False])
def test_every_command_of_a_real_app(
    make_stage: Callable[..., Any], mongo: Database[dict[str, Any]], installed: bool
) -> None:
    stage = make_stage()
    app = Celery("sender", broker=stage.broker, set_as_current=False)
    app.conf.task_default_queue = stage.conf["task_default_queue"]
    worker = stage.worker(concurrency=1)
    ids = [app.send_task("tests.apps.basic.ok", [0.01]).id for _ in range(3)]
    ids.append(app.send_task("tests.apps.basic.fail").id)
    wait_until(lambda: mongo.tasks.count_documents({}) == 4, message="four verdicts")

    stage.installed = installed
    shell = Shell(stage)

    def knows_the_load() -> subprocess.CompletedProcess[str] | None:
        asked = shell("status", "--json")
        loads = [worker["load"].get("cpu") for worker in json.loads(asked.stdout)["workers"]]
        return None if None in loads else asked  # on a busy machine a sample may be old

    asked = wait_until(knows_the_load)
    status = json.loads(asked.stdout)
    assert status["ok"] is installed
    assert asked.returncode == (0 if installed else 1)
    assert ("Add rts.install(app) below" in asked.stderr) is not installed
    assert [w["concurrency"] for w in status["workers"]] == [1]
    worker.stop()

    listed = shell("tau")
    assert listed.returncode == 0, listed.stderr
    assert "  tests.apps.basic.ok" in listed.stdout
    assert "gpu-training" in listed.stdout
    reported = shell("report", "--since", "1h", "--by", "name", "--json")
    report = json.loads(reported.stdout)
    assert {r["key"]: r["tasks"] for r in report["rows"]} == {
        "tests.apps.basic.ok": 3,
        "tests.apps.basic.fail": 1,
    }
    assert report["total"]["tasks"] == 4
    assert report["total"]["goodput_ratio"] == 0.75
    shown = json.loads(shell("show", ids[-1], "--json").stdout)
    assert shown["task"]["state"] == "FAILURE"
    assert [run["retries"] for run in shown["assignments"]] == [0]
    drained = shell("drain", "--once", "--json")
    assert json.loads(drained.stdout) == {"moved": 0}, drained.stderr
    assert shell("tau", "set", "mixed", "7").stdout.startswith("mixed: tau ")
    assert shell("nothing").returncode == 2


def test_drain_ends_at_a_signal(
    make_stage: Callable[..., Any], redis_client: redis.Redis, mongo: Database[dict[str, Any]]
) -> None:
    stage = make_stage()
    shell = Shell(stage)
    outbox = f"{stage.prefix}outbox"
    for number, ending in enumerate((signal.SIGINT, signal.SIGTERM)):
        redis_client.xadd(outbox, {"r": run_at(1, number).to_json()})
        with subprocess.Popen(
            [*shell.command, "drain"],
            env=shell.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                task = {"_id": f"task-{number}"}
                wait_until(lambda t=task: mongo.tasks.find_one(t), message="a verdict")
                wait_until(lambda: redis_client.xlen(outbox) == 0, message="an empty outbox")
                process.send_signal(ending)
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 0, err
        assert out == "1 record moved\n"
        assert err == "Draining. Press Ctrl-C to stop.\n"


# --- tau --------------------------------------------------------------------------------


def test_tau_of_a_new_installation(cli: Run) -> None:
    taus = document(cli("tau", "--json"))["taus"]
    assert [t["field"] for t in taus] == [
        "cpu-heavy",
        "cpu-light",
        "gpu-inference",
        "gpu-training",
        "memory-heavy",
        "mixed",
    ]
    assert taus[1] == {
        "field": "cpu-light",
        "task_type": "cpu-light",
        "name": None,
        "tau_s": 5.0,
        "source": "default",
        "runs": 0,
        "deviation_s": None,
        "p50_s": None,
        "p95_s": None,
        "p99_s": None,
    }
    lines = cli("tau").stdout.splitlines()
    headers = " ".join(lines[1].split())
    assert headers == "type / name tau s runs deviation s p50 p95 p99 source"
    assert lines[3].split() == ["cpu-light", "5.00", "0", "-", "-", "-", "-", "default"]


def test_tau_set_and_reset(
    cli: Run, redis_client: redis.Redis, rts_key_prefix: str, conf: dict[str, Any]
) -> None:
    assert document(cli("tau", "set", "mixed", "2.5", "--json")) == {
        "field": "mixed",
        "tau_before_s": 10.0,
        "tau_s": 2.5,
    }
    named = cli("tau", "set", "mixed/a.b", "1e9")
    assert named.stdout == "mixed/a.b: tau - -> 1000000000 s\n"
    assert "0 of the 5 runs" in named.stderr
    assert redis_client.hgetall(f"{rts_key_prefix}tau") == {
        "mixed": "2.5",
        "mixed/a.b": "1000000000.0",
    }
    sources = {t["field"]: t["source"] for t in document(cli("tau", "--json"))["taus"]}
    assert (sources["mixed"], sources["mixed/a.b"]) == ("set", "set")
    conf["rts_tau_scope"] = "type"
    assert "rts_tau_scope" in cli("tau", "set", "mixed/a.b", "3").stderr

    refused = cli("tau", "reset", input="n\n")
    assert refused.exit_code == 1
    assert redis_client.hlen(f"{rts_key_prefix}tau") == 2
    assert cli("tau", "reset", "mixed/a.b", input="y\n").stdout == "1 tau forgotten\n"
    assert redis_client.hkeys(f"{rts_key_prefix}tau") == ["mixed"]
    unknown = cli("tau", "reset", "mixed/a.b", "--yes")
    assert unknown.exit_code == 1
    assert "nothing was learned about mixed/a.b" in unknown.stderr
    assert document(cli("tau", "reset", "--yes", "--json")) == {"reset": ["mixed"]}
    assert redis_client.hlen(f"{rts_key_prefix}tau") == 0
    assert cli("tau", "reset", "--yes").stdout == "0 taus forgotten\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope", "1"),
        ("mixed", "0"),
        ("mixed", "nan"),
        ("mixed", "1e10"),
        ("mixed", "soon"),
        ("mixed/", "1"),
        ("mixed/a\x1bb", "1"),
        ("mixed",),
    ],
)
def test_tau_set_refuses(cli: Run, arguments: tuple[str, ...]) -> None:
    result = cli("tau", "set", *arguments)
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert "\x1b" not in result.stderr


def test_tau_set_keeps_within_the_limit(cli: Run, conf: dict[str, Any]) -> None:
    conf["rts_max_types"] = 6
    for number in range(6):
        assert cli("tau", "set", f"mixed/{number}", "1").exit_code == 0
    assert "rts_max_types is 6" in cli("tau", "set", "mixed", "1").stderr
    assert cli("tau", "set", "mixed/1", "2").exit_code == 0


def test_hostile_names(cli: Run, redis_client: redis.Redis, rts_key_prefix: str) -> None:
    redis_client.hset(f"{rts_key_prefix}tau", "mixed/\x1b[2Jx" + "y" * 200, "1")
    redis_client.hset(f"{rts_key_prefix}tau", "odd", "3")
    result = cli("tau", env={"COLUMNS": "80"})
    assert "\x1b" not in result.stdout
    assert "\\x1b[2Jxyy" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "odd" in result.stdout


def test_a_terminal_that_lacks_a_character_gets_an_escape(
    cli: Run, redis_client: redis.Redis, rts_key_prefix: str
) -> None:
    redis_client.hset(f"{rts_key_prefix}tau", "mixed/naïve.задача", "1")
    result = cli("tau", charset="latin-1")
    assert result.exit_code == 0
    assert "naïve.\\u0437" in result.stdout


# --- report and show ----------------------------------------------------------------------


def test_the_report_counts_a_window_by_key_and_in_total(cli: Run, conf: dict[str, Any]) -> None:
    late = {"deadline": time.time() - 100, "task_type": "mixed"}
    write(
        conf,
        run_at(10, 1),
        run_at(10, 2, **late),
        run_at(10, 3, **late, cause="killed", state="FAILURE", runtime_s=None),
        run_at(7200, 4),
    )
    found = document(cli("report", "--since", "1h", "--json"))
    assert found["by"] == "type"
    assert found["since"].endswith("Z")
    assert [row["key"] for row in found["rows"]] == ["cpu-light", "mixed"]
    assert found["rows"][1]["misses"] == {"late": 1, "killed": 1}
    assert found["total"]["tasks"] == 3
    assert found["total"]["tau_error_ratio"] == pytest.approx(4 / 6)
    assert abs(found["total"]["runtime"]["p50_s"] - 3) < 0.05
    assert document(cli("report", "--json"))["total"]["tasks"] == 4
    text = cli("report", "--by", "worker", env={"COLUMNS": "80"}).stdout
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:2] == ["total", "4"] for line in lines)
    assert "1 killed, 1 late" in text
    # A task that no worker had has a row.
    write(conf, run_at(10, 5, worker="", cause="revoked", state="REVOKED", ran=False))
    text = cli("report", "--since", "1h", "--by", "worker").stdout
    assert any(line.split()[:3] == ["unknown", "1", "0.0"] for line in text.splitlines())
    until = datetime.now(timezone.utc).isoformat()
    window = cli("report", "--since", "3h", "--until", "1h", "--json")
    assert document(window)["total"]["tasks"] == 1
    assert document(cli("report", "--until", until, "--json"))["total"]["tasks"] == 5


def test_report_of_nothing(cli: Run) -> None:
    result = cli("report")
    assert result.exit_code == 0
    assert "None. If tasks did run" in result.stdout
    found = document(cli("report", "--json"))
    assert (found["rows"], found["total"]) == ([], None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--since", "yesterday"),
        ("--since", "999999999w"),
        ("--since", "200000w"),
        ("--since", "1h", "--until", "2h"),
        ("--by", "colour"),
    ],
)
def test_invalid_windows_and_keys_are_rejected(cli: Run, arguments: tuple[str, ...]) -> None:
    result = cli("report", *arguments)
    assert result.exit_code == 2
    assert "Error" in result.stderr


def test_show_prints_a_task_and_each_of_its_runs(cli: Run, conf: dict[str, Any]) -> None:
    first = run_at(20, 1, state="RETRY", load_at_start=None)
    second = run_at(10, 2, task_id="task-1", retries=1)
    write(conf, first, second)
    found = document(cli("show", "task-1", "--json"))
    assert found["task"]["task_id"] == "task-1"
    assert found["task"]["sla_success"] is True
    assert found["task"]["completed_at"].endswith("Z")
    assert [run["run_id"] for run in found["assignments"]] == ["run-1", "run-2"]
    assert not any(key.startswith("_") for run in found["assignments"] for key in run)
    text = cli("show", "task-1").stdout
    assert "Runs: 2" in text
    assert "0.25" in text
    assert "sla_success     yes" in text


def test_show_of_an_overdue_task(cli: Run, conf: dict[str, Any]) -> None:
    never = {"started_at": None, "completed_at": None, "runtime_s": None, "ran": False}
    write(conf, run_at(20, 1, state="PENDING", cause="overdue", **never))
    found = document(cli("show", "task-1", "--json"))
    assert (found["task"]["state"], found["task"]["cause"]) == ("PENDING", "overdue")
    assert found["task"]["sla_success"] is False
    assert found["task"]["verdict_at"] == found["task"]["deadline"]
    assert found["assignments"] == []
    text = cli("show", "task-1").stdout
    assert "cause           overdue" in text
    assert "Runs: 0" in text


def test_show_of_an_expired_task(cli: Run, conf: dict[str, Any]) -> None:
    write(conf, run_at(1, 1, ran=False, state="REVOKED", cause="expired", started_at=None))
    assert "Runs: 0" in cli("show", "task-1").stdout
    missing = cli("show", "\x1bnope")
    assert missing.exit_code == 1
    assert "the ledger has no task \\x1bnope" in missing.stderr


# --- status ----------------------------------------------------------------------------


def test_status_when_all_is_well(
    cli: Run,
    conf: dict[str, Any],
    redis_client: redis.Redis,
    rts_key_prefix: str,
    tmp_path: Path,
) -> None:
    now = redis_client.time()[0]
    for instance, age in (("b@h/1", 1), ("a@h/2", 60)):
        beat = {"seen_at": now - age, "worker": instance[:3], "concurrency": 4, "host": "h"}
        redis_client.hset(f"{rts_key_prefix}workers", instance, json.dumps(beat))
    redis_client.hset(f"{rts_key_prefix}workers", "other", "not json")
    for number, deadline in enumerate((now - 10, now + 1000)):
        note = run_at(0, number, completed_at=None, state="STARTED", deadline=deadline)
        redis_client.hset(f"{rts_key_prefix}running", f"r{number}", note.to_json())
    redis_client.hset(f"{rts_key_prefix}running", "odd", "no note")
    redis_client.hset(f"{rts_key_prefix}counters", mapping={"redis_failures": 3, "zero": 0})
    redis_client.xadd(f"{rts_key_prefix}outbox", {"r": "{}"})
    redis_client.zadd(f"{rts_key_prefix}open", {"a": now - 1, "b": now + 1000, "c": now + 9999})
    redis_client.zadd(f"{rts_key_prefix}overdue", {"d": now - 100})
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "spool" / "0001-1-a.jsonl").write_text("12345\n")

    found = document(cli("status", "--json"))
    assert found["ok"]
    assert found["problems"] == []
    assert found["redis"]["version"]
    assert found["mongo"]["version"]
    assert found["mongo"]["documents"] == {"tasks": 0, "assignments": 0, "refused": 0}
    assert found["redis"]["latency_s"] > 0
    assert abs(found["clock"]["offset_s"]) < 5
    assert found["outbox"]["length"] == 1
    assert (found["breaker"]["state"], found["breaker"]["opened"]) == ("closed", 0)
    assert found["spool"]["waiting"] == 1
    assert found["counters"] == {"redis_failures": 3}
    assert [(w["worker"], w["silent"]) for w in found["workers"]] == [
        ("a@h", True),
        ("b@h", False),
    ]
    assert found["running"] == {"runs": 3, "overdue": 1}
    assert found["open"] == {"tasks": 4, "overdue": 2}
    text = cli("status", "--clear").stdout
    assert "3 now, 1 past the deadline" in text
    assert "silent" in text
    assert "this host and Redis agree" in text
    assert document(cli("status", "--json"))["counters"] == {}


def test_status_tells_webhooks_of_one_host_apart(cli: Run, conf: dict[str, Any]) -> None:
    conf["rts_webhooks"] = [{"url": f"http://127.0.0.1:9/{name}"} for name in "ab"]
    lines = cli("status").stdout.splitlines()
    shown = [line.split("  ")[0] for line in lines if "http://127.0.0.1:9" in line]
    assert shown == ["Webhook 1", "Webhook 2"]


def test_status_reports_problems(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis, rts_key_prefix: str
) -> None:
    redis_client.hset(f"{rts_key_prefix}counters", "outbox_dropped", "7")
    redis_client.xadd(f"{rts_key_prefix}outbox", {"r": "{}"}, id="1000-1")
    result = cli("status", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["ok"]
    assert len(found["problems"]) == 2
    assert "outbox_dropped 7" in result.stderr
    assert "has been in the outbox" in result.stderr
    assert "Is a drain running" in result.stderr
    conf.update(rts_mongo_url=NO_MONGO)
    assert cli("status").stderr.endswith(" s. It waits for MongoDB\n")


def test_status_reports_a_redis_that_evicts(cli: Run, conf: dict[str, Any]) -> None:
    for arguments, evicts in (
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), True),
        (("--maxmemory", "100mb", "--maxmemory-policy", "noeviction"), False),
        (("--maxmemory-policy", "allkeys-lru"), False),
    ):
        with RedisServer(arguments=arguments) as own:
            conf.update(rts_redis_url=own.url)
            result = cli("status")
            assert ("maxmemory-policy allkeys-lru" in result.stderr) is evicts
            assert result.exit_code == int(evicts)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--replicaof", "127.0.0.1", "1"), "it is a read-only replica"),
        (("--maxmemory", "1"), "its memory is full"),
        (("--cluster-enabled", "yes"), "it is a Redis Cluster"),
    ],
    ids=["replica", "full", "cluster"],
)
def test_a_redis_that_takes_no_records_is_reported(
    cli: Run, conf: dict[str, Any], arguments: tuple[str, ...], why: str
) -> None:
    with RedisServer(arguments=arguments) as own, redis.Redis(port=own.port) as client:
        conf.update(rts_redis_url=own.url, broker_url="memory://")
        if "cluster" in arguments[0]:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
        else:
            with pytest.raises(redis.ResponseError):
                client.set("key", "value")
        status, check = cli("status"), cli("check", "--lag")
        assert f"takes no records: {why}" in status.stderr
        assert status.exit_code == 1
        assert why in check.stdout
        assert check.exit_code == 2
        conf.update(rts_key_prefix="{rts}:")  # on a cluster, all keys in one slot
        assert (cli("check", "--lag").exit_code == 0) is ("cluster" in arguments[0])


def test_a_cluster_is_named_also_where_other_nodes_have_the_keys(
    cli: Run, conf: dict[str, Any]
) -> None:
    arguments = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
    with RedisServer(arguments=arguments) as own, redis.Redis(port=own.port) as client:
        conf.update(rts_redis_url=own.url, broker_url="memory://")
        client.execute_command("CLUSTER", "ADDSLOTS", 0)
        wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
        assert (
            "is not reachable (StoreUnavailable: it is a Redis Cluster" in cli("status").stderr
        )


def test_a_redis_that_evicts_results_for_records_is_not_full(
    cli: Run, conf: dict[str, Any]
) -> None:
    arguments = ("--maxmemory", "3mb", "--maxmemory-policy", "volatile-lru")
    with RedisServer(arguments=arguments) as own, redis.Redis(port=own.port) as client:
        conf.update(rts_redis_url=own.url, broker_url="memory://")
        number = 0
        while not client.info("stats")["evicted_keys"]:
            client.set(f"celery-task-meta-{number}", bytes(10_000), ex=3600)
            number += 1
        assert cli("status").exit_code == 0


def test_a_redis_that_does_not_tell_of_itself_is_reachable(
    cli: Run, conf: dict[str, Any]
) -> None:
    with RedisServer() as own, redis.Redis(port=own.port) as client:
        client.acl_setuser(
            "shy", True, passwords=["+x"], keys=["*"], categories=["+@all"], commands=["-info"]
        )
        url = f"redis://shy:x@127.0.0.1:{own.port}/0"
        conf.update(rts_redis_url=url, broker_url="memory://")
        assert cli("status").exit_code == 0


def test_status_reports_messages_that_no_worker_takes(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    prefix = conf["rts_key_prefix"]
    queue = prefix + "emails"
    conf.update(broker_url=conf["rts_redis_url"], task_default_queue=queue)
    redis_client.rpush(queue, "a", "b")

    def beat(*queues: str, age_s: float = 0.0) -> None:
        seen = {"seen_at": time.time() - age_s, "worker": "w@h", "concurrency": 3}
        beat = json.dumps({**seen, "queues": queues})
        redis_client.hset(f"{prefix}workers", "w@h/1", beat)

    def slots() -> str:
        rows = [line.split() for line in cli("watch").stdout.splitlines()]
        return next(row[-1] for row in rows if row[:2] == [queue, "2"])

    beat(queue)
    assert (cli("status").exit_code, slots()) == (0, "3")
    beat("other")
    result = cli("status")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Problem: 2 messages in the queue {queue}, from which no worker with rts takes. "
        f"Start one with -Q {queue}\n"
    )
    assert slots() == "0"
    # Without any worker, of all queues at once.
    beat(queue, age_s=60)
    assert cli("status").exit_code == 0  # as before the first deployment
    redis_client.zadd(f"{prefix}overdue", {"a": 1.0})
    assert cli("status").stderr == (
        "Problem: no worker is alive, with 1 task past the deadline\n"
    )
    check = cli("check", "--lag")
    assert check.exit_code == 2
    told = "RTS CRITICAL - no worker is alive, with 1 task past the deadline | 'outbox lag'="
    assert check.output.startswith(told)
    assert "'overdue tasks'=1" in check.output
    redis_client.delete(queue)


def test_a_broker_that_refuses_a_command_hides_nothing_else(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    queue = f"{conf['rts_key_prefix']}jobs"
    conf.update(broker_url=conf["rts_redis_url"], task_default_queue=queue)
    redis_client.set(queue, "another program's")
    status = cli("status")
    assert status.exit_code == 1
    assert "WRONGTYPE Operation" in status.stderr
    conf.update(rts_mongo_url=NO_MONGO)
    check = cli("check", "--lag")
    assert check.exit_code == 2
    assert "MongoDB at mongodb://127.0.0.1:1/rts is not reachable" in check.output
    assert "WRONGTYPE Operation" in check.output
    redis_client.delete(queue)


def test_status_with_everything_down(cli: Run, conf: dict[str, Any]) -> None:
    conf.update(rts_redis_url=NO_REDIS, rts_mongo_url=NO_MONGO)
    result = cli("status")
    assert result.exit_code == 1
    assert "Redis at redis://127.0.0.1:1/0 is not reachable (ConnectionError" in result.stderr
    assert "MongoDB at mongodb://127.0.0.1:1/rts is not reachable" in result.stderr
    assert "secret" not in result.output
    found = json.loads(cli("status", "--json").stdout)
    assert found["outbox"] is None
    assert found["breaker"]["state"] == "open"
    assert found["counters"] is None
    assert found["workers"] is None


def test_disabled_rts_is_reported(cli: Run, conf: dict[str, Any], rts_redis_url: str) -> None:
    conf["rts_enabled"] = False
    result = cli("status", "--json")
    assert result.exit_code == 1
    assert "Problem: rts_enabled is False" in result.stderr
    assert json.loads(result.stdout)["ok"] is False
    app = Celery("off", broker=rts_redis_url, set_as_current=False)
    rts_of.install(app)
    app.conf.update(conf)
    with pytest.raises(rts_of.CommandError, match="rts is off in the app 'off': rts_enabled"):
        rts_of.predict("a task", app=app)
    rts_of.uninstall(app)


def test_without_an_app_a_note_names_the_settings_in_use(tmp_path: Path) -> None:
    (tmp_path / "celeryconfig.py").write_text(f"rts_redis_url = {NO_REDIS!r}\n")
    result = subprocess.run(
        [sys.executable, "-m", "celery", "rts", "tau"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    note, problem = result.stderr.splitlines()
    assert note.startswith("Note: no app is given")
    assert "Redis at redis://127.0.0.1:1/0 is not usable" in problem


@pytest.mark.parametrize(
    ("imports", "told"), [([], True), (["rts.auto"], False), (["no"], False)]
)
def test_an_app_that_gets_rts_from_its_imports_has_it(
    conf: dict[str, Any], tmp_path: Path, imports: list[str], told: bool
) -> None:
    conf |= {"broker_url": "amqp://", "imports": imports}
    app = f"from celery import Celery\napp = Celery()\napp.conf.update({conf!r})\n"
    (tmp_path / "proj.py").write_text(app)
    result = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "proj", "rts", "status"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ("rts is not installed in this app" in result.stderr) is told, result.stderr


def test_an_unreachable_broker_is_reported_without_its_password(
    cli: Run, conf: dict[str, Any]
) -> None:
    conf["broker_url"] = NO_REDIS
    result = cli("queues")
    assert result.exit_code == 1
    said = result.stderr.removeprefix("Error: ")
    assert said.startswith("the broker redis://127.0.0.1:1/0 is not usable (ConnectionError: ")
    assert cli("eta", "some-task").stderr == result.stderr
    status = cli("status")
    assert status.exit_code == 1
    assert status.stderr == f"Problem: {said}"
    check = cli("check", "--lag")
    assert check.exit_code == 2
    assert check.output.startswith(f"RTS CRITICAL - {said.rstrip()} | ")


@pytest.mark.parametrize("name", ["status", "watch"])
def test_a_broker_that_never_answers_is_given_up_soon(
    cli: Run, conf: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts.scheduling.queues.TIMEOUT_S", 600.0)  # of what nobody waits for
    with socket.create_server(("127.0.0.1", 0)) as mute:
        conf["broker_url"] = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        assert "Redis" in cli(name).stdout


def test_status_of_servers_that_never_answer(cli: Run, conf: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        conf.update(rts_redis_url=f"redis://{address}/0", rts_mongo_url=f"mongodb://{address}")
        result = cli("status")
    assert result.exit_code == 1
    assert result.stdout.count("NOT REACHABLE") == 2
    assert len(result.stderr.splitlines()) == 2


# --- trouble ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("tau",),
        ("tau", "set", "mixed", "1"),
        ("tau", "reset", "--yes"),
        ("report",),
        ("show", "x"),
        ("drain", "--once"),
    ],
)
def test_with_its_servers_down_a_command_says_so_in_one_line(
    cli: Run, conf: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    conf.update(rts_redis_url=NO_REDIS, rts_mongo_url=NO_MONGO)
    result = cli(*arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "rts_redis_url" in line or "rts_mongo_url" in line
    assert "secret" not in result.output


def test_drain_without_mongodb(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis, rts_key_prefix: str
) -> None:
    redis_client.xadd(f"{rts_key_prefix}outbox", {"r": run_at(1).to_json()})
    conf["rts_mongo_url"] = f"{NO_MONGO}?serverSelectionTimeoutMS=200"
    result = cli("drain", "--once")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "rts_mongo_url" in result.stderr
    assert redis_client.xlen(f"{rts_key_prefix}outbox") == 1


def test_a_wrong_setting(cli: Run, conf: dict[str, Any]) -> None:
    conf["rts_learning_rate"] = 7
    result = cli("tau")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: rts_learning_rate = 7 is not valid")


def test_queues_and_the_way_back_to_fifo(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    conf["broker_url"] = conf["rts_redis_url"]
    queue = conf["task_default_queue"] = conf["rts_key_prefix"].strip(":")
    conf["rts_scheduler"] = "edf"
    app = Celery("producer", set_as_current=True)
    app.conf.update(conf)
    rts_of.install(app)
    now = time.time()
    for offset in (500, -100, 300):
        app.send_task("t", (offset,), headers={"sla_deadline": now + offset})
    (row,) = [r for r in document(cli("queues", "--json"))["queues"] if r["name"] == queue]
    assert (row["ordered"], row["demoted"], row["plain"]) == (3, 0, 0)
    assert queue in cli("queues").stdout
    conf["rts_scheduler"] = None
    result = cli("status")
    assert result.exit_code == 1
    assert "3 messages in deadline order" in result.stderr
    assert "3 messages moved" in cli("queues", "--to-fifo").stdout
    assert "in deadline order" not in cli("status").stderr
    # As any worker without the order takes them, at the right end first.
    offsets = [
        json.loads(text)["headers"]["argsrepr"] for text in redis_client.lrange(queue, 0, -1)
    ]
    assert offsets == ["(500,)", "(300,)", "(-100,)"]
    rts_of.uninstall(app)
    app.close()


def test_queues_that_only_workers_know(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    """As those of task_routes alone, which no task_queues names."""
    conf["broker_url"] = conf["rts_redis_url"]
    queue = conf["rts_key_prefix"] + "emails"
    beat = {"seen_at": time.time(), "worker": "w@h", "queues": [queue]}
    redis_client.hset(f"{conf['rts_key_prefix']}workers", "w@h/1", json.dumps(beat))
    redis_client.rpush(queue, "a", "b")
    for name in ("queues", "watch"):
        found = {q["name"]: q["plain"] for q in document(cli(name, "--json"))["queues"]}
        assert found[queue] == 2
    conf["rts_redis_url"] = NO_REDIS
    result = cli("queues")
    assert result.exit_code == 0
    assert queue not in result.stdout
    assert "only the workers know are missing" in result.stderr
    redis_client.delete(queue)


def test_queues_of_other_brokers(cli: Run, conf: dict[str, Any]) -> None:
    conf["broker_url"] = "memory://"
    result = cli("queues")
    assert result.exit_code == 1
    assert "the broker is not Redis" in result.stderr
    conf["broker_url"] = NO_REDIS
    result = cli("queues")
    assert result.exit_code == 1
    assert "not usable" in result.stderr
    assert "secret" not in result.stderr
