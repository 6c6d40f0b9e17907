"""The metrics: counters agree with the ledger, and Prometheus understands them."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pymongo
import pytest
import redis
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics import parser as openmetrics
from pymongo.database import Database

from rts.ledger.counting import LATENESS
from rts.ledger.mongo import MongoLedger
from rts.ledger.outbox import RedisOutbox
from rts.link.link import Link
from rts.records import LOST, NOT_FINAL, PROVISIONAL_CAUSES, Execution
from rts.settings import Settings
from rts.testing import MongoServer, RedisServer, wait_until
from rts.views import metrics
from rts.views.metrics import MAX_AGE_S, RtsCollector
from rts.views.queue_state import QueueState, WaitingQueue
from rts.views.readings import PAGE, read
from rts.views.slo import standings
from tests.commands import NO_MONGO, NO_REDIS
from tests.metrics import Fleet, exposed, samples, scraped, values
from tests.programs import needed
from tests.recording_link import RecordingLink
from tests.records import run, success


@pytest.fixture
def settings(rts_redis_url: str, rts_mongo_url: str, rts_key_prefix: str) -> Settings:
    return Settings(
        redis_url=rts_redis_url,
        mongo_url=rts_mongo_url,
        key_prefix=rts_key_prefix,
        slo={"cpu-light": 0.99, "*": 0.9},
        timeout=5.0,
    )


@pytest.fixture
def ledger(settings: Settings) -> Iterator[MongoLedger]:
    made = MongoLedger(settings)
    yield made
    made.close()


@pytest.fixture
def fleet(settings: Settings, ledger: MongoLedger) -> Fleet:
    return Fleet(settings, ledger)


def agree(settings: Settings, database: Database[dict[str, Any]]) -> str:
    """Check that what is counted is a direct count of the ledger; return the metrics."""
    text = scraped(settings)
    tasks = list(database.tasks.find({"sla_success": {"$ne": None}}))
    runs = list(database.assignments.find())
    wanted = Counter(
        (t["task_type"], t["name"], t["queue"], "met" if t["sla_success"] else "missed")
        for t in tasks
    )
    labels = ("task_type", "task", "queue", "verdict")
    assert Counter(values(text, "rts_deadlines_total", *labels)) == wanted
    by_type = Counter((r["task_type"], r["name"]) for r in runs)
    assert values(text, "rts_runs_total", "task_type", "task") == by_type
    missed = sum(not t["sla_success"] for t in tasks)
    assert sum(values(text, "rts_misses_total", "cause").values()) == missed
    lateness = values(text, "rts_lateness_seconds_bucket", "task_type", "le")
    assert {kind: n for (kind, le), n in lateness.items() if le == "+Inf"} == Counter(
        t["task_type"] for t in tasks if t["lateness_s"] is not None
    )
    for kind, field in (("runtime", "runtime_s"), ("queueing_delay", "queueing_delay_s")):
        measured = Counter(r["task_type"] for r in runs if r[field] is not None)
        assert values(text, f"rts_{kind}_seconds_count", "task_type") == measured
        total = sum(r[field] for r in runs if r[field] is not None)
        found = sum(values(text, f"rts_{kind}_seconds_sum", "task_type").values())
        assert found == pytest.approx(total, abs=0.01)
    return text


def task(number: int, rng: random.Random, deadline_in: float) -> Execution:
    """Return a run, as far as its start."""
    now = time.time()
    return run(f"t{number}")._replace(
        name=rng.choice(["a.x", "b.y"]),
        task_type=rng.choice(["cpu-light", "mixed"]),
        queue=rng.choice(["q1", "q2"]),
        arrival=now - 100,
        deadline=now + deadline_in,
        started_at=now - 50,
        run_id=f"t{number}:0",
    )


def ended(started: Execution, state: str = "SUCCESS", **changes: Any) -> Execution:
    end = {"state": state, "completed_at": time.time(), "runtime_s": 3.0, **changes}
    return started._replace(**end)


WAYS = (
    *("met", "late", "failed", "killed", "lost", "overdue", "overdue, ends", "expired"),
    *("retried", "killed, again", "lost, lives", "ignored, replaced", "replaced"),
    *("met, told lost", "retried, told lost", "met, its run told lost"),
    *("killed, again there", "met twice", "failed, met", "expired twice"),
    *("rejected, met", "failed, killed, met"),
)


IN_TIME = (
    *("met", "failed", "expired", "retried", "ignored, replaced", "replaced"),
    *("met, told lost", "retried, told lost", "met, its run told lost", "met twice"),
)


def test_a_run_of_hours_is_told_from_one_of_an_hour(fleet: Fleet, settings: Settings) -> None:
    rng, hour = random.Random(9), 3600.0
    fleet.end(
        *(ended(task(n, rng, -hour * n), runtime_s=hour * n) for n in (1, 2, 5, 20, 50)),
    )
    fleet.drain()
    text = scraped(settings)
    runtimes = values(text, "rts_runtime_seconds_bucket", "le")
    bounds = [str(bound * hour) for bound in (1, 2, 6, 24)]
    assert [runtimes[bound] for bound in (*bounds, "+Inf")] == [1, 2, 3, 4, 5]
    lateness = values(text, "rts_lateness_seconds_bucket", "le")
    assert [lateness[bound] for bound in ("21600.0", "86400.0", "+Inf")] == [3, 4, 5]


def test_odd_and_long_names_do_not_fail_a_scrape(
    settings: Settings, redis_client: redis.Redis
) -> None:
    long = "mixed/" + 300 * "x"
    redis_client.hset(settings.keys.tau, mapping={long + "1": "1", long + "2": "2"})
    beat = {"seen_at": time.time(), "worker": "w@\udcff", "concurrency": 2}
    redis_client.hset(settings.keys.workers, "w", json.dumps(beat))
    text = scraped(settings)
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))
    assert values(text, "rts_worker_slots", "worker") == {"w@?": 2.0}


def test_of_instances_with_one_name_the_last_one_seen_is_shown(
    settings: Settings, redis_client: redis.Redis
) -> None:
    for n, ago_s in enumerate((2.0, 0.0, 1.0)):
        beat = {"seen_at": time.time() - ago_s, "worker": "w@h", "concurrency": 2 + n}
        redis_client.hset(settings.keys.workers, f"w@h/{n}", json.dumps(beat))
    (worker,) = read(Link(settings), settings).workers
    assert (worker.worker, worker.slots) == ("w@h", 3)


def test_keys_changed_by_hand_hold_up_no_record_and_no_verdict(
    fleet: Fleet, settings: Settings, redis_client: redis.Redis
) -> None:
    keys = settings.keys
    redis_client.set(keys.metrics, "mine")
    rng = random.Random(7)
    late = [task(n, rng, -10.0) for n in range(5)]
    fleet.publish(*late)
    fleet.look()
    assert redis_client.zcard(keys.overdue) == 5
    assert redis_client.xlen(keys.events) == 5
    left = redis_client.hgetall(keys.open_counts)
    assert sum(int(n) for field, n in left.items() if field.startswith("open ")) == 0
    redis_client.set(f"{keys.metrics}:types", "mine")
    redis_client.set(keys.judged, "mine")
    fleet.end(*(ended(one) for one in late))
    assert sum(fleet.drains[0].step() for _ in range(2)) == 5, "no step was refused"
    assert redis_client.xlen(keys.outbox) == 0
    assert int(redis_client.hget(keys.counters, "metrics_refused") or 0) > 0


def test_what_is_final_and_what_is_provisional_is_the_same_in_redis(
    settings: Settings, redis_client: redis.Redis
) -> None:
    final, provisional = ("SUCCESS", "FAILURE"), {LOST, *PROVISIONAL_CAUSES}
    ends = [run(state)._replace(name=state, state=state) for state in (*final, *NOT_FINAL)]
    ends += [run(cause)._replace(state="FAILURE", cause=cause) for cause in PROVISIONAL_CAUSES]
    ends += [run(LOST)._replace(state=LOST), run("e")._replace(cause="expired")]
    for end in ends:
        redis_client.xadd(settings.keys.outbox, {"r": end._replace(completed_at=9.0).to_json()})
    outbox = RedisOutbox(Link(settings), settings, "me")
    outbox.done([entry.entry_id for entry in outbox.read(100).entries])
    counted = (field.split("\n") for field in redis_client.hkeys(settings.keys.metrics))
    names = {field[2] for field in counted if field[0] == "verdicts"}
    assert names == {*final, "proj.add"}
    judged = redis_client.zrange(settings.keys.judged, 0, -1)
    assert {member for member in judged if "\n" not in member} == provisional


def test_what_is_counted_agrees_with_the_ledger(fleet: Fleet, settings: Settings) -> None:
    """Met, late, killed, lost, overdue, retried, expired; each counted exactly as often."""
    rng = random.Random(7)
    ways = Counter[str]()
    for number in range(300):
        way = rng.choice(WAYS)
        ways[way] += 1
        late = way not in IN_TIME
        one = task(number, rng, -10.0 if late else 1000.0)
        again = one._replace(run_id=f"t{number}:1", retries=1)
        elsewhere = again._replace(retries=0, instance="other", worker="other")
        unmeasured: dict[str, Any] = {"runtime_s": None}
        fleet.publish(one)
        match way:
            case "met" | "late":
                fleet.end(ended(one))
            case "failed":
                fleet.end(ended(one, "FAILURE"))
            case "killed":
                fleet.end(ended(one, "FAILURE", cause="killed"))
            case "lost":
                fleet.end(ended(one, "LOST", cause="lost", **unmeasured))
            case "overdue":
                fleet.look()
            case "overdue, ends":
                fleet.look()
                fleet.end(ended(one))
            case "expired":
                never = one._replace(ran=False, started_at=None)
                fleet.end(ended(never, "REVOKED", cause="expired", **unmeasured))
            case "retried":
                fleet.end(ended(one, "RETRY"))
                fleet.publish(again)
                fleet.end(ended(again))
            case "killed, again":
                fleet.end(ended(one, "FAILURE", cause="killed"))
                fleet.end(ended(elsewhere))
            case "lost, lives":
                fleet.end(ended(one, "LOST", cause="lost", **unmeasured))
                fleet.drain()
                fleet.end(ended(one, runtime_s=None))
            case "met, told lost":  # by what is left of a worker that was killed
                fleet.end(ended(one))
                fleet.end(ended(one, "LOST", cause="lost", ran=False, **unmeasured))
            case "met, its run told lost":  # by another companion, as its own one hung
                fleet.end(ended(one))
                if rng.random() < 0.5:
                    fleet.drain()
                fleet.end(ended(one, "LOST", cause="lost", **unmeasured))
            case "killed, again there":  # the message was put back, and the same worker took it
                fleet.end(ended(one, "LOST", cause="killed", **unmeasured))
                fleet.end(ended(one._replace(run_id=f"t{number}:2")))
            case "met twice" | "failed, met":  # it was delivered twice
                fleet.end(ended(one, "SUCCESS" if way == "met twice" else "FAILURE"))
                if rng.random() < 0.5:
                    fleet.drain()
                fleet.end(ended(elsewhere._replace(run_id=f"t{number}:2")))
            case "rejected, met":  # its retry could not be published; and it came again
                fleet.end(ended(one, "REJECTED", cause="rejected"))
                fleet.end(ended(elsewhere._replace(run_id=f"t{number}:2"), "RETRY"))
                if rng.random() < 0.5:
                    fleet.drain()
                fleet.end(ended(again._replace(run_id=f"t{number}:3")))
            case "failed, killed, met":
                fleet.end(ended(one, "FAILURE"))
                later = elsewhere._replace(started_at=time.time(), run_id=f"t{number}:2")
                fleet.end(ended(later, "FAILURE", cause="killed"))
                if rng.random() < 0.5:
                    fleet.drain()
                fleet.end(ended(later._replace(run_id=f"t{number}:3", instance="third")))
            case "expired twice":
                never = one._replace(ran=False, started_at=None)
                for _ in range(2):
                    gone = ended(never, "REVOKED", cause="expired", **unmeasured)
                    fleet.end(gone._replace(completed_at=time.time() + rng.random()))
            case "retried, told lost":
                fleet.end(ended(one, "RETRY"))
                fleet.publish(again)
                fleet.end(ended(one, "LOST", cause="lost", ran=False, **unmeasured))
                fleet.drain()
                fleet.end(ended(again))
            case "ignored, replaced" | "replaced":
                fleet.end(ended(one, way.partition(", ")[0].upper()))
                fleet.end(ended(elsewhere))
        if rng.random() < 0.3:
            fleet.drain()
    fleet.drain()
    fleet.look()
    assert len(ways) == len(WAYS)
    text = agree(settings, fleet.ledger.database)
    assert values(text, "rts_overdue_tasks") == {(): ways["overdue"]}
    assert values(text, "rts_open_tasks") == {(): 0}
    causes = values(text, "rts_misses_total", "cause")
    assert causes["overdue"] == ways["overdue"] + ways["overdue, ends"]
    assert causes["expired"] == ways["expired"] + ways["expired twice"]


def test_a_lost_run_that_lives_counts_once_where_no_tasks_are_tracked(
    settings: Settings, ledger: MongoLedger
) -> None:
    fleet = Fleet(replace(settings, open_max=0), ledger)
    started = task(1, random.Random(3), -10.0)
    fleet.end(ended(started, "LOST", cause="lost", runtime_s=None))
    fleet.drain()
    fleet.look()
    fleet.end(ended(started, runtime_s=None))
    fleet.drain()
    agree(settings, ledger.database)


def test_a_record_counts_once_whoever_forgets_it(
    settings: Settings, redis_client: redis.Redis
) -> None:
    link = Link(settings)
    for n in range(450):
        redis_client.xadd(settings.keys.outbox, {"r": success(f"t{n}").to_json()})
    first, second = (RedisOutbox(link, settings, name) for name in "ab")
    ids = [entry.entry_id for entry in first.read(1000).entries]
    for outbox in (second, first, second):
        outbox.done(ids)
    outbox.done([])
    assert redis_client.xlen(settings.keys.outbox) == 0
    assert redis_client.xpending(settings.keys.outbox, "rts")["pending"] == 0
    counted = redis_client.hgetall(settings.keys.metrics)
    assert counted["runs\ncpu-light\nproj.add\nSUCCESS"] == "450"
    assert counted["verdicts\ncpu-light\nproj.add\nunknown\nmet"] == "450"
    assert float(counted["runtime\ncpu-light\nsum"]) == pytest.approx(450.0)


def test_what_is_remembered_lest_it_count_twice_goes_with_the_end(
    settings: Settings, redis_client: redis.Redis
) -> None:
    outbox, keys = RedisOutbox(Link(settings), settings, "me"), settings.keys

    def remembered_after(state: str, cause: str | None = None) -> int:
        record = success("a")._replace(state=state, cause=cause).to_json()
        outbox.done([redis_client.xadd(keys.outbox, {"r": record})])
        return int(redis_client.zcard(keys.judged))

    assert remembered_after("SUCCESS") == 0
    for state, cause in (("LOST", "lost"), ("FAILURE", "killed"), ("LOST", "lost")):
        assert remembered_after(state, cause) == 3  # the run, its task and its end
    assert remembered_after("SUCCESS") == 0
    redis_client.zadd(keys.judged, {"a": 1.0})  # it was overdue, which is no end
    assert remembered_after("SUCCESS") == 0
    assert not redis_client.exists(keys.counters), "nothing was refused, or forgotten"
    counted = redis_client.hgetall(keys.metrics)
    of = "cpu-light\nproj.add\n"
    runs = {field: n for field, n in counted.items() if field.startswith("runs")}
    assert runs == {f"runs\n{of}SUCCESS": "2", f"runs\n{of}LOST": "1"}
    verdicts = {field: n for field, n in counted.items() if field.startswith("verdicts")}
    assert verdicts == {f"verdicts\n{of}unknown\nmet": "1", f"verdicts\n{of}unknown\nlost": "1"}
    assert counted["lateness\ncpu-light\n-5.0"] == "3"


def test_labels_are_bounded_and_hostile_ones_are_text(
    settings: Settings, redis_client: redis.Redis
) -> None:
    small = replace(settings, max_types=8)
    outbox = RedisOutbox(Link(small), small, "me")
    bad = ['"}\n# HELP x', "\ud800\udfff", "\\", "<script>", "x" * 5000, "é" * 150, "\0"]
    for n, name in enumerate([*bad, *(f"n{n}" for n in range(20))]):
        one = success(f"t{n}")._replace(name=name, queue=name, state="SUCCESS")
        redis_client.xadd(small.keys.outbox, {"r": one.to_json()})
    for text in ("", "[]", "{", "[1,2]", "[" * 5000):
        redis_client.xadd(small.keys.outbox, {"r": text})
    batch = outbox.read(1000)
    outbox.done([e.entry_id for e in batch.entries] + [i for i, _ in batch.unreadable])
    assert redis_client.xlen(small.keys.outbox) == 0
    again = success("t0")._replace(name="<script>", queue="<script>")
    outbox.done([redis_client.xadd(small.keys.outbox, {"r": again.to_json()})])
    text = scraped(small)
    by_name = values(text, "rts_runs_total", "task")
    assert len(by_name) <= 9
    assert by_name["other"] >= 19
    assert by_name["<script>"] == 2, "known ones go on"
    assert sum(by_name.values()) == 28
    assert max(map(len, by_name)) <= 200
    assert '"}' in text.replace('\\"', '"')
    assert not any(line.startswith("# HELP x") for line in text.splitlines())


def test_names_that_are_cut_within_a_character_are_counted_together(
    settings: Settings, redis_client: redis.Redis
) -> None:
    """Half a character is shown as the half of any other: two series would be one."""
    outbox = RedisOutbox(Link(settings), settings, "me")
    for n, end in enumerate(("ぁ", "ぁ", "ゟ", "é", "")):
        one = success(f"t{n}")._replace(name=198 * "x" + end)
        redis_client.xadd(settings.keys.outbox, {"r": one.to_json()})
    outbox.done([entry.entry_id for entry in outbox.read(10).entries])
    found = read(Link(settings), settings)
    assert {len(task): n for (_, task, _), n in found.runs.items()} == {198: 4, 199: 1}


def test_any_mix_of_labels_makes_no_more_series_than_there_may_be(
    settings: Settings, redis_client: redis.Redis
) -> None:
    outbox = RedisOutbox(Link(settings), settings, "me")
    known = {"verdicts\ncpu-light\nproj.add\nq\nmet": 7, "runs\ncpu-light\nproj.add\nX": 1}
    full = {f"verdicts\nt\nn\nq{n}\nmet": 1 for n in range(50_000)}
    redis_client.hset(settings.keys.metrics, mapping={**known, **full})
    for label, key in zip(
        ("cpu-light", "proj.add", "q"), settings.keys.counting[1:], strict=True
    ):
        redis_client.sadd(key, label, f"{label}2")
    redis_client.sadd(f"{settings.keys.counting[1]}:states", "SUCCESS")
    ends = [("proj.add", "q"), ("proj.add", "q2"), ("proj.add2", "q"), ("proj.add2", "q2")]
    for n, (name, queue) in enumerate(ends):
        one = success(f"t{n}")._replace(name=name, queue=queue)
        redis_client.xadd(settings.keys.outbox, {"r": one.to_json()})
    outbox.done([entry.entry_id for entry in outbox.read(10).entries])
    counted = redis_client.hgetall(settings.keys.metrics)
    told = {key: int(n) for key, n in counted.items() if key not in full and "proj" in key}
    assert told == {**known, "verdicts\ncpu-light\nproj.add\nq\nmet": 8}
    assert counted["verdicts\ncpu-light\nother\nother\nmet"] == "3"
    assert counted["runs\ncpu-light\nother\nSUCCESS"] == "4"
    assert counted["runtime\ncpu-light\n1.0"] == "4"


def test_a_first_miss_is_an_increase(fleet: Fleet, settings: Settings) -> None:
    rng = random.Random(9)
    on_time = task(0, rng, 100.0)
    labels = {"task_type": on_time.task_type, "name": on_time.name, "queue": on_time.queue}
    late, stuck = (task(n, rng, -5.0)._replace(**labels) for n in (1, 2))
    collector = RtsCollector(settings)
    fleet.end(ended(on_time))
    fleet.drain()
    before = samples(exposed(collector))
    fleet.publish(stuck)
    fleet.end(ended(late))
    fleet.drain()
    fleet.look()
    after = samples(exposed(collector))
    collector.close()
    for name in ("rts_deadlines_total", "rts_misses_total"):
        assert sum(n - before[key] for key, n in after.items() if key[0] == name) == 2


def queues() -> list[WaitingQueue]:
    return [(QueueState('q"1', 5, 2, 1, None), 3)]


def test_every_metric_is_there_and_promtool_finds_no_fault(
    fleet: Fleet, settings: Settings, redis_client: redis.Redis
) -> None:
    rng = random.Random(8)
    fleet.end(*(ended(task(n, rng, 100.0 - n)) for n in range(200)))
    late = task(1000, rng, -5.0)._replace(queue="q1")
    stuck = task(1002, rng, -5.0)._replace(queue="q1", name="stuck")
    fleet.publish(late, stuck, task(1001, rng, 500.0))
    redis_client.hset(settings.keys.running, "t1002|0|i|1", stuck.to_json())
    redis_client.hset(settings.keys.running, "odd", "[]")
    fleet.drain()
    fleet.look()
    redis_client.hset(settings.keys.counters, mapping={"breaker_opened": 4, "refused_plan": 2})
    redis_client.delete(settings.keys.outbox)  # which is empty, and knows its last id
    redis_client.xadd(settings.keys.outbox, {"r": "{}"}, id="1000-1")
    load = {"load": 0.5, "cpu": 0.25, "gpu": None, "age_s": 0.1}
    beat = {"seen_at": time.time(), "worker": "w@1", "concurrency": 4, "load": load}
    redis_client.hset(settings.keys.workers, "w@1/1", json.dumps(beat))
    redis_client.hset(settings.keys.workers, "w@1/0", json.dumps({**beat, "seen_at": 1.0}))
    redis_client.hset(settings.keys.workers, "odd", "[]")

    collector = RtsCollector(settings, queues)
    text = exposed(collector)
    registry = CollectorRegistry()
    registry.register(collector)
    families = {
        f.name
        for f in openmetrics.text_string_to_metric_families(
            exposition.generate_latest(registry).decode()
        )
    }
    collector.close()
    assert values(text, "rts_up", "server") == {"redis": 1, "mongodb": 1, "broker": 1}
    assert values(text, "rts_queue_messages", "queue", "form") == {
        ('q"1', "ordered"): 5,
        ('q"1', "demoted"): 2,
        ('q"1', "plain"): 1,
    }
    assert values(text, "rts_hopeless_tasks", "queue") == {'q"1': 3}
    assert values(text, "rts_worker_slots", "worker") == {"w@1": 4}
    assert values(text, "rts_worker_load_ratio", "resource") == {"load": 0.5, "cpu": 0.25}
    assert values(text, "rts_breaker_opened_total") == {(): 4}
    assert values(text, "rts_refused_total", "what")["refused_plan"] == 2
    assert values(text, "rts_outbox_records") == {(): 1}
    assert values(text, "rts_outbox_lag_seconds")[()] > 1e9
    assert values(text, "rts_slo_target_ratio", "objective") == {"cpu-light": 0.99, "*": 0.9}
    assert values(text, "rts_slo_window_verdicts", "window")["5m"] == 202
    assert values(text, "rts_open_tasks") == {(): 1}
    overdue = values(text, "rts_overdue_tasks", "queue", "state")
    assert (overdue["q1", "running"], overdue["q1", "waiting"]) == (1, 1)
    assert values(text, "rts_tau_seconds", "task_type", "task")[("mixed", "")] > 0
    buckets = values(text, "rts_lateness_seconds_bucket", "le")
    assert set(buckets) == {*(repr(bound) for bound in LATENESS), "+Inf"}
    assert list(buckets.values()) == sorted(buckets.values())
    assert 0 < buckets["0.0"] < 200
    assert "rts_runtime_seconds_sum" in text
    assert "rts_lateness_seconds_sum" not in text, "it may fall"
    assert {"rts_runs", "rts_lateness_seconds", "rts"} <= families
    checked = subprocess.run(
        [needed("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_redis_that_takes_no_records_is_not_up(settings: Settings) -> None:
    with RedisServer(arguments=("--maxmemory", "1")) as full:
        text = scraped(replace(settings, redis_url=full.url))
        assert values(text, "rts_up", "server") == {"redis": 0, "mongodb": 1}
        assert "rts_outbox_records 0.0" in text


def test_a_server_that_is_down_costs_its_own_metrics_only(settings: Settings) -> None:
    def broken() -> list[WaitingQueue]:
        raise RuntimeError("whatever")

    text = scraped(replace(settings, redis_url=NO_REDIS), broken)
    assert values(text, "rts_up", "server") == {"redis": 0, "mongodb": 1, "broker": 0}
    assert "rts_slo_target_ratio" in text
    assert "rts_slo_burn_rate" in text
    assert "rts_outbox_records" not in text
    text = scraped(replace(settings, mongo_url=NO_MONGO))
    assert values(text, "rts_up", "server") == {"redis": 1, "mongodb": 0}
    assert "rts_outbox_records" in text
    assert "rts_slo_burn_rate{" not in text
    assert values(text, "rts_slo_verdicts_total", "objective") == {"cpu-light": 0, "*": 0}


def test_servers_that_never_answer_are_not_waited_for(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        away = replace(
            settings, redis_url=f"redis://{address}/0", mongo_url=f"mongodb://{address}/rts"
        )
        collector = RtsCollector(away, patience_s=0.25)
        for _ in range(2):
            up = values(exposed(collector), "rts_up", "server")
            assert up == {"redis": 0, "mongodb": 0}
        collector.close()


def test_a_query_slower_than_a_scrape_is_in_the_next_one(settings: Settings) -> None:
    with MongoServer(arguments=("--setParameter", "enableTestCommands=true")) as slow:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(slow.url)
        with client:
            block = {"failCommands": ["count"], "blockConnection": True, "blockTimeMS": 3000}
            client.admin.command(
                "configureFailPoint", "failCommand", mode="alwaysOn", data=block
            )
        collector = RtsCollector(replace(settings, mongo_url=slow.url))

        def is_up() -> bool:
            return values(exposed(collector), "rts_up", "server")["mongodb"] == 1

        assert not is_up()
        wait_until(is_up)
        collector.close()


def test_a_scrape_does_not_wait_for_another(settings: Settings) -> None:
    asked, may_answer = threading.Event(), threading.Event()
    questions = Counter[str]()

    def hanging() -> list[WaitingQueue]:
        questions["asked"] += 1
        asked.set()
        may_answer.wait(60)
        return queues()

    collector = RtsCollector(settings, hanging, patience_s=60.0)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(exposed, collector)
        assert asked.wait(30)
        collector._patience_s = 0.05
        hasty = exposed(collector)
        assert not patient.done()
        assert values(hasty, "rts_up", "server")["broker"] == 0
        may_answer.set()
        assert values(patient.result(60), "rts_up", "server")["broker"] == 1
    assert questions["asked"] == 1
    collector.close()


def test_many_series_are_read_in_pages(settings: Settings, redis_client: redis.Redis) -> None:
    link = RecordingLink(settings)
    assert read(link, settings).runs == {}
    series = {f"runs\ncpu-light\nn{n}\nSUCCESS": n for n in range(5 * PAGE)}
    redis_client.hset(settings.keys.metrics, mapping=series)
    found = read(link, settings).runs
    assert found == {("cpu-light", f"n{n}", "SUCCESS"): n for n in range(5 * PAGE)}
    of_metrics = [
        command for command in link.asked if settings.keys.metrics.encode() in command
    ]
    assert len(of_metrics) > 5
    assert all(b"HSCAN" in command for command in of_metrics)
    link.close()


def test_similar_and_many_queues_do_not_fail_a_scrape(settings: Settings) -> None:
    names = [300 * "q" + "1", 300 * "q" + "2", *(f"q{n}" for n in range(1200))]
    text = scraped(settings, lambda: [(QueueState(n, 1, 2, 3, None), 4) for n in names])
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))
    hopeless = values(text, "rts_hopeless_tasks", "queue")
    assert hopeless[200 * "q"] == 8
    assert len(hopeless) == 1001
    assert sum(hopeless.values()) == 4 * len(names)


def test_a_ledger_that_takes_longer_than_a_scrape_shows_the_last_objectives(
    settings: Settings, ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.prepare()
    may_end = threading.Event()
    may_end.set()

    def counted(*question: Any) -> Any:
        may_end.wait(60)
        return standings(*question)

    monkeypatch.setattr(metrics, "standings", counted)
    collector = RtsCollector(settings, patience_s=30.0)
    assert values(exposed(collector), "rts_up", "server")["mongodb"] == 1
    may_end.clear()
    collector._patience_s = 0.05
    for _ in range(2):
        text = exposed(collector)
        assert values(text, "rts_up", "server")["mongodb"] == 1
        assert values(text, "rts_slo_burn_rate", "objective").keys() == {"cpu-light", "*"}
    collector._queries["mongodb"]._max_age_s = 0.0
    assert values(exposed(collector), "rts_up", "server")["mongodb"] == 0
    may_end.set()
    collector.close()


def test_a_slow_answer_is_replaced_by_the_last_one(settings: Settings) -> None:
    """In Flower, which has more to do than to serve Prometheus."""
    may_end = threading.Event()
    may_end.set()

    def answers() -> list[WaitingQueue]:
        may_end.wait(60)
        return queues()

    collector = RtsCollector(settings, answers, patience_s=5.0, max_age_s=MAX_AGE_S)
    assert values(exposed(collector), "rts_hopeless_tasks") == {(): 3}
    may_end.clear()
    collector._patience_s = 0.05
    collector._queries["broker"]._answered_at -= 120.0  # as long as there may be no scrape
    assert values(exposed(collector), "rts_hopeless_tasks") == {(): 3}
    may_end.set()
    collector.close()
