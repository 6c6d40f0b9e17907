"""The command line on real servers and a real worker."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import closing
from datetime import datetime, timezone
from typing import Any

import pytest
import redis
from celery import Celery
from pymongo.database import Database

import rts as rts_of
from rts.link.link import Link
from rts.settings import Settings
from rts.tau.redis import RedisTauStore
from rts.testing import wait_until
from tests.commands import NO_MONGO, NO_REDIS, Run, document, write
from tests.conftest import CELERY, ROOT, MakeStage
from tests.records import ended

# --- through celery itself ----------------------------------------------------------


def test_every_command_of_a_real_app(
    make_stage: MakeStage, mongo: Database[dict[str, Any]]
) -> None:
    stage = make_stage()
    app = Celery("sender", broker=stage.broker, set_as_current=False)
    app.conf.task_default_queue = stage.conf["task_default_queue"]
    worker = stage.worker(concurrency=1)
    ids = [app.send_task("tests.apps.basic.ok", [0.01]).id for _ in range(3)]
    ids.append(app.send_task("tests.apps.basic.fail").id)
    wait_until(lambda: mongo.tasks.count_documents({}) == 4, message="four verdicts")

    def knows_the_load() -> subprocess.CompletedProcess[str] | None:
        asked = stage.celery("rts", "status", "--json")
        loads = [worker["load"].get("cpu") for worker in json.loads(asked.stdout)["workers"]]
        return None if None in loads else asked  # on a busy machine a sample may be old

    for installed in (True, False):  # in the commands' app
        stage.installed = installed
        asked = wait_until(knows_the_load)
        status = json.loads(asked.stdout)
        assert status["ok"] is installed
        assert asked.returncode == (0 if installed else 1)
        assert ("Add rts.install(app) below" in asked.stderr) is not installed
        assert [w["concurrency"] for w in status["workers"]] == [1]
    worker.stop()

    listed = stage.celery("rts", "tau")
    assert listed.returncode == 0, listed.stderr
    assert "  tests.apps.basic.ok" in listed.stdout
    assert "gpu-training" in listed.stdout
    reported = stage.celery("rts", "report", "--since", "1h", "--by", "name", "--json")
    report = json.loads(reported.stdout)
    assert {r["key"]: r["tasks"] for r in report["rows"]} == {
        "tests.apps.basic.ok": 3,
        "tests.apps.basic.fail": 1,
    }
    assert report["total"]["tasks"] == 4
    assert report["total"]["goodput_ratio"] == 0.75
    shown = json.loads(stage.celery("rts", "show", ids[-1], "--json").stdout)
    assert shown["task"]["state"] == "FAILURE"
    assert [run["retries"] for run in shown["assignments"]] == [0]
    drained = stage.celery("rts", "drain", "--once", "--json")
    assert json.loads(drained.stdout) == {"moved": 0}, drained.stderr
    assert stage.celery("rts", "tau", "set", "mixed", "7").stdout.startswith("mixed: tau ")
    assert stage.celery("rts", "nothing").returncode == 2


def test_drain_ends_at_a_signal(
    make_stage: MakeStage, redis_client: redis.Redis, mongo: Database[dict[str, Any]]
) -> None:
    stage = make_stage()
    outbox = f"{stage.prefix}outbox"
    for number, ending in enumerate((signal.SIGINT, signal.SIGTERM)):
        redis_client.xadd(outbox, {"r": ended(number, 1).to_json()})
        with subprocess.Popen(
            [*CELERY, "rts", "drain"],
            env={**os.environ, **stage.environment},
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


@pytest.mark.parametrize("command", ["tau", "watch"])
def test_a_command_whose_standard_streams_are_closed_ends_as_always(
    make_stage: MakeStage, command: str
) -> None:
    stage = make_stage()
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", *CELERY, "rts", command],
        env={**os.environ, **stage.environment},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


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


def test_tau_shows_what_was_learned(cli: Run, conf: dict[str, Any]) -> None:
    settings = Settings.from_conf(conf, environ={})
    runtimes = [n / 100 for n in range(1, 101)]
    random.shuffle(runtimes)
    with closing(Link(settings)) as link:
        store = RedisTauStore(link, settings)
        for runtime_s in runtimes:
            store.update("mixed", "proj.a", runtime_s)
        entries = store.entries()
    rows = document(cli("tau", "--json"))["taus"]
    assert [row["field"] for row in rows[-2:]] == ["mixed", "mixed/proj.a"]
    for row, name in zip(rows[-2:], (None, "proj.a"), strict=True):
        entry = entries[row["field"]]
        assert (row["task_type"], row["name"], row["source"]) == ("mixed", name, "learned")
        assert (row["tau_s"], row["runs"]) == (pytest.approx(entry.tau), 100)
        assert row["deviation_s"] == pytest.approx(entry.deviation)
        for share in (50, 95, 99):
            assert row[f"p{share}_s"] == pytest.approx(share / 100, rel=0.02)
    assert cli("tau", "set", "mixed", "3").exit_code == 0
    row = document(cli("tau", "--json"))["taus"][-2]
    assert (row["tau_s"], row["source"], row["runs"]) == (3.0, "learned", 100)
    last = cli("tau").stdout.splitlines()[-1]
    assert last.startswith("  proj.a ")
    assert last.endswith("  learned")


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


def test_json_may_stand_before_set_and_reset(cli: Run) -> None:
    assert document(cli("tau", "--json", "set", "mixed", "2.5"))["tau_s"] == 2.5
    assert document(cli("tau", "--json", "reset", "--yes")) == {"reset": ["mixed"]}


def test_tau_set_keeps_within_the_limit(cli: Run, conf: dict[str, Any]) -> None:
    conf["rts_max_types"] = 6
    for number in range(6):
        assert cli("tau", "set", f"mixed/{number}", "1").exit_code == 0
    assert "rts_max_types is 6" in cli("tau", "set", "mixed", "1").stderr
    assert cli("tau", "set", "mixed/1", "2").exit_code == 0


def test_hostile_names_do_not_control_the_terminal(
    cli: Run, redis_client: redis.Redis, rts_key_prefix: str
) -> None:
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
        ended(1, 10),
        ended(2, 10, **late),
        ended(3, 10, **late, cause="killed", state="FAILURE", runtime_s=None),
        ended(4, 7200),
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
    write(conf, ended(5, 10, worker="", cause="revoked", state="REVOKED", ran=False))
    text = cli("report", "--since", "1h", "--by", "worker").stdout
    assert any(line.split()[:3] == ["unknown", "1", "0.0"] for line in text.splitlines())
    until = datetime.now(timezone.utc).isoformat()
    window = cli("report", "--since", "3h", "--until", "1h", "--json")
    assert document(window)["total"]["tasks"] == 1
    assert document(cli("report", "--until", until, "--json"))["total"]["tasks"] == 5


def test_a_report_of_no_runs_says_so(cli: Run) -> None:
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
    first = ended(1, 20, state="RETRY", load_at_start=None)
    second = ended(2, 10, task_id="task-1", retries=1)
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
    assert "\ntau             5.00 s\n" in text
    assert "\nruntime_s       3.00 s\n" in text
    assert "\nlateness_s      -2.00 s\n" in text
    assert "\ncause           -\n" in text
    *_, retried, done = text.splitlines()
    begun = [run["started_at"] for run in found["assignments"]]
    assert retried.split()[:4] == ["0", begun[0], "RETRY", "3.00"]
    assert done.split()[:4] == ["1", begun[1], "SUCCESS", "3.00"]


def test_show_of_an_overdue_task(cli: Run, conf: dict[str, Any]) -> None:
    never = {"started_at": None, "completed_at": None, "runtime_s": None, "ran": False}
    write(conf, ended(1, 20, state="PENDING", cause="overdue", **never))
    found = document(cli("show", "task-1", "--json"))
    assert (found["task"]["state"], found["task"]["cause"]) == ("PENDING", "overdue")
    assert found["task"]["sla_success"] is False
    assert found["task"]["verdict_at"] == found["task"]["deadline"]
    assert found["assignments"] == []
    text = cli("show", "task-1").stdout
    assert "cause           overdue" in text
    assert "sla_success     no" in text
    assert "\nlateness_s      -\n" in text
    assert "Runs: 0" in text


def test_show_of_an_expired_task(cli: Run, conf: dict[str, Any]) -> None:
    write(conf, ended(1, 1, ran=False, state="REVOKED", cause="expired", started_at=None))
    assert "Runs: 0" in cli("show", "task-1").stdout
    missing = cli("show", "\x1bnope")
    assert missing.exit_code == 1
    assert "the ledger has no task \\x1bnope" in missing.stderr


def test_show_of_a_run_whose_verdict_is_not_there_yet(
    cli: Run, conf: dict[str, Any], mongo: Any
) -> None:
    write(conf, ended(1, 1))
    mongo.tasks.delete_one({"_id": "task-1"})  # it is written after its runs
    text = cli("show", "task-1").stdout
    assert text.startswith("No verdict yet.\n\nRuns: 1\n")
    found = document(cli("show", "task-1", "--json"))
    assert (found["task"], len(found["assignments"])) == (None, 1)


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
    assert "Connection refused" in line
    assert "secret" not in result.output


def test_drain_says_what_to_check_whatever_the_server_is_called(
    cli: Run, conf: dict[str, Any]
) -> None:
    conf.update(rts_redis_url="redis://rts_redis.invalid:1/0")
    result = cli("drain", "--once")
    assert result.exit_code == 1
    assert "Check the server, rts_redis_url and rts_mongo_url" in result.stderr


def test_drain_without_mongodb_fails_and_loses_nothing(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis, rts_key_prefix: str
) -> None:
    redis_client.xadd(f"{rts_key_prefix}outbox", {"r": ended(0, 1).to_json()})
    conf["rts_mongo_url"] = f"{NO_MONGO}?serverSelectionTimeoutMS=200"
    result = cli("drain", "--once")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "rts_mongo_url" in result.stderr
    assert redis_client.xlen(f"{rts_key_prefix}outbox") == 1


def test_a_command_refuses_an_invalid_setting(cli: Run, conf: dict[str, Any]) -> None:
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
