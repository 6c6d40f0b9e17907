"""Tasks that are published and never end: judged once, by one of the fleet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from rts.errors import StoreUnavailable
from rts.ledger import counting
from rts.ledger.refused import MANY
from rts.link.link import Link
from rts.records import OutboxEntry
from rts.settings import Settings
from rts.testing import wait_until
from rts.unfinished.in_flight import running_field
from rts.unfinished.overdue import (
    BATCH,
    KEPT_S,
    LEASE_S,
    MAX_GAP_S,
    SETTLE_S,
    STEP_S,
    OverdueSweep,
)
from tests.clock import Clock
from tests.conftest import MakeStage, Stage
from tests.memory_ledger import MemoryLedger
from tests.open_tasks import counts, end, events, note, overdue_sweep, task
from tests.records import run, success


def test_a_task_past_its_deadline_is_a_miss_once(
    settings: Settings, redis_client: redis.Redis
) -> None:
    note(settings, task("a", 1000.0), task("b", 4e9), task("c", 1001.0, queue="r"))
    ledger = MemoryLedger()
    first, second = overdue_sweep(settings, ledger), overdue_sweep(settings, ledger, "other")
    assert (first.step(), second.step(), first.step()) == (2, 0, 0)
    assert set(ledger.tasks) == {"a", "c"}
    found = ledger.tasks["a"]
    assert (found["state"], found["sla_success"], found["cause"]) == (
        "PENDING",
        False,
        "overdue",
    )
    assert (found["parent_id"], found["root_id"], found["queue"]) == ("parent", "root", "q")
    assert counts(redis_client, settings) == {"open q": 1, "overdue q": 1, "overdue r": 1}
    told, _ = events(settings)
    assert (told.task_id, told.name, told.queue) == ("a", "proj.add", "q")
    assert (told.deadline, told.worker) == (1000.0, None)
    assert told.seen_at == pytest.approx(time.time(), abs=60)
    # Its end, and a publish of it that comes late, make no second verdict.
    note(settings, task("a", 1000.0, retries=1))
    end(settings, "a")
    note(settings, task("a", 1000.0, retries=2))
    assert first.step() == 0
    assert counts(redis_client, settings) == {"open q": 1, "overdue r": 1}
    assert redis_client.hget(settings.keys.counters, "tasks_overdue") == "2"


def test_a_task_that_has_ended_in_the_ledger_is_only_removed(
    settings: Settings, redis_client: redis.Redis
) -> None:
    long_id = "i" * 5000  # which the ledger cuts
    ledger = MemoryLedger()
    ledger.write([OutboxEntry(str(n), success(i)) for n, i in enumerate(["a", long_id])])
    retried = run("r")._replace(state="RETRY", completed_at=2.0)
    ledger.write([OutboxEntry("r", retried)])
    note(settings, *(task(i, 1000.0) for i in ("a", long_id, "r")))
    assert overdue_sweep(settings, ledger).step() == 1
    assert [event.task_id for event in events(settings)] == ["r"]
    assert counts(redis_client, settings) == {"overdue q": 1}
    assert (ledger.tasks["r"]["state"], ledger.tasks["r"]["cause"]) == ("RETRY", "overdue")


def test_an_id_of_which_nothing_is_known_only_goes(
    settings: Settings, redis_client: redis.Redis
) -> None:
    keys = settings.keys
    redis_client.zadd(keys.open, {"stranger": 1000.0})
    redis_client.zadd(keys.overdue, {"of old": 1000.0})
    note(settings, task("a", 1000.0))
    ledger = MemoryLedger()
    assert overdue_sweep(settings, ledger).step() == 1
    assert ledger.tasks.keys() == {"a"}
    assert not redis_client.exists(keys.open)
    assert redis_client.zrange(keys.overdue, 0, -1) == ["a"]
    assert counts(redis_client, settings) == {"overdue q": 1}


@pytest.mark.parametrize("key", ["overdue", "judged"])
def test_a_key_of_another_type_costs_no_verdict(
    settings: Settings, redis_client: redis.Redis, key: str
) -> None:
    note(settings, task("a", 1000.0))
    redis_client.set(getattr(settings.keys, key), "mine")
    with pytest.raises(StoreUnavailable):
        overdue_sweep(settings, MemoryLedger()).step()
    assert redis_client.zscore(settings.keys.open, "a") == 1000.0


class Away(MemoryLedger):
    """A ledger whose server is away, before or after it has taken a write."""

    def __init__(self, after: bool) -> None:
        super().__init__()
        self.after = after
        self.is_away = True

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        if self.after:
            super().write(entries)
        if self.is_away:
            raise StoreUnavailable("away")
        return super().write(entries)


@pytest.mark.parametrize("after", [False, True])
def test_a_look_that_died_halfway_is_repeated(
    settings: Settings, redis_client: redis.Redis, after: bool
) -> None:
    note(settings, task("a", 1000.0))
    ledger = Away(after)
    looking = overdue_sweep(settings, ledger)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            looking.step()
        assert counts(redis_client, settings) == {"open q": 1}
    ledger.is_away = False
    assert looking.step() == 1
    assert len(events(settings)) == len(ledger.tasks) == 1


class Refusing(MemoryLedger):
    """A ledger that takes no task whose id begins with *poison*."""

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        if any(entry.execution.task_id.startswith("poison") for entry in entries):
            raise ValueError("not this one")
        return super().write(entries)


def test_a_verdict_that_cannot_be_stored_holds_up_no_others(settings: Settings) -> None:
    note(settings, task("poison", 1000.0), task("a", 1001.0))
    ledger = Refusing()
    looking = overdue_sweep(settings, ledger)
    assert (looking.step(), looking.step()) == (2, 0)
    assert ledger.tasks.keys() == {"a"}
    assert len(ledger.refused) == 1
    assert len(events(settings)) == 2


def test_a_ledger_that_refuses_every_verdict_is_reported(
    settings: Settings, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    note(settings, *(task(f"poison{n}", 1000.0) for n in range(MANY)))
    looking = overdue_sweep(settings, Refusing())
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="refuses every record"):
            looking.step()
    assert caplog.text.count("refuses every record") == 1
    assert redis_client.zcard(settings.keys.open) == MANY


def test_an_overdue_run_is_reported_with_its_worker(
    settings: Settings, redis_client: redis.Redis
) -> None:
    note(settings, task("a", 1000.0), task("a|b", 1000.0))
    goes_on = run("a")._replace(started_at=990.0, deadline=1000.0, retries=3)
    field = running_field("a", 3, goes_on.instance, 1)
    redis_client.hset(settings.keys.running, field, goes_on.to_json())
    redis_client.hset(settings.keys.running, running_field("a|b", 0, "w@h/1-a", 1), "[]")
    ledger = MemoryLedger()
    assert overdue_sweep(settings, ledger).step() == 2
    found = ledger.tasks["a"]
    assert (found["state"], found["worker"], found["retries"]) == ("STARTED", "w@h", 3)
    assert found["started_at"].timestamp() == 990.0
    assert not ledger.assignments, "its record comes with its end"
    assert ledger.tasks["a|b"]["state"] == "PENDING"
    told = {event.task_id: event for event in events(settings)}
    assert told["a"].worker == "w@h"


def test_many_at_once(settings: Settings, redis_client: redis.Redis) -> None:
    n = 6 * BATCH + 7
    note(settings, *(task(f"t{i}", 1000.0 + i, queue=f"q{i % 3}") for i in range(n)))
    ledger = MemoryLedger()
    looking, found = overdue_sweep(settings, ledger), 0
    while step := looking.step():
        found += step
    assert found == n == len(ledger.tasks)
    told = Counter(event.task_id for event in events(settings))
    assert told.most_common(1)[0][1] == 1
    assert len(told) == n
    end(settings, *(f"t{i}" for i in range(0, n, 2)))
    assert sum(counts(redis_client, settings).values()) == n // 2


def test_an_end_at_the_deadline_gets_time_to_arrive(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts.unfinished.overdue.OVERDUE_AFTER_S", 600.0)
    note(settings, *(task(str(ago_s), time.time() - ago_s) for ago_s in (-300, 300, 900)))
    assert overdue_sweep(settings, MemoryLedger()).step() == 1
    assert [event.task_id for event in events(settings)] == ["900"]


def test_after_a_silence_ends_get_time_to_arrive(settings: Settings) -> None:
    note(settings, task("a", 1000.0))
    now = Clock(1000.0)
    ledger = MemoryLedger()
    looking = overdue_sweep(settings, ledger, now=now)
    assert looking.step() == 0
    now.at += SETTLE_S / 2
    assert looking.step() == 0
    end(settings, "a")
    now.at += SETTLE_S
    assert looking.step() == 0
    note(settings, task("b", 1000.0))
    now.at += 1
    assert looking.step() == 1
    note(settings, task("c", 1000.0))
    now.at += MAX_GAP_S + 1
    assert looking.step() == 0
    now.at += SETTLE_S
    assert looking.step() == 1


class Stalling(Link):
    """A link to a server that answers a call some seconds late, by a test's clock."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__(settings)
        self.clock = clock
        self.stall_s = 0.0

    def call_each(self, *commands: bytes) -> list[Any]:
        self.clock.at += self.stall_s
        self.stall_s = 0.0
        return super().call_each(*commands)


@pytest.mark.parametrize("stall_s", [MAX_GAP_S - 0.1, MAX_GAP_S + 0.1])
def test_after_a_stall_ends_get_time_to_arrive(settings: Settings, stall_s: float) -> None:
    now = Clock(1000.0)
    link = Stalling(settings, now)
    looking = OverdueSweep(link, settings, MemoryLedger(), "me", now=now)
    looking.step()
    now.at += SETTLE_S
    note(settings, task("a", 1000.0))
    assert looking.step() == 1
    note(settings, *(task(i, time.time() - 1.5) for i in "bc"))
    link.stall_s = stall_s
    assert looking.step() == 0
    end(settings, "b")
    now.at += SETTLE_S
    assert looking.step() == 1
    assert [event.task_id for event in events(settings)] == ["a", "c"]


def test_a_backlog_is_judged_for_a_second_at_a_time_so_that_the_lease_holds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ticking(Clock):
        def __call__(self) -> float:
            self.at += STEP_S / 4
            return self.at

    monkeypatch.setattr("rts.unfinished.overdue.BATCH", 1)
    note(settings, *(task(str(number), 1000.0) for number in range(5)))
    looking = overdue_sweep(settings, MemoryLedger(), now=Ticking())
    found = [looking.step() for _ in range(20)]
    assert max(found) < sum(found) == 5


def test_a_task_that_never_ends_is_forgotten_some_day(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(settings, task("old", 1000.0), task("young", 1000.0))
    now = Clock(1000.0)
    looking = overdue_sweep(settings, MemoryLedger(), now=now)
    looking._looked_at = now.at
    assert looking.step() == 2
    redis_client.zincrby(settings.keys.overdue, -KEPT_S - 5, "old")
    now.at += 100
    looking._looked_at = now.at
    looking.step()
    assert redis_client.zrange(settings.keys.overdue, 0, -1) == ["young"]
    assert counts(redis_client, settings) == {"overdue q": 1}
    # At most so many are remembered, too.
    small = replace(settings, open_max=3)
    monkeypatch.setattr(counting, "MIN_JUDGED", 3)
    note(small, *(task(f"t{n}", 1000.0) for n in range(3)))
    for _ in range(2):
        overdue_sweep(small, MemoryLedger()).step()
    assert redis_client.zrange(settings.keys.overdue, 0, -1) == ["t0", "t1", "t2"]
    assert redis_client.zcard(settings.keys.judged) == 3


def test_what_is_too_old_goes_a_little_at_a_time(
    settings: Settings, redis_client: redis.Redis
) -> None:
    """Redis serves nobody else meanwhile."""
    keys, now = settings.keys, time.time()
    for key, age_s, n in ((keys.judged, 8 * 86400, 12_000), (keys.closed, 90, 2500)):
        redis_client.zadd(key, {f"old{i}": now - age_s for i in range(n)})
        redis_client.zadd(key, {"young": now})
    left = []
    sweep = overdue_sweep(settings, MemoryLedger())
    for _ in range(3):
        sweep._tidy_from = 0.0
        sweep.step()
        end(settings, "a")
        left.append((redis_client.zcard(keys.judged), redis_client.zcard(keys.closed)))
    assert left == [(7001, 1502), (2001, 502), (1, 2)]


def test_one_looks_until_it_releases_the_lease(settings: Settings) -> None:
    note(settings, task("a", 1000.0))
    first = overdue_sweep(settings, MemoryLedger())
    ledger = MemoryLedger()
    now = Clock(0.0)
    second = overdue_sweep(settings, ledger, "second", now=now)
    second._looked_at = 0.0
    first.step()
    note(settings, task("b", 1000.0))
    assert second.step() == 0
    first.leave()
    now.at += LEASE_S / 2  # it would have run out twice as late
    assert second.step() == 1
    first.leave()  # no longer its own
    assert Link(settings).call(
        b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n"
        % (len(settings.keys.overdue_lease), settings.keys.overdue_lease.encode())
    ) == [b"second"]


# -- with real workers ------------------------------------------------------------------------


def test_a_lost_task_is_overdue_within_5_seconds_of_its_deadline_and_once(
    producer: tuple[Stage, Celery],
    redis_client: redis.Redis,
    mongo: Any,
    settings: Settings,
    tmp_path: Path,
) -> None:
    stage, app = producer
    stage.worker("tests.apps.basic")
    wait_until(lambda: redis_client.exists(settings.keys.overdue_lease), message="it looks")
    marker = tmp_path / "marker"
    queue = stage.prefix.strip(":") + "-nobody"
    lost = app.send_task(
        "tests.apps.basic.ok", queue=queue, headers={"sla_deadline": time.time() + 2}
    )
    redis_client.delete(queue)
    slow = app.send_task(
        "tests.apps.basic.until", (str(marker),), headers={"sla_deadline": time.time() + 2}
    )
    fine = app.send_task("tests.apps.basic.ok")
    told = wait_until(
        lambda: {n.task_id: n for n in events(settings)} if len(events(settings)) == 2 else None
    )
    # By Redis's own clock, so that a busy host does not count.
    for result, state in ((lost, "PENDING"), (slow, "STARTED")):
        notice = told[result.id]
        assert (notice.worker is None) is (state == "PENDING")
        assert notice.deadline <= notice.seen_at <= notice.deadline + 5
        task = mongo.tasks.find_one({"_id": result.id})
        assert (task["state"], task["cause"], task["sla_success"]) == (state, "overdue", False)
        assert task["verdict_at"] == task["deadline"]
    # The one that runs ends at last.
    marker.touch()
    task = wait_until(lambda: mongo.tasks.find_one({"_id": slow.id, "state": "SUCCESS"}))
    assert (task["sla_success"], task["attempts"]) == (False, 1)
    assert task["verdict_at"] == task["deadline"] < task["completed_at"]
    assert mongo.tasks.find_one({"_id": fine.id})["sla_success"] is True
    assert len(events(settings)) == 2
    assert counts(redis_client, settings) == {f"overdue {queue}": 1}


def test_what_takes_a_tasks_place_and_never_runs_is_overdue(
    producer: tuple[Stage, Celery], redis_client: redis.Redis, mongo: Any, settings: Settings
) -> None:
    stage, app = producer
    stage.worker("tests.apps.basic")
    queue, name = stage.prefix.strip(":") + "-nobody", "tests.apps.basic.replaced_by"
    deadline = time.time() + 4
    options = {"queue": queue, "headers": {"sla_deadline": deadline}}
    lost = app.send_task(name, (options,))
    expired = app.send_task(name, ({"expires": 1e-3},))
    (told,) = wait_until(lambda: events(settings))
    assert (told.task_id, told.name, told.queue) == (lost.id, "tests.apps.basic.ok", queue)
    assert told.deadline == deadline
    task = mongo.tasks.find_one({"_id": lost.id})
    assert (task["state"], task["cause"], task["sla_success"]) == ("REPLACED", "overdue", False)
    assert (task["attempts"], task["completed_at"]) == (1, None)
    query = {"_id": expired.id, "state": "REVOKED", "cause": "expired", "sla_success": False}
    wait_until(lambda: mongo.tasks.find_one(query))
    assert counts(redis_client, settings) == {f"overdue {queue}": 1}


def test_a_task_of_a_producer_without_rts_is_open_where_it_is_received(
    make_stage: MakeStage, redis_client: redis.Redis, settings: Settings, tmp_path: Path
) -> None:
    stage, marker = make_stage(), tmp_path / "marker"
    app = Celery("plain", broker=stage.broker, backend=stage.backend, set_as_current=False)
    app.conf.update(task_default_queue=stage.conf["task_default_queue"])
    stage.worker("tests.apps.basic", concurrency=1)
    results = [app.send_task("tests.apps.basic.until", (str(marker),)) for _ in range(2)]
    queue = stage.conf["task_default_queue"]
    wait_until(lambda: counts(redis_client, settings) == {f"open {queue}": 2})
    marker.touch()
    for result in results:
        result.get(timeout=30)
    wait_until(lambda: counts(redis_client, settings) == {})
    app.close()
