"""However a task ends, there is exactly one verdict, and one assignment per run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest
import redis
from celery import chain, chord, group

import rts
from rts.testing import RedisServer, WorkerProcess, wait_until
from tests.conftest import ROOT

FLOOR = 1.0
#: So small that all deadlines stay some seconds away, even on a busy machine.
LEARNING_RATE = 0.01


class Scene:
    """A worker of the test app with its own Redis and its own MongoDB database."""

    def __init__(self, app: Any, worker: WorkerProcess, ledger: Any, redis_client: Any) -> None:
        self.basic = app
        self.worker = worker
        self.ledger = ledger
        self.redis = redis_client

    def verdict(self, task_id: str, runs: int = 1, **wanted: Any) -> dict[str, Any]:
        """Wait for the task's document and its assignments; check what is true of all."""

        def there() -> Any:
            found = self.ledger.tasks.find_one({"_id": task_id, "attempts": runs, **wanted})
            count = self.ledger.assignments.count_documents({"task_id": task_id})
            return found if count == runs else None

        task = wait_until(there, message=f"{wanted} with {runs} runs")
        assert self.ledger.tasks.count_documents({"_id": task_id}) == 1
        if task["completed_at"] is not None:
            lateness = (task["completed_at"] - task["deadline"]).total_seconds()
            assert task["lateness_s"] == pytest.approx(lateness, abs=0.002)
        slack = max(task["k"] * task["tau"], task["tau"] + FLOOR)
        span = (task["deadline"] - task["arrival"]).total_seconds()
        assert span == pytest.approx(slack, abs=0.002)
        return dict(task)

    def runs(self, task_id: str) -> list[dict[str, Any]]:
        """Return the task's assignments, first run first."""
        return list(self.ledger.assignments.find({"task_id": task_id}).sort("started_at"))


@pytest.fixture(scope="module")
def scene(
    server: RedisServer, rts_mongo_session_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """One worker for all tests of this module."""
    mongo_url = urlsplit(rts_mongo_session_url)._replace(path="/rts_test_lifecycle").geturl()
    folder = tmp_path_factory.mktemp("scene")
    conf = {
        "rts_mongo_url": mongo_url,
        "rts_spool_dir": str(folder / "spool"),
        "rts_learning_rate": LEARNING_RATE,
    }
    env = {"TEST_BROKER": server.url, "TEST_BACKEND": server.url, "TEST_CONF": json.dumps(conf)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        from tests.apps import basic  # reads its configuration from the environment

    client = redis.Redis.from_url(server.url, decode_responses=True)
    mongo: Any = pymongo.MongoClient(mongo_url, tz_aware=True)
    mongo.drop_database("rts_test_lifecycle")
    with WorkerProcess("tests.apps.basic", cwd=ROOT, env=env, hostname="w@lifecycle") as worker:
        yield Scene(basic, worker, mongo.get_default_database(), client)
    rts.uninstall(basic.app)
    basic.app.close()
    mongo.drop_database("rts_test_lifecycle")
    mongo.close()
    client.close()


def learned(scene: Scene, name: str) -> int:
    """Return how many runs of a task were learned."""
    return int(scene.redis.hget("rts:count", f"mixed/tests.apps.basic.{name}") or 0)


def test_success_with_all_that_was_measured(scene: Scene) -> None:
    result = scene.basic.ok.apply_async((0.1,), headers={"task_type": "cpu-light"})
    task = scene.verdict(result.id, state="SUCCESS", sla_success=True, cause=None)
    assert (task["task_type"], task["type_source"]) == ("cpu-light", "explicit")
    assert task["worker"] == "w@lifecycle"
    (run,) = scene.runs(result.id)
    assert run["runtime_s"] >= 0.1
    assert 0 <= run["cpu_s"] < run["runtime_s"]
    assert run["max_rss_bytes"] > 10_000_000
    assert 0 < run["load_at_start"]["memory"] < 2
    assert run["load_at_start"]["load"] >= 0
    assert run["load_at_start"]["age_s"] <= 0.5
    assert run["tau_after"] == pytest.approx(
        LEARNING_RATE * run["runtime_s"] + (1 - LEARNING_RATE) * run["tau_before"]
    )
    assert run["pid"] in [child.pid for child in scene.worker.children()]


def test_the_current_task_knows_its_deadline(scene: Scene) -> None:
    result = scene.basic.plan.apply_async(headers={"task_type": "cpu-heavy"})
    current = result.get(timeout=30)
    assert current["task_type"] == "cpu-heavy"
    assert current["deadline"] == current["arrival"] + max(
        2 * current["tau"], current["tau"] + 1
    )
    assert 0 < current["remaining"] <= 2 * current["tau"]
    assert current["load"]["load"] >= 0


def test_a_task_may_serialize_its_request(scene: Scene) -> None:
    request = json.loads(scene.basic.written_down.delay().get(timeout=30))
    assert request["rts_deadline"]
    assert "rts_run" not in request


@pytest.mark.parametrize(
    ("name", "state", "success", "cause"),
    [
        ("fail", "FAILURE", True, None),
        ("soft_limit", "FAILURE", True, None),
        ("hard_limit", "FAILURE", False, "time_limit"),
        ("kill_self", "FAILURE", False, "killed"),
        ("ignored", "IGNORED", True, None),
        ("rejected", "REJECTED", False, "rejected"),
    ],
)
def test_one_run_one_verdict(
    scene: Scene, name: str, state: str, success: bool, cause: str | None
) -> None:
    result = getattr(scene.basic, name).delay()
    scene.verdict(result.id, state=state, sla_success=success, cause=cause)
    (run,) = scene.runs(result.id)
    assert (run["state"], run["sla_success"], run["cause"]) == (state, success, cause)
    assert run["load_at_start"]["load"] >= 0  # also of a run that could not report itself
    assert run["started_at"] is not None
    assert learned(scene, name) == 0


def test_a_task_whose_link_cannot_be_published_has_failed(scene: Scene) -> None:
    result = scene.basic.ok.apply_async(link=scene.basic.fail.s())  # takes no argument
    scene.verdict(result.id, state="FAILURE", sla_success=True, cause=None)
    (run,) = scene.runs(result.id)
    assert (run["state"], run["tau_after"]) == ("FAILURE", None)
    assert result.state == "FAILURE"


@pytest.mark.parametrize("headers", [None, {}, {"trace": "x"}])
def test_a_retry_keeps_arrival_and_deadline(scene: Scene, headers: Any) -> None:
    result = scene.basic.retry_once.delay(headers=headers)
    scene.verdict(result.id, runs=2, state="SUCCESS", sla_success=True)
    first, second = scene.runs(result.id)
    assert (first["state"], first["sla_success"]) == ("RETRY", None)
    assert (second["state"], second["sla_success"]) == ("SUCCESS", True)
    for field in ("arrival", "deadline", "tau", "k", "task_type", "type_source"):
        assert first[field] == second[field], field
    assert first["again_at"] > first["completed_at"]
    assert "again_at" not in second


def test_a_run_of_a_task_with_a_countdown_tells_when_that_began(scene: Scene) -> None:
    begun = datetime.now(timezone.utc)
    result = scene.basic.ok.apply_async(countdown=1)
    scene.verdict(result.id, state="SUCCESS", sla_success=True)
    (run,) = scene.runs(result.id)
    assert abs(run["published_at"] - begun) < timedelta(seconds=0.9)
    assert run["arrival"] - run["published_at"] > timedelta(seconds=0.9)


def test_a_task_that_retries_by_itself_keeps_its_deadline_and_is_learned_once(
    scene: Scene,
) -> None:
    before = learned(scene, "autoretry")
    result = scene.basic.autoretry.delay()
    scene.verdict(result.id, runs=3, state="SUCCESS")
    runs = scene.runs(result.id)
    assert [run["state"] for run in runs] == ["RETRY", "RETRY", "SUCCESS"]
    assert len({run["deadline"] for run in runs}) == 1
    assert learned(scene, "autoretry") == before + 1


def test_a_killed_process_whose_message_is_redelivered(scene: Scene, tmp_path: Path) -> None:
    result = scene.basic.kill_once.delay(str(tmp_path / "marker"))
    assert result.get(timeout=60) == "second life"
    scene.verdict(result.id, runs=2, state="SUCCESS", sla_success=True)
    first, second = scene.runs(result.id)
    assert (first["state"], first["cause"], first["sla_success"]) == ("LOST", "killed", False)
    assert (second["state"], second["sla_success"]) == ("SUCCESS", True)
    assert first["deadline"] == second["deadline"]


def test_a_process_that_is_killed_before_it_begins_the_task(scene: Scene) -> None:
    result = scene.basic.never_begins.delay()
    scene.verdict(result.id, runs=0, state="LOST", cause="killed", sla_success=False)


def test_a_rejected_message_that_is_queued_again_has_no_verdict_yet(
    scene: Scene, tmp_path: Path
) -> None:
    result = scene.basic.requeued.delay(str(tmp_path / "marker"))
    scene.verdict(result.id, runs=2, state="SUCCESS", sla_success=True)
    first, second = scene.runs(result.id)
    assert (first["state"], first["cause"], first["sla_success"]) == ("REQUEUED", None, None)
    assert (second["state"], second["sla_success"]) == ("SUCCESS", True)
    assert first["deadline"] == second["deadline"]
    wait_until(lambda: scene.redis.xlen("rts:outbox") == 0)
    counted = scene.redis.hgetall("rts:metrics")
    verdicts = {k.split("\n")[-1]: n for k, n in counted.items() if ".requeued\ncelery" in k}
    assert verdicts == {"met": "1"}


def test_an_id_may_be_a_uuid(scene: Scene) -> None:
    given = uuid.uuid4()  # such as a model's key in Django
    # Before Celery 5.7 its result backend on Redis takes none.
    scene.basic.heavy.apply_async(task_id=given, ignore_result=True)
    task = scene.verdict(str(given), state="SUCCESS")
    assert task["root_id"] == str(given)
    wait_until(lambda: scene.redis.zscore("rts:open", str(given)) is None)


def test_expired_and_revoked_before_the_run(scene: Scene) -> None:
    expired = scene.basic.ok.apply_async((0,), expires=-1)
    scene.verdict(expired.id, runs=0, state="REVOKED", cause="expired", sla_success=False)
    revoked = scene.basic.ok.apply_async((0,), countdown=3)
    revoked.revoke()
    scene.verdict(revoked.id, runs=0, state="REVOKED", cause="revoked", sla_success=False)


def test_revoked_during_the_run(scene: Scene) -> None:
    result = scene.basic.ok.delay(60)
    inspect = scene.basic.app.control.inspect(timeout=30, limit=1)
    wait_until(lambda: result.id in str(inspect.active()))
    result.revoke(terminate=True)
    scene.verdict(result.id, state="REVOKED", cause="terminated", sla_success=False)
    (run,) = scene.runs(result.id)
    assert (run["state"], run["cause"]) == ("REVOKED", "terminated")


def test_eager_calls_within_a_task_are_part_of_its_run(scene: Scene) -> None:
    result = scene.basic.eager.delay()
    eager_id, current = result.get(timeout=30)
    assert current is None
    scene.verdict(result.id, state="SUCCESS")
    assert scene.ledger.tasks.find_one({"_id": eager_id}) is None
    assert scene.ledger.assignments.find_one({"task_id": eager_id}) is None


def test_a_name_that_no_worker_knows(scene: Scene) -> None:
    result = scene.basic.app.send_task("nobody.knows")
    task = scene.verdict(result.id, runs=0, state="FAILURE", cause="unknown_task")
    assert task["sla_success"] is False


def test_a_message_that_the_worker_refuses(scene: Scene) -> None:
    result = scene.basic.ok.apply_async(serializer="pickle")
    task = scene.verdict(result.id, runs=0, state="REJECTED", cause="rejected")
    assert task["sla_success"] is False


def test_canvas_members_are_tasks_of_their_own(scene: Scene) -> None:
    head = scene.basic.headers
    linked = head.s().apply_async(link=head.s())
    results = [
        linked.get(timeout=30),
        chain(head.s(), head.s(), head.s()).apply_async().get(timeout=30),
        *group(head.s() for _ in range(3)).apply_async().get(timeout=30),
        chord([head.s(), head.s()])(head.s()).get(timeout=60),
        scene.basic.replaced.delay().get(timeout=30),
    ]
    for found in results:
        tau, k = found["rts_tau"], found["rts_k"]
        assert found["rts_deadline"] == found["rts_arrival"] + max(k * tau, tau + FLOOR)
        scene.verdict(found["id"], runs=2 if found is results[-1] else 1, state="SUCCESS")
    child = scene.basic.nested.delay().get(timeout=30)
    assert scene.verdict(child, state="SUCCESS")["parent_id"] is not None


@pytest.mark.parametrize("killed", [False, True])
def test_the_replacement_of_a_task_that_was_retried_and_killed_has_the_verdict(
    scene: Scene, tmp_path: Path, killed: bool
) -> None:
    marker = str(tmp_path / "killed") if killed else None
    result = scene.basic.replaced_at_last.delay(marker)
    task = scene.verdict(result.id, runs=4 + killed, name="tests.apps.basic.fail")
    assert (task["state"], task["sla_success"], task["retries"]) == ("FAILURE", True, 0)
    states = [run["state"] for run in scene.runs(result.id)]
    assert states == ["RETRY", "RETRY", *["LOST"] * killed, "REPLACED", "FAILURE"]


@pytest.mark.parametrize(
    ("asked", "changed", "expected"),
    [
        ({}, {}, ("cpu-heavy", "task")),
        ({"task_type": "cpu-light"}, {}, ("cpu-light", "explicit")),
        ({}, {"task_type": "cpu-light"}, ("cpu-light", "explicit")),
    ],
)
def test_headers_that_a_task_passes_on_do_not_request_its_own_type(
    scene: Scene, asked: dict[str, str], changed: dict[str, str], expected: tuple[str, str]
) -> None:
    result = scene.basic.passing_on.apply_async(kwargs=changed, headers={"trace": "7", **asked})
    task = scene.verdict(result.get(timeout=30), state="SUCCESS")
    assert (task["task_type"], task["type_source"]) == expected
    given = scene.verdict(result.id, state="SUCCESS")
    assert task["arrival"] > given["arrival"]


def test_celerys_own_tasks_are_ignored_except_those_that_run_the_apps(scene: Scene) -> None:
    ok = scene.basic.ok
    heavy = {"headers": {"task_type": "cpu-heavy"}}
    chunks = ok.chunks([(0.01,), (0.01,), (0.01,)], 2).apply_async(**heavy)
    for result in chunks.results:
        scene.verdict(result.id, name="celery.starmap", task_type="cpu-heavy", state="SUCCESS")
    mapped = ok.map([0.01, 0.01]).apply_async()
    assert scene.verdict(mapped.id, name="celery.map", state="SUCCESS")["runtime_s"] >= 0.02
    wrong = ok.map(["x"]).apply_async()
    scene.verdict(wrong.id, name="celery.map", state="FAILURE")
    scene.basic.app.tasks["celery.backend_cleanup"].delay().get(timeout=30)
    scene.verdict(ok.delay().id, state="SUCCESS")
    names = {"celery.map", "celery.starmap"}
    assert set(scene.ledger.tasks.distinct("name", {"name": {"$regex": "^celery"}})) == names
    assert {
        field.partition("/")[2]
        for field in scene.redis.hgetall("rts:tau")
        if "/celery." in field
    } == names


def test_pool_children_hold_no_pymongo_even_when_they_are_new(scene: Scene) -> None:
    scene.basic.kill_self.delay()
    for _ in range(4):
        assert scene.basic.loaded_modules.delay("pymongo").get(timeout=30) == []


def test_a_worker_logs_at_its_start_which_servers_rts_uses(scene: Scene) -> None:
    conf = scene.basic.app.conf
    servers = f"Redis at {conf.broker_url} and MongoDB at {conf.rts_mongo_url}"
    assert f"rts uses {servers}; order of the queues: the broker's" in scene.worker.log


def test_nothing_is_left_in_flight(scene: Scene) -> None:
    wait_until(lambda: not scene.redis.exists("rts:running"))
    wait_until(lambda: scene.redis.xlen("rts:outbox") == 0)
    assert scene.redis.hget("rts:counters", "hook_errors") is None
    assert "tau learned: cpu-light" in scene.worker.log
