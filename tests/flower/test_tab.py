"""The tab in a real Flower: pages, API, authentication, prefix, hostile names, outages."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from html import escape
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from celery import Celery
from pymongo.database import Database

from rts.fields import MAX_TEXT, text
from rts.settings import Settings
from rts.testing import MongoServer, RedisServer, wait_until
from rts.views.json_values import plain
from rts.views.report import report
from rts.views.slo import standings
from tests.conftest import MakeApp, MakeStage, printed
from tests.flower.conftest import EVIL, Flower, some_runs
from tests.programs import certificate_in
from tests.records import ended

PAGES = ("/rts", "/rts/types", "/rts/workers", "/rts/queues", "/rts/misses", "/rts/task/task-0")
APIS = ("overview", "types", "workers", "queues", "misses", "task/task-0")
OPEN_API = {"FLOWER_UNAUTHENTICATED_API": "true"}

Make = Callable[..., Flower]


@pytest.mark.measured
@pytest.mark.parametrize("how", ["install", "rts.auto"])
def test_every_page_is_there_without_a_flag_and_says_why_types_miss(
    make_stage: MakeStage, make_flower: Make, write: Any, how: str
) -> None:
    write(*some_runs())
    stage = make_stage(**({"imports": ["rts.auto"]} if how == "rts.auto" else {}))
    stage.installed = how == "install"
    flower = make_flower(stage, env=OPEN_API)
    main = flower.get("/workers")
    assert 'href="/rts"' in main.text
    for path in PAGES:
        page = flower.get(path)
        assert page.status == 200, (path, flower.log)
        assert 'href="/rts"' in page.text
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for name in APIS:
        answer = flower.counted(f"/api/rts/{name}")
        assert answer.status == 200, (name, flower.log)
        assert answer.json["trouble"] == []
    rows = {row["key"]: row for row in flower.counted("/api/rts/overview").json["types"]}
    reasons = {key: row["finding"] and row["finding"]["reason"] for key, row in rows.items()}
    assert reasons == {
        "memory-heavy": "queueing",
        "cpu-heavy": "load",
        "mixed": "tau",
        "cpu-light": None,
    }
    page = flower.get("/rts")
    for label in ("waits too long", "slowed down by load", "tau is too short"):
        assert label in page.text
    assert "Traceback" not in flower.log


def test_without_rts_flower_is_unchanged(make_stage: MakeStage, make_flower: Make) -> None:
    stage = make_stage()
    stage.installed = False
    flower = make_flower(stage)
    assert "/rts" not in flower.get("/workers").text
    assert flower.get("/rts").status == 404


def test_the_numbers_are_those_of_the_command_line(
    make_stage: MakeStage, make_flower: Make, write: Any, mongo: Database[dict[str, Any]]
) -> None:
    write(*some_runs())
    slo = {"billing": 0.9, "crm": 0.9, "mixed": 0.5, "*": 0.9999}
    flower = make_flower(make_stage(rts_slo=slo), env=OPEN_API)
    shown = flower.counted("/api/rts/types?since=24h").json
    window = tuple(
        datetime.fromisoformat(shown[n].replace("Z", "+00:00")) for n in ("since", "until")
    )
    for by, rows in (("type", shown["types"]), ("name", shown["names"])):
        expected = {row.key: plain(asdict(row)) for row in report(mongo, *window, by).rows}
        found = {row["key"]: row for row in rows}
        assert len(expected) == 4
        for key, row in expected.items():
            shown_row = {n: found[key][n] for n in row}
            # The same sums, added up in another order.
            assert shown_row.pop("tau_error_ratio") == pytest.approx(row.pop("tau_error_ratio"))
            assert shown_row == row
    # A name is held to the objective of its type.
    drawn = flower.counted("/api/rts/types?since=24h&name=proj.mixed").json["charts"][-1]
    (line,) = (series for series in drawn["series"] if series["label"] == "objective")
    assert set(line["values"]) == {0.5}
    settings = Settings.from_conf({"rts_slo": slo})
    overview = flower.counted("/api/rts/overview").json
    expected_standings = standings(mongo, settings, datetime.now(timezone.utc))
    assert [s["budget_left_ratio"] for s in overview["objectives"]] == [
        pytest.approx(s.budget_left_ratio) for s in expected_standings
    ]
    page = flower.get("/rts").text  # the two that are worst off
    assert "left, objective 99.99\u00a0% over" in page
    assert "Error budget: billing" not in page
    day = next(met for met in overview["met"] if met["window"] == "24 h")
    assert (day["tasks"], day["missed"]) == (100, 60)
    assert mongo.tasks.count_documents({"sla_success": False}) == 60


def test_the_headline_does_not_wait_for_a_reason(
    make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(ended(0, 5), ended(1, 5, task_type="mixed", deadline=0.0, runtime_s=None))
    flower = make_flower(make_stage(), env=OPEN_API)
    rows = flower.counted("/api/rts/overview").json["types"]
    assert [(row["key"], row["missed"], row["finding"]) for row in rows] == [
        ("mixed", 1, None),
        ("cpu-light", 0, None),
    ]
    headline = flower.get("/rts").text.partition("<h1")[2].partition("</h1>")[0]
    assert " ".join(headline.split()).endswith(">mixed</span> meets 0 % of its deadlines")


def test_basic_authentication_and_prefix(
    make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(ended(0, 5))
    flower = make_flower(make_stage(), prefix="my/flower", basic_auth="me:secret")
    for path in PAGES + tuple(f"/api/rts/{name}" for name in APIS):
        assert flower.get(path, auth=False).status == 401, path
        assert flower.get(path).status == 200, path
        assert flower.get(path, method="POST").status in (403, 405), path
    page = flower.get("/rts").text
    assert 'href="/my/flower/rts/types"' in page
    asset = page.split('src="/my/flower/rts/static/rts.js')[1].split('"')[0]
    assert re.fullmatch(r"\?v=[0-9a-f]{12,}", asset)
    assert flower.get(f"/rts/static/rts.js{asset}", auth=False).status == 200
    assert flower.get("/rts/static/../pages.py").status in (403, 404)


def test_who_is_not_logged_in_sees_nothing(
    make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(ended(0, 5))
    options = ("--auth=me@example.com", "--auth-provider=flower.views.auth.GithubLoginHandler")
    keys = ("--oauth2-key=key", "--oauth2-secret=secret", "--oauth2-redirect-uri=http://nobody")
    env = {"FLOWER_COOKIE_SECRET": "of-this-test-alone"}
    flower = make_flower(make_stage(), *options, *keys, env=env)
    apis = (f"/api/rts/{name}" for name in APIS)
    for path in (*PAGES, "/rts/task?id=task-0", "/task/task-0", *apis):
        with closing(HTTPConnection("127.0.0.1", flower.port, timeout=30)) as connection:
            connection.request("GET", path)  # which does not follow to the provider
            answer = connection.getresponse()
            assert (answer.status, str(answer.getheader("Location"))[:7]) == (302, "/login?")
            assert b"task-0" not in answer.read()


def test_tls_metrics_and_an_api_as_closed_as_flowers(
    make_stage: MakeStage, make_flower: Make, write: Any, tmp_path: Path
) -> None:
    write(ended(0, 5))
    certificate, key = certificate_in(tmp_path)
    flower = make_flower(
        make_stage(), f"--certfile={certificate}", f"--keyfile={key}", scheme="https"
    )
    for path in PAGES:
        assert flower.get(path).status == 200, path
    for name in APIS:
        assert flower.get(f"/api/rts/{name}").status == 401
    wait_until(lambda: 'rts_slo_target_ratio{objective="*"}' in flower.get("/metrics").text, 30)
    metrics = flower.get("/metrics").text
    assert 'rts_up{server="redis"} 1.0' in metrics
    assert "python_info" in metrics


@pytest.mark.measured
def test_hostile_names_are_text(
    make_stage: MakeStage, make_flower: Make, write: Any, mongo: Any
) -> None:
    miss = {"deadline": 1.0, "arrival": 0.5}
    write(
        ended(0, 5, task_id=EVIL, name=EVIL, queue=EVIL, worker=EVIL, state=EVIL, **miss),
        ended(
            1, 6, task_id="plain", name=EVIL, parent_id=EVIL, root_id=EVIL, cause=EVIL, **miss
        ),
    )
    # The drain would not let such a type in; a person with a shell might.
    mongo.tasks.update_many({}, {"$set": {"task_type": EVIL}})
    mongo.assignments.update_many({}, {"$set": {"task_type": EVIL}})
    flower = make_flower(make_stage())
    evil = quote(EVIL, safe="")
    paths = [*PAGES[:5], f"/rts/task/{evil}", "/rts/task/plain"]
    paths += [f"{p}?type={evil}&name={evil}&worker={evil}&since=1h" for p in PAGES[:5]]
    paths += [f"/rts?since={evil}", f"/rts/task/no-{evil}"]
    seen = 0
    for path in paths:
        page = flower.get(path)
        assert page.status in (200, 400, 404), (path, flower.log)
        assert "<script>alert" not in page.text, path
        assert "<img" not in page.text.replace('<img src="/static', ""), path
        seen += escape(EVIL, quote=False)[:40].replace("'", "&#x27;") in page.text.replace(
            "&#39;", "&#x27;"
        )
    assert seen > 5
    moved = flower.get(f"/rts/task?id={evil}")
    assert moved.status == 200
    assert "<script>alert" not in moved.text


def test_filters_narrow_the_pages_and_invalid_ones_are_rejected(
    make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    elsewhere = [ended(9998, 7200, worker="w2@host"), ended(9997, 7200, worker="")]
    write(*some_runs(), ended(9999, 7200), *elsewhere)
    flower = make_flower(make_stage(), env=OPEN_API)

    def tasks(query: str) -> int:
        found = flower.counted(f"/api/rts/types{query}").json
        return sum(row["tasks"] for row in found["types"])

    assert tasks("") == tasks("?since=24h") == 103
    assert tasks("?since=1h") == 100
    # No tau was learned, as if all of them had failed.
    for query in ("?type=mixed", "?type=mixed&name=proj.mixed"):  # the second is a link there
        names = flower.counted(f"/api/rts/types{query}").json["names"]
        assert [row["key"] for row in names] == ["proj.mixed"]
    missed = flower.counted("/api/rts/misses?type=mixed").json
    assert {task["task_type"] for task in missed["misses"]} == {"mixed"}
    assert len(missed["misses"]) == missed["missed"] == 20
    # The table scrolls: that there are more than can be seen is in its caption.
    assert "<caption>20 missed deadlines" in flower.get("/rts/misses?type=mixed").text
    missed = flower.counted("/api/rts/misses?name=proj.work").json
    assert (missed["misses"], missed["missed"]) == ([], None)
    assert flower.counted("/api/rts/misses").json["missed"] == 60
    flower.counted("/api/rts/workers")
    workers = flower.get("/rts/workers").text
    assert "no worker" in workers
    assert "unknown" not in workers
    for worker, shown in (("w2@host", ["w2@host"]), ("nobody", [])):
        found = flower.counted(f"/api/rts/workers?worker={worker}").json
        assert [row["worker"] for row in found["workers"]] == shown
        assert found["sampled"] == len(shown)
    assert "No such worker." in flower.get("/rts/workers?worker=nobody").text
    for since in ("yesterday", "0s", "2030-01-01", "99999w", quote(EVIL)):
        wrong = f"?since={since}"
        told = flower.get(f"/api/rts/types{wrong}")
        assert (told.status, "is not a duration" in told.text) == (400, True)
        assert told.headers["Content-Type"].startswith("text/plain")
    for path in ("/api/rts/overview", "/api/rts/task/%FF", "/api/rts/task/no-<b>"):
        told = flower.get(path)
        assert "html" not in told.headers["Content-Type"], path
        assert told.headers["X-Content-Type-Options"] == "nosniff", path
        page = flower.get(f"/rts/types{wrong}")
        assert (page.status, "not a duration such as" in page.text) == (400, True)


@pytest.mark.measured
def test_flowers_page_of_a_task_shows_its_verdict(
    make_stage: MakeStage, make_flower: Make, mongo: Database[dict[str, Any]]
) -> None:
    stage = make_stage()
    worker = stage.worker(concurrency=1, arguments=("-E",))
    flower = make_flower(stage)
    app = Celery("sender", broker=stage.broker, set_as_current=False)
    app.conf.task_default_queue = stage.conf["task_default_queue"]

    pages: list[str] = []

    def known() -> bool:
        # Flower hears events from some moment after its start on.
        task_id = app.send_task("tests.apps.basic.ok", [0.0]).id
        wait_until(lambda: mongo.tasks.find_one({"_id": task_id}), 30)
        pages.append(flower.get(f"/task/{task_id}").text)
        assert "Error 500" not in pages[-1], flower.log
        return 'id="taskid"' in pages[-1]

    wait_until(known, 30, interval=0.5)
    page = pages[-1]
    facts = page[page.index("Real-time scheduling") :]
    assert "mixed" in facts
    assert "met, " in facts
    assert "tau" in facts
    worker.stop()


def test_a_task_that_flower_does_not_know(
    make_stage: MakeStage, make_flower: Make, write: Any, mongo: Any
) -> None:
    long = "x" * 2 * MAX_TEXT
    write(ended(0, 5), ended(1, 5, task_id=text(long)))
    odd = {"name": "proj.odd", "runtime_s": math.nan, "tau": math.inf, "sla_success": False}
    at, odd["task_type"] = datetime.now(timezone.utc) - timedelta(minutes=9), "mixed"
    misses: list[dict[str, Any]] = [
        {"_id": "odd", "verdict_at": at, **odd},
        {"_id": "odder", "verdict_at": [at], **odd},
    ]
    mongo.tasks.insert_many(misses)  # by another program
    runs = [{"_id": "0", "task_id": "odd", "retries": None}, {"_id": "1", "task_id": "odd"}]
    mongo.assignments.insert_many(runs)
    flower = make_flower(make_stage(), prefix="x")
    page = flower.get("/task/task-0")  # follows to our page
    assert page.status == 200
    assert "proj.work" in page.text
    assert flower.get("/task/nobody").status == 404
    assert flower.get("/rts/task/nobody").status == 404
    odd_page = flower.get("/rts/task/odd").text
    assert "proj.odd" in odd_page
    assert "None" not in odd_page
    wait_until(lambda: "odder" in flower.get("/rts/misses").text, 30)
    for path in (f"/task/{long}", f"/rts/task/{long}", f"/rts/task?id={long}"):
        assert "proj.work" in flower.get(path).text, path[:20]


def test_the_page_of_a_task_says_why_it_was_late(
    make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    waited = {"arrival": time.time() - 40, "deadline": time.time() - 34}
    write(ended(0, 5, **waited), ended(1, 5, state="FAILURE", cause="killed"))
    # Delivered twice: the first end is the verdict, and the second run took long.
    long = {"run_id": "again", "started_at": time.time() - 4, "runtime_s": 25.0}
    write(ended(0, 1, **waited, **long))
    # Its last run asked for a retry, which has not come.
    never = {"completed_at": None, "runtime_s": None, "ran": False, "run_id": "-"}
    write(
        ended(2, 5, **waited, state="RETRY"),
        ended(2, 5, **waited, **never, state="PENDING", cause="overdue"),
    )
    write(ended(3, 5, state="RETRY"))  # it may still be on time
    flower = make_flower(make_stage(), env=OPEN_API)
    retried = flower.get("/rts/task/task-3").text
    assert "no verdict yet" in retried
    assert "rts-bad" not in retried
    assert "waits too long" in flower.get("/rts/task/task-0").text
    twice = flower.get("/api/rts/task/task-0").json
    assert [run["run_id"] for run in twice["runs"]] == ["run-0", "again"]
    assert (twice["why"]["reason"], twice["why"]["runs"]) == ("queueing", 1)
    for task_id, cause in (("task-1", "killed"), ("task-2", "overdue")):
        told = flower.get(f"/api/rts/task/{task_id}").json
        assert (told["task"]["cause"], told["why"]) == (cause, None)


def test_a_type_shows_its_tasks_that_no_worker_has_run(
    make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    new = {"task_type": "mixed", "name": "proj.new", "started_at": None, "ran": False}
    due = {"state": "PENDING", "cause": "overdue", "worker": "", "deadline": time.time() - 5}
    write(ended(0, 5), ended(1, 5)._replace(**new, **due, completed_at=None, runtime_s=None))
    flower = make_flower(make_stage(), env=OPEN_API)
    names = flower.counted("/api/rts/types?type=mixed").json["names"]
    assert [(row["key"], row["missed"]) for row in names] == [("proj.new", 1)]


@pytest.mark.measured
def test_queues_in_deadline_order(
    make_stage: MakeStage, apps: MakeApp, make_flower: Make, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    queue = stage.conf["task_default_queue"]
    now = datetime.now(timezone.utc)
    try:
        for late in (60, 30, -10):
            at = now + timedelta(seconds=late)
            app.send_task("proj.work", headers={"sla_deadline": at.isoformat()})
        strangers = f"{queue}-2"  # only the worker knows it
        headers = {
            "id": "\ud800" * 2000,
            "task": EVIL,
            "task_type": "\ud800",
            "rts_tau": 1.7e308,
        }
        for text in ("[" * 100_000, *[json.dumps({"headers": headers})] * 2):
            redis_client.lpush(strangers, text)
        beat = {"seen_at": now.timestamp() + 60, "concurrency": 4, "queues": [queue, strangers]}
        odd = {"seen_at": now.timestamp() + 60, "worker": "w@\udcff", "load": {"load": "x"}}
        for instance, told in (
            ("w/1", {**beat, "worker": EVIL, "load": {"load": 0.5}}),
            ("w/2", {**beat, "worker": "of no queue", "queues": []}),
            ("w/3", {**odd, "concurrency": "many", "queues": 7, "host": {}, "pid": []}),
        ):
            redis_client.hset(f"{stage.prefix}workers", instance, json.dumps(told))
        flower = make_flower(stage, env=OPEN_API)
        found = flower.counted("/api/rts/queues").json
        (mine,) = [q for q in found["queues"] if q["name"] == queue]
        assert (mine["ordered"], mine["hopeless"], mine["slots"]) == (3, 1, 4)
        (theirs,) = [q for q in found["queues"] if q["name"] == strangers]
        assert [task["name"] for task in theirs["line"]] == ["", EVIL, EVIL]
        assert len(theirs["line"][1]["task_id"]) <= 1024
        assert mine["drain_s"] == pytest.approx(3 * 10 / 4)
        # Nothing tells how long these take.
        assert (theirs["waiting"], theirs["drain_s"]) == (3, None)
        deadlines = [task["deadline"] for task in mine["line"]]
        assert deadlines == sorted(deadlines)
        assert found["open"]["waiting"] >= 3
        told = flower.counted("/api/rts/workers").json["workers"]
        assert {worker["worker"] for worker in told} == {EVIL, "of no queue", "w@?"}
        page = flower.get("/rts/queues").text
        assert "overdue" in page
        assert "<script>alert" not in page + flower.get("/rts/workers").text
    finally:
        with app.connection_for_write() as connection:
            connection.default_channel.queue_purge(queue)
        redis_client.delete(strangers)


@pytest.mark.measured
def test_flower_survives_an_outage_of_the_servers(
    make_stage: MakeStage, make_flower: Make
) -> None:
    with RedisServer() as server, MongoServer() as mongo_server:
        stage = make_stage(
            broker=server.url, mongo_url=mongo_server.url, rts_redis_url=server.url
        )
        flower = make_flower(stage, env=OPEN_API)
        empty = flower.counted("/api/rts/overview").json
        assert (empty["trouble"], empty["types"], empty["charts"]) == ([], [], [])
        server.pause()
        mongo_server.stop()

        def told() -> bool:
            return len(flower.get("/api/rts/overview").json["trouble"]) >= 2

        wait_until(told, 60)
        for path in (*PAGES, "/task/task-0"):
            page = flower.get(path)
            assert page.status == 200, path
        assert "is not usable" in flower.get("/rts").text
        assert flower.get("/api/rts/workers").json["sampled"] is None
        assert flower.get("/healthcheck").text == "OK"
        server.resume()
        mongo_server.start()
        wait_until(lambda: flower.get("/api/rts/overview").json["trouble"] == [], 60)


def test_what_is_wrong_with_redis_is_shown_as_by_status(
    make_stage: MakeStage, make_flower: Make
) -> None:
    with RedisServer(arguments=("--maxmemory", "1")) as full:
        stage = make_stage(broker=full.url, rts_redis_url=full.url)
        flower = make_flower(stage, env=OPEN_API)
        why = f"Redis at {full.url} takes no records: its memory is full"
        for page in ("overview", "workers", "queues"):
            document = flower.counted(f"/api/rts/{page}").json
            assert document["trouble"] == []
            assert document["problems"][0].startswith(why)
            assert why in flower.get("/rts" if page == "overview" else f"/rts/{page}").text


def test_other_processes_load_nothing_of_the_tab() -> None:
    script = (
        "import sys; import celery.bin.celery, rts; from celery import Celery\n"
        "app = Celery('x', broker='memory://'); rts.install(app)\n"
        "assert 'flower.app' in sys.modules\n"
        "import flower.app as f; wrapped = f.Flower.start\n"
        "assert hasattr(wrapped, '__wrapped__')\n"
        "app.loader.import_default_modules(); rts.install(app)\n"
        "assert f.Flower.start is wrapped\n"
        "assert 'pymongo' not in sys.modules and 'rts.flower.tab' not in sys.modules\n"
        "rts.uninstall(app)\n"
        "assert not hasattr(f.Flower.start, '__wrapped__')\n"
        "rts.install(app); del sys.modules['flower.app']; rts.uninstall(app)\n"
    )
    printed(script)
