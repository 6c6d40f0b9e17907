"""The least rights on servers, as docs/operations.md has them, are enough."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pymongo
import pytest
import redis

import rts
from rts import health
from rts.clock import FleetClock
from rts.errors import StoreUnavailable
from rts.ledger.mongo import MongoLedger
from rts.link.link import Link
from rts.ports import TauEntry
from rts.predictions.queue_reader import QueueReader
from rts.records import OutboxEntry
from rts.settings import Settings
from rts.tau.cache import TauCache
from rts.testing import MongoServer, RedisServer, wait_until
from rts.views.report import report
from tests.conftest import ROOT, MakeApp, MakeStage
from tests.predictions import PATIENCE_S
from tests.records import success

OK = "tests.apps.basic.ok"


def documented() -> list[str]:
    """Return the rules of the user in the documentation, without its password and keys."""
    text = (ROOT / "docs/operations.md").read_text()
    found = re.search(r"user rts on >PASSWORD ~rts:\* (.*?)\n\n", text, re.DOTALL)
    assert found
    return found[1].split()


def test_every_command_of_ours_is_documented() -> None:
    of_the_broker = (
        *("claim", "put", "ring", "move", "requeue"),
        *("hopeless", "find_task", "read_messages", "survey"),
    )
    used = {"EVAL", "SELECT"}
    for path in (ROOT / "rts").rglob("*.lua"):
        if path.stem not in of_the_broker:
            used |= set(re.findall(r"call[,(] ?'([A-Z]+)'", path.read_text()))
    for path in (ROOT / "rts").rglob("*.py"):
        used |= set(re.findall(r'pack\(\s*"([A-Z]+)"', path.read_text()))
    allowed = {rule[1:].upper() for rule in documented() if rule.startswith("+")}
    assert used - allowed == set()


def test_a_user_of_the_least_rights_is_enough(
    make_stage: MakeStage, apps: MakeApp, mongo: Any
) -> None:
    with RedisServer() as own, redis.Redis(port=own.port, decode_responses=True) as admin:
        url = f"redis://rts:s3cret@127.0.0.1:{own.port}/3"
        stage = make_stage(rts_redis_url=url)
        keys = f"~{stage.prefix}*"
        admin.execute_command("ACL", "SETUSER", "rts", "on", ">s3cret", keys, *documented())
        app = apps(stage)
        worker = stage.worker()
        results = [app.send_task(OK, (0,)) for _ in range(5)]
        assert [result.get(timeout=60) for result in results] == [0] * 5
        done = {"state": "SUCCESS", "arrival_source": "published"}
        wait_until(lambda: mongo.tasks.count_documents(done) == 5)
        asked = stage.celery("rts", "status", "--json")
        assert asked.returncode == 0, asked.stderr
        status = json.loads(asked.stdout)
        assert status["redis"]["version"]
        assert status["outbox"]["length"] == 0
        assert admin.execute_command("ACL", "LOG") == []
        assert "s3cret" not in worker.log + asked.stdout
        assert "not usable" not in worker.log


@pytest.mark.parametrize("scheduler", [None, "edf"])
def test_the_brokers_documented_user_is_enough_for_workers_and_predictions(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, rts_redis_url: str, scheduler: str | None
) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    found = re.search(r"`(\+@all [^`]*)` and `(~QUEUE[^`]*)`", text)
    assert found
    with RedisServer() as own, redis.Redis(port=own.port, decode_responses=True) as admin:
        broker = f"redis://celery:s3cret@127.0.0.1:{own.port}/0"
        stage = make_stage(broker, rts_redis_url=rts_redis_url, rts_scheduler=scheduler)
        stage.backend = None
        queue = stage.conf["task_default_queue"]
        rules = [*found[1].split(), *found[2].replace("QUEUE", queue).split()]
        admin.execute_command("ACL", "SETUSER", "celery", "on", ">s3cret", *rules)
        app = apps(stage, rts_timeout=PATIENCE_S)
        waits = app.send_task(OK).id
        for ask, what in ((rts.predict, waits), (rts.predict_new, OK)):
            with pytest.raises(rts.CommandError, match="no worker with rts takes"):
                ask(what, app=app)
        assert rts.predict("nobody", app=app) is None
        reader = QueueReader(app, Settings.from_conf(app.conf))
        assert reader.waiting([queue]) == [1]
        with reader.open(queue) as opened:
            assert sum(count for count, _ in opened.backlog([queue])) == 1
        reader.close()
        stage.worker()
        wait_until(lambda: mongo.tasks.find_one({"_id": waits, "state": "SUCCESS"}))
        refused = {entry["object"] for entry in admin.execute_command("ACL", "LOG")}
        # Redis 6 cannot allow the harmless ones of CLIENT alone; redis-py does without.
        if admin.info("server")["redis_version"].startswith("6."):
            refused.discard("client")
        assert refused == set()


def test_a_publisher_that_may_not_read_the_taus_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at = 0.0
    with RedisServer() as own, redis.Redis(port=own.port) as admin:
        admin.execute_command(
            "ACL", "SETUSER", "rts", "on", "nopass", "~*", "+@all", "-hgetall"
        )
        settings = Settings(redis_url=f"redis://rts:x@127.0.0.1:{own.port}/0")
        link = Link(settings)
        cache = TauCache(link, settings, FleetClock(), now=lambda: at)
        for _ in range(3):
            assert cache.tau("mixed", "proj.task") == 10.0
            at += 10.0
        assert caplog.text.count("refuses to read the taus") == 1
        assert "no permissions to run the 'hgetall' command" in caplog.text
        link.close()
    assert health.take_counts() == {}


def test_on_mongodb_read_and_write_on_one_database_is_enough() -> None:
    with MongoServer(database="ledger") as own:
        with pymongo.MongoClient[dict[str, Any]](own.url) as admin:
            for name, role in (("writer", "readWrite"), ("reader", "read")):
                roles = [{"role": role, "db": "ledger"}]
                admin.ledger.command("createUser", name, pwd="s3cret", roles=roles)
        own.halt()
        own._arguments = ["--auth"]
        own.start()

        def of(user: str) -> Settings:
            return Settings(mongo_url=own.url.replace("://", f"://{user}:s3cret@"))

        ledger, other = MongoLedger(of("writer")), MongoLedger(of("reader"))
        entries = [OutboxEntry("1-0", success("a")), OutboxEntry("2-0", success("b"))]
        for _ in range(2):
            ledger.write(entries)
        ledger.refuse("what is none")
        ledger.save_taus({"mixed": TauEntry(1.0, 1, 1.0)})
        # collMod takes another right.
        shorter = MongoLedger(replace(of("writer"), ledger_ttl=100.0))
        shorter.prepare()
        shorter.close()
        indexes = ledger.database["tasks"].index_information()
        assert indexes["arrival_1"]["expireAfterSeconds"] == 100
        with pytest.raises(StoreUnavailable, match="not authorized on ledger") as caught:
            other.write(entries)
        assert "s3cret" not in str(caught.value)
        now = datetime.now(timezone.utc)
        window = datetime.fromtimestamp(0, timezone.utc), now
        for each in (ledger, other):
            (row,) = report(each.database, *window, "name").rows
            assert row.tasks == 2
            each.close()
        stranger = MongoLedger(of("nobody"))
        with pytest.raises(StoreUnavailable, match="Authentication failed"):
            stranger.write(entries)
        stranger.close()
