"""What heartbeats and ended runs tell of the queues that share workers."""

from __future__ import annotations

import json
import math
import mmap
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from rts.ledger.recent import RUNS, Recent
from rts.link.link import Link
from rts.predictions.fleet import MAX_RELATED, NOTED_S, Fleet, read_fleet
from rts.predictions.initial_state import recent_arrivals
from rts.predictions.work import Work
from rts.records import Execution
from rts.settings import Settings
from rts.simulation.queues import WorkerGroup
from rts.testing import wait_until
from rts.unfinished.received import BYTES, SIZE, Received, mark_of
from tests.conftest import MakeStage
from tests.records import run


@pytest.fixture
def settings(rts_redis_url: str, rts_key_prefix: str) -> Settings:
    return Settings(
        redis_url=rts_redis_url, key_prefix=rts_key_prefix, scheduler="edf", timeout=5.0
    )


def beat(
    client: redis.Redis,
    settings: Settings,
    name: str,
    queues: Sequence[str] | None,
    **more: Any,
) -> None:
    told = {"seen_at": time.time(), "concurrency": 2, "queues": queues, **more}
    client.hset(settings.keys.workers, name, json.dumps(told))


def fleet_of(settings: Settings, queue: str) -> Fleet:
    link = Link(settings)
    try:
        return read_fleet(link, settings, queue, lambda name: [name, f"to.{name}"])
    finally:
        link.close()


def test_workers_of_the_same_queues_are_one_group(
    redis_client: redis.Redis, settings: Settings
) -> None:
    beat(redis_client, settings, "a", ["mail", "web"])
    beat(redis_client, settings, "b", ["mail", "web", "video"])
    beat(redis_client, settings, "c", ["mail", "web"])
    beat(redis_client, settings, "d", ["video", "audio"])
    beat(redis_client, settings, "e", ["audio"])
    beat(redis_client, settings, "f", None)  # of a version that does not say
    beat(redis_client, settings, "g", ["audio"], concurrency=0)  # its pool has shrunk
    fleet = fleet_of(settings, "web")
    assert fleet.queues == ["web", "mail", "video", "audio"]  # the nearest first
    assert {group.queues: group.slots for group in fleet.groups} == {
        (1, 0): 4,
        (1, 0, 2): 2,
        (2, 3): 2,
        (3,): 2,
        (0,): 2,
    }
    assert fleet.slots == 8
    assert fleet.worker_slots == dict.fromkeys("abcdef", 2)
    assert fleet.group_of["a"] == fleet.group_of["c"] != fleet.group_of["d"]
    assert fleet.group_of["e"] not in (fleet.group_of["d"], fleet.group_of["f"])
    assert fleet.numbers["to.video"] == 2
    assert fleet_of(settings, "audio").queues == ["audio", "video", "mail", "web"]
    alone = fleet_of(settings, "nobody's")
    assert (alone.groups, alone.slots) == ([WorkerGroup(2)], 2)  # "f" may take from it
    assert alone.worker_slots == {"f": 2}


def test_in_order_of_arrival_each_worker_is_a_group(
    redis_client: redis.Redis, settings: Settings
) -> None:
    memory = mmap.mmap(-1, BYTES)
    received = Received(memory, 0)
    for number in range(3):
        received.put(f"task-{number}")
    received.share()
    settings = replace(settings, scheduler=None)
    beat(redis_client, settings, "a", ["web"], ahead=8, received=received.encoded())
    beat(redis_client, settings, "b", ["web"], ahead=None)
    beat(redis_client, settings, "c", ["web"])  # of a version that does not say
    beat(redis_client, settings, "d", ["web"], received="no marks")
    fleet = fleet_of(settings, "web")
    assert {name: fleet.groups[group] for name, group in fleet.group_of.items()} == {
        "a": WorkerGroup(2, prefetch=8),
        "b": WorkerGroup(2, prefetch=math.inf),
        "c": WorkerGroup(2),
        "d": WorkerGroup(2),
    }
    assert not fleet.all_report
    holder = {mark_of(f"task-{n}"): fleet.group_of["a"] for n in range(3)}
    assert fleet.receivers == holder
    # A retry that another one has received: which has it is not known.
    again = Received(mmap.mmap(-1, BYTES), 0)
    again.put("task-1")
    again.share()
    beat(redis_client, settings, "c", ["web"], received=again.encoded())
    fleet = fleet_of(settings, "web")
    assert fleet.receivers[mark_of("task-1")] is None
    assert fleet.receivers[mark_of("task-2")] == fleet.group_of["a"]


@pytest.mark.parametrize(
    ("pool", "conf", "ahead"),
    [
        ("threads", {"worker_prefetch_multiplier": 4}, 8),
        ("threads", {"worker_prefetch_multiplier": 0}, None),
        ("prefork", {"worker_prefetch_multiplier": 2, "rts_scheduler": "edf"}, 0),
        ("solo", {"worker_prefetch_multiplier": 4}, 0),
        ("threads", {"worker_prefetch_multiplier": 3, "task_acks_late": True}, 4),
    ],
)
def test_a_heartbeat_contains_the_prefetch_of_its_worker(
    make_stage: MakeStage,
    redis_client: redis.Redis,
    pool: str,
    conf: dict[str, Any],
    ahead: int | None,
) -> None:
    stage = make_stage(**conf)
    stage.worker(pool=pool, concurrency=2)
    (beat,) = wait_until(lambda: redis_client.hvals(f"{stage.prefix}workers"))
    assert json.loads(beat)["ahead"] == ahead


def test_only_the_nearest_related_queues_are_simulated(
    redis_client: redis.Redis, settings: Settings
) -> None:
    beat(redis_client, settings, "a", [f"user-{n:02}" for n in range(50)])
    fleet = fleet_of(settings, "user-40")
    assert fleet.queues == ["user-40", *(f"user-{n:02}" for n in range(MAX_RELATED))]


def test_recent_runs_are_complete_since_the_busiest_queue_was_trimmed(
    redis_client: redis.Redis, settings: Settings
) -> None:
    beat(redis_client, settings, "a", ["busy", "quiet"])

    def ended(queue: str, at: float) -> str:
        of = run(f"{queue}-{at}")
        return of._replace(queue=queue, started_at=at, completed_at=at).to_json()

    redis_client.rpush(settings.keys.recent + "quiet", *(ended("quiet", t) for t in (10, 20)))
    fleet = fleet_of(settings, "quiet")
    assert len(fleet.recent) == 2
    assert fleet.known_since == float("-inf")
    runs = [ended("busy", 1000.0 + number) for number in range(RUNS)]
    redis_client.rpush(settings.keys.recent + "to.busy", *runs)
    fleet = fleet_of(settings, "quiet")
    assert len(fleet.recent) == 2 + RUNS
    assert fleet.known_since == 1000.0
    # A batch may have been delivered twice.
    redis_client.lset(settings.keys.recent + "to.busy", 0, runs[1])
    fleet = fleet_of(settings, "quiet")
    assert len(fleet.recent) == 2 + RUNS - 1
    assert fleet.known_since == 1001.0


def ran(start: float, end: float, instance: str = "a") -> Recent:
    return Recent("1", "t", "mixed", start, 1.0, end, start, end, "mail", instance)


def running(start: float, instance: str = "a") -> Execution:
    return run("1")._replace(started_at=start, queue="mail", instance=instance)


#: Two slots, of which one was busy for eight and one for ten of ten seconds.
BUSY = Fleet(
    now=110.0 + NOTED_S,
    queues=["mail"],
    numbers={"mail": 0},
    groups=[WorkerGroup(2)],
    group_of={"a": 0},
    receivers={},
    all_report=True,
    worker_slots={"a": 2},
    running=[running(105.0)],
    recent=[ran(96.0, 104.0), ran(104.0, 108.0), ran(100.0, 105.0), ran(80.0, 90.0)],
    known_since=100.0,
)


@pytest.mark.parametrize(
    ("changes", "since", "share"),
    [
        ({}, 100.0, 0.9),
        ({}, 90.0, 0.9),  # what ended before 100 may be missing
        ({"groups": [WorkerGroup(1), WorkerGroup(1, (0, 1))]}, 100.0, None),
        ({"worker_slots": {"a": 3}}, 100.0, None),
        ({"worker_slots": {}}, 100.0, None),
        ({"recent": [ran(100.0, 110.0)] * 3}, 107.9, 1.0),
        ({"recent": [ran(100.0, 110.0)] * 3}, 108.1, None),
        # One whose slots were one third busy for six seconds, and one that has hardly begun.
        (
            {
                "worker_slots": {"a": 2, "b": 1, "c": 1},
                "running": [running(105.0), running(109.0, "c")],
                "recent": [*BUSY.recent, ran(104.0, 105.0, "b"), ran(107.0, 108.0, "b")],
            },
            100.0,
            20 / 26,
        ),
    ],
)
def test_the_share_of_busy_time_is_measured_where_enough_is_known(
    changes: dict[str, Any], since: float, share: float | None
) -> None:
    assert replace(BUSY, **changes).share(since) == (share and pytest.approx(share))


def test_the_share_of_busy_time_is_that_of_the_last_runs_of_the_workers_there_are() -> None:
    lately = [ran(at, at + 0.9) for at in range(90, 110)] * 2
    before = [ran(at, at + 0.9, "gone") for at in range(40, 60)]
    away = replace(BUSY, running=[], recent=[*before, *lately], known_since=0.0)
    assert away.share(40.0) == pytest.approx(0.9)
    fewer = [ran(at, at + 0.9) for at in range(50, 90)]  # the pool has grown since
    grown = replace(away, recent=[*fewer, *lately])
    assert grown.share(40.0) == pytest.approx(0.9)


def test_the_share_of_busy_time_is_measured_though_the_last_runs_were_short() -> None:
    short = [ran(at / 8, at / 8 + 0.1) for at in range(8 * 90, 8 * 110)]  # eight a second
    fleet = replace(BUSY, running=[], recent=short, worker_slots={"a": 1}, known_since=0.0)
    assert fleet.share(95.0) == pytest.approx(0.8)
    assert fleet.share(108.5) is None


def test_arrivals_count_until_those_that_may_have_started_unseen() -> None:
    arrivals = (100.0, 100.1, 102.0, 103.0, 104.0, 106.0, 109.9, 110.1)
    waiting = [Work("mixed", arrival, 1.0, 200.0) for arrival in arrivals]
    started = run("2")._replace(arrival=105.0, started_at=105.0, queue="mail")
    fleet = replace(BUSY, running=[started], recent=[ran(90.0, 99.0)])
    recent, span_s, unseen_s = recent_arrivals(fleet, waiting)
    assert sorted(work.arrival for work in recent) == sorted([*arrivals[1:-1], 105.0])
    assert (span_s, unseen_s) == (10.0, NOTED_S)
    assert recent_arrivals(replace(fleet, known_since=111.0), waiting) == ([], 0.0, NOTED_S)


def test_arrivals_count_since_the_first_end_that_is_known() -> None:
    waiting = [Work("mixed", arrival, 1.0, 200.0) for arrival in (89.0, 91.0)]
    over = ran(80.0, 95.0)._replace(arrival=92.0, queue="web")
    elsewhere = run("2")._replace(arrival=93.0, started_at=93.0, queue="of nobody here")
    fleet = replace(
        BUSY,
        numbers={"mail": 0, "web": 1},
        running=[elsewhere],
        recent=[ran(80.0, 90.0), over],
        known_since=-math.inf,
    )
    recent, span_s, _ = recent_arrivals(fleet, waiting)
    assert sorted((work.arrival, work.queue) for work in recent) == [(91.0, 0), (92.0, 1)]
    assert span_s == fleet.now - NOTED_S - 90.0
    assert recent_arrivals(replace(fleet, recent=[]), waiting) == ([], 0.0, NOTED_S)


def test_a_burst_counts_at_once_as_arrivals() -> None:
    waiting = [Work("mixed", at, 1.0, 200.0, weight=3.0) for at in (103.0, 107.0, 111.0)]
    fleet = replace(BUSY, running=[], recent=[ran(90.0, 99.0)])
    recent, span_s, unseen_s = recent_arrivals(fleet, waiting)
    assert recent == waiting
    assert (span_s, unseen_s) == (pytest.approx(10.0 + NOTED_S), 0.0)
    fewer = [*waiting[:2], waiting[2]._replace(weight=0.8)]
    assert recent_arrivals(fleet, fewer) == (waiting[:2], 10.0, NOTED_S)


def test_marks_are_complete_while_no_worker_holds_more_messages_than_it_reports() -> None:
    most = replace(BUSY, groups=[WorkerGroup(2, prefetch=SIZE - 5), WorkerGroup(1)])
    assert [most.marks_complete(etas) for etas in (0, 3, 4)] == [True, True, False]
    assert not replace(most, all_report=False).marks_complete(0)
