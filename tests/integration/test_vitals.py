"""Status, metrics and predictions report the same about one fleet, whoever wrote to Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.predictions.fleet import read_fleet
from rts.settings import Settings
from rts.views.readings import read
from rts.views.status import ask_redis
from tests.records import run


def test_all_see_the_same_workers(
    redis_client: redis.Redis, settings: Settings, link: Link
) -> None:
    now = redis_client.time()[0]

    def beat(instance: str, **told: Any) -> None:
        text = json.dumps({"seen_at": now, "queues": ["web"], **told})
        redis_client.hset(settings.keys.workers, instance, text)

    beat("a@h/1", worker="a@h", concurrency=4, load={"load": 0.5})
    beat("b@h/1", concurrency="2", load=["odd"], pid={}, host=7)
    beat("c@h/1", worker="c@h", concurrency=float("inf"))
    beat("d@h/1", worker="d@h", concurrency=1, seen_at=float("nan"))
    beat("e@h/1", worker="e@h", concurrency=1, seen_at=now - 60)
    beat("f@h/1", worker="f@h", concurrency=1, queues="web")  # not w, e and b
    beat("g@h/1", worker="g@h", concurrency=8, queues=[])
    redis_client.hset(settings.keys.workers, "h@h/1", "[" * 100_000)

    vitals = ask_redis(link, settings).vitals
    found = {w.worker: (w.slots, w.is_silent(vitals.now), w.queues) for w in vitals.workers}
    assert found == {
        "a@h": (4, False, ("web",)),
        "b@h": (2, False, ("web",)),
        "c@h": (None, False, ("web",)),
        "e@h": (1, True, ("web",)),
        "f@h": (1, False, None),
        "g@h": (8, False, ()),
    }
    assert (vitals.slots_for("web"), vitals.slots_for("mail")) == (7, 1)
    metrics = {worker.worker: worker.slots for worker in read(link, settings).workers}
    assert metrics == {w.worker: w.slots for w in vitals.live_workers}
    fleet = read_fleet(link, settings, "web", lambda name: [name])
    # Without c, which does not tell its slots, and g, which takes from no queue.
    assert {name: fleet.groups[group].slots for name, group in fleet.group_of.items()} == {
        "a@h/1": 4,
        "b@h/1": 2,
        "f@h/1": 1,
    }


def test_all_count_the_same_runs_and_counters(
    redis_client: redis.Redis, settings: Settings, link: Link
) -> None:
    now = float(redis_client.time()[0])
    keys = settings.keys
    note = run("late")._replace(started_at=now - 5, deadline=now - 1, queue="web")
    odd: list[Any] = [
        *(note._replace(deadline="soon"), note._replace(tau=float("nan"))),
        *(note._replace(started_at=[1]), note._replace(queue={}), note._replace(task_id=[])),
    ]
    keyless = note._replace(task_id="of no queue", queue=None)
    notes = [note, keyless, note._replace(task_id="on time", deadline=now + 100), *odd]
    for number, each in enumerate(notes):
        redis_client.hset(keys.running, f"f{number}", each.to_json())
    redis_client.hset(keys.running, "odd", "[]")
    redis_client.hset(keys.open_counts, mapping={"overdue web": 3, "open web": "²"})
    redis_client.hset(keys.open_counts, mapping={"overdue ": 5, "open ": 2})
    redis_client.hset(keys.counters, mapping={"redis_failures": 3, "zero": 0, "odd": "²"})
    beat = {"seen_at": now, "concurrency": 2, "queues": ["web"]}
    redis_client.hset(keys.workers, "w@h/1-a", json.dumps(beat))
    redis_client.xadd(keys.outbox, {"r": "{}"}, id=f"{int(now - 10) * 1000}-1")

    metrics = read(link, settings)
    assert metrics.overdue_running == {"web": 1, "unknown": 1}
    assert metrics.overdue_waiting == {"web": 2, "unknown": 4}
    for vitals in (ask_redis(link, settings).vitals, metrics.vitals):
        assert (vitals.notes, len(vitals.late)) == (len(notes) + 1, 2)
        assert vitals.counters == {"redis_failures": 3, "zero": 0}
        assert vitals.oldest_at == now - 10
        assert vitals.lag_s >= 10
    assert metrics.open_tasks == {"unknown": 2}
    fleet = read_fleet(link, settings, "web", lambda name: [name])
    found = sorted(each.task_id for each in fleet.running)
    assert found == ["late", "of no queue", "on time"]


def test_a_key_of_another_type_is_told_as_what_it_is(
    redis_client: redis.Redis, settings: Settings, link: Link
) -> None:
    redis_client.set(settings.keys.alerts, "somebody else's")
    with pytest.raises(StoreUnavailable, match=r"is not usable \(ResponseError"):
        ask_redis(link, settings)
