"""``rts status`` on real servers, in all kinds of trouble; and what else says the same."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import rts as rts_of
from rts.link.link import Link
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from rts.views.readings import read
from tests.commands import NO_MONGO, NO_REDIS, Run, document
from tests.conftest import ROOT, python
from tests.records import ended


def test_status_when_all_is_well(
    cli: Run, redis_client: redis.Redis, rts_key_prefix: str, tmp_path: Path
) -> None:
    now = redis_client.time()[0]
    for instance, age in (("b@h/1", 1), ("a@h/2", 60)):
        beat = {"seen_at": now - age, "worker": instance[:3], "concurrency": 4, "host": "h"}
        redis_client.hset(f"{rts_key_prefix}workers", instance, json.dumps(beat))
    redis_client.hset(f"{rts_key_prefix}workers", "other", "not json")
    for number, deadline in enumerate((now - 10, now + 1000)):
        note = ended(number, 0, completed_at=None, state="STARTED", deadline=deadline)
        redis_client.hset(f"{rts_key_prefix}running", f"r{number}", note.to_json())
    redis_client.hset(f"{rts_key_prefix}running", "odd", "no note")
    redis_client.hset(f"{rts_key_prefix}counters", mapping={"redis_failures": 3, "zero": 0})
    redis_client.xadd(f"{rts_key_prefix}outbox", {"r": "{}"})
    redis_client.zadd(f"{rts_key_prefix}open", {"a": now - 1, "b": now + 1000, "c": now + 9999})
    redis_client.zadd(f"{rts_key_prefix}overdue", {"d": now - 100})
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "spool" / f"{1:020d}-1-{10:016x}.jsonl").write_text("12345\n")

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
    assert "Breaker     closed, opened 0 times so far\n" in text
    assert "Outbox      1 waiting, the oldest for " in text
    assert "Spool       1 waiting in " in text
    assert "Open tasks  4 not ended, 2 past the deadline\n" in text
    assert "Ledger      0 tasks, 0 assignments, 0 refused\n" in text
    latencies = re.findall(r"^(?:Redis|MongoDB) .*, ([\d.]+) ms$", text, re.M)
    assert len(latencies) == 2
    assert all(float(ms) > 0 for ms in latencies)
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
        (("--min-replicas-to-write", "1"), "ResponseError: NOREPLICAS Not enough good"),
    ],
    ids=["replica", "full", "cluster", "alone"],
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


def test_a_redis_that_cannot_write_to_its_disk_is_reported(
    cli: Run, conf: dict[str, Any]
) -> None:
    with RedisServer() as own, redis.Redis(port=own.port) as client:
        conf.update(rts_redis_url=own.url, broker_url="memory://")
        client.config_set("save", "3600 1000000")
        (own.data_dir / "dump.rdb" / "in the way").mkdir(parents=True)
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        status, check = cli("status"), cli("check", "--lag")
        assert "takes no records: ResponseError: MISCONF " in status.stderr
        assert (status.exit_code, check.exit_code) == (1, 2)


def test_what_is_wrong_is_shown_though_the_counters_cannot_be_reset(
    cli: Run, conf: dict[str, Any]
) -> None:
    with RedisServer() as own, redis.Redis(port=own.port) as client:
        conf.update(rts_redis_url=own.url, broker_url="memory://")
        client.hset(f"{conf['rts_key_prefix']}counters", "records_lost", 3)
        client.config_set("maxmemory", 1)
        result = cli("status", "--clear")
        assert "takes no records: its memory is full" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_workers_are_not_dead_because_a_full_redis_takes_no_heartbeats(
    cli: Run, conf: dict[str, Any]
) -> None:
    with RedisServer() as own, redis.Redis(port=own.port) as client:
        conf.update(rts_redis_url=own.url, broker_url="memory://")
        client.zadd(f"{conf['rts_key_prefix']}overdue", {"a": 1.0})
        client.config_set("maxmemory", 1)
        for asked in (cli("status"), cli("check", "--lag")):
            assert "its memory is full" in asked.output
            assert "no worker is alive" not in asked.output


def test_a_cluster_is_named_also_where_other_nodes_have_the_keys(
    cli: Run, conf: dict[str, Any]
) -> None:
    arguments = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
    with RedisServer(arguments=arguments) as own, redis.Redis(port=own.port) as client:
        conf.update(rts_redis_url=own.url, broker_url="memory://")
        client.execute_command("CLUSTER", "ADDSLOTS", 0)
        wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
        for command in ("status", "tau"):
            assert (
                "Error of a Redis Cluster, which rts does not support: " in cli(command).stderr
            )


def test_a_redis_that_runs_no_scripts_is_reported(cli: Run, conf: dict[str, Any]) -> None:
    with RedisServer() as own, redis.Redis(port=own.port) as client:
        client.execute_command("ACL", "SETUSER", "rts", "on", "nopass", "~*", "+@all", "-eval")
        conf.update(rts_redis_url=own.url.replace("://", "://rts:x@"), broker_url="memory://")
        why = "takes no records: NoPermissionError: "
        status, check = cli("status"), cli("check", "--lag")
        assert why in status.stderr
        assert (status.exit_code, check.exit_code) == (1, 2)
        assert why in check.stdout
        conf.update(rts_redis_url=own.url)
        assert cli("check", "--lag").exit_code == 0
        assert client.keys() == []
        client.set(f"{conf['rts_key_prefix']}tau", "of another app")
        check = cli("check", "--lag")
        assert check.exit_code == 2
        assert "tau. Let the user in rts_redis_url run scripts on rts's keys, and nothing" in (
            check.stdout
        )


def test_a_user_who_may_only_read_sees_whether_all_is_well(
    cli: Run, conf: dict[str, Any]
) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    found = re.search(r"only look.*?user \w+ on >PASSWORD (%R~)rts:\* (.*?)`", text, re.DOTALL)
    assert found
    keys = f"{found[1]}{conf['rts_key_prefix']}*"
    with RedisServer() as own, redis.Redis(port=own.port) as client:
        if int(client.info()["redis_version"].partition(".")[0]) < 7:
            keys = keys.removeprefix("%R")
        client.execute_command(
            "ACL", "SETUSER", "reader", "on", "nopass", keys, *found[2].split()
        )
        url = own.url.replace("://", "://reader:x@")
        conf.update(rts_redis_url=url, broker_url="memory://")
        status, check = cli("status"), cli("check", "--lag")
        assert (status.exit_code, check.exit_code) == (0, 0), status.stderr + check.stdout
        settings = Settings.from_conf(conf)
        assert read(Link(settings), settings).refusal is None


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

    def beat(*queues: str, age_s: float = 0.0, slots: int = 3) -> None:
        seen = {"seen_at": time.time() - age_s, "worker": "w@h", "concurrency": slots}
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
    beat(queue, slots=0)
    assert cli("status").stderr == (
        f"Problem: 2 messages in the queue {queue}, whose workers have no slots. Give one "
        "some, as with celery control pool_grow\n"
    )
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
    beat(queue, slots=0)
    check = cli("check", "--lag")
    assert check.output.startswith("RTS CRITICAL - no worker has slots, with 1 task past the")


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


def test_status_with_everything_down(cli: Run, conf: dict[str, Any]) -> None:
    conf.update(rts_redis_url=NO_REDIS, rts_mongo_url=NO_MONGO)
    result = cli("status")
    assert result.exit_code == 1
    assert "Redis at redis://127.0.0.1:1/0 is not reachable (ConnectionError" in result.stderr
    assert "MongoDB at mongodb://127.0.0.1:1/rts is not reachable" in result.stderr
    assert "secret" not in result.output
    first, second, third, fourth = result.stdout.splitlines()
    assert first.split(maxsplit=1) == ["Redis", "NOT REACHABLE at redis://127.0.0.1:1/0"]
    assert second.startswith("MongoDB  NOT REACHABLE at ")
    assert third.split() == ["Breaker", "open"]
    assert fourth.startswith("Spool    unknown number waiting in ")
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
    result = python("-m", "celery", "rts", "tau", cwd=tmp_path)
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
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = python("-m", "celery", "-A", "proj", "rts", "status", env=path, cwd=tmp_path)
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
