"""Lost runs on a real Redis; only the janitor's own sense of time is moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis

from rts import health
from rts.clock import FleetClock
from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.records import LOST, Execution
from rts.settings import Settings
from rts.testing import RedisServer
from rts.unfinished.heartbeat import LOST_AFTER_S
from rts.unfinished.in_flight import (
    REPEAT_STEPS,
    InFlightRuns,
    instance_of,
    new_instance,
    running_field,
)
from rts.unfinished.janitor import (
    FORGET_AFTER_S,
    MAX_GAP_S,
    ORPHANED_AFTER_S,
    Janitor,
    Orphans,
)
from rts.unfinished.notes import NoteBoard
from rts.unfinished.shared_memory import SharedMemory
from tests.clock import Clock
from tests.recording_link import RecordingLink
from tests.records import Kept, run

LIVING, DEAD = "w@h/1-living", "w@h/2-dead"


@pytest.fixture
def time() -> Clock:
    return Clock()


@pytest.fixture
def make(settings: Settings, time: Clock) -> Callable[[str], Janitor]:
    return lambda name: Janitor(Link(settings), settings, FleetClock(), name, now=time)


def note(
    client: Any, settings: Settings, task_id: str, instance: str, pid: int = 1
) -> Execution:
    """Write the note of a run that goes on."""
    execution = run(task_id)._replace(instance=instance, started_at=100.0, pid=pid)
    field = running_field(task_id, 0, instance, pid)
    client.hset(settings.keys.running, field, execution.to_json())
    return execution


def watch(
    janitor: Janitor, client: Any, settings: Settings, time: Clock, seconds: float
) -> int:
    """Let *seconds* pass, in looks 2 s apart, while the living worker beats."""
    ended = 0
    for _ in range(int(seconds / 2)):
        time.at += 2
        beat = json.dumps({"seen_at": 1.0, "beat": time.at})
        client.hset(settings.keys.workers, LIVING, beat)
        ended += janitor.step()
    return ended


def records(client: Any, settings: Settings) -> list[Execution]:
    entries = client.xrange(settings.keys.outbox)
    return [Execution.from_json(fields["r"]) for _, fields in entries]


def test_runs_of_a_silent_worker_are_lost_and_others_are_not(
    settings: Settings, redis_client: redis.Redis, make: Callable[[str], Janitor], time: Clock
) -> None:
    client = redis_client
    client.hset(settings.keys.workers, DEAD, json.dumps({"seen_at": 1e12}))
    note(client, settings, "alive", LIVING)
    lost = note(client, settings, "lost", DEAD)
    never_seen = note(client, settings, "strange|id", "w@h/3-never")
    client.zadd(settings.keys.open, {"alive": 2e9, "lost": 2e9})
    client.hset(settings.keys.open_info, mapping={"alive": "q\n[]", "lost": "q\n[]"})
    client.hset(settings.keys.open_counts, "open q", 2)
    janitor = make("a")
    assert watch(janitor, client, settings, time, LOST_AFTER_S) == 0
    assert watch(janitor, client, settings, time, 6) == 2
    found = sorted(records(client, settings), key=lambda e: e.task_id)
    for end, begin in zip(found, (lost, never_seen), strict=True):
        assert abs(end.completed_at - client.time()[0]) < 30
        assert end == begin._replace(state=LOST, cause="lost", completed_at=end.completed_at)
    assert client.hlen(settings.keys.running) == 1
    assert client.zrange(settings.keys.open, 0, -1) == ["alive"]
    assert client.hkeys(settings.keys.open_info) == ["alive"]
    assert client.hgetall(settings.keys.open_counts) == {"open q": "1"}
    assert client.zrange(settings.keys.closed, 0, -1) == ["lost", "strange|id"]
    assert client.hget(settings.keys.counters, "runs_lost") == "2"
    assert watch(janitor, client, settings, time, 20) == 0
    assert client.hexists(settings.keys.workers, DEAD)
    watch(janitor, client, settings, time, FORGET_AFTER_S)
    assert client.hkeys(settings.keys.workers) == [LIVING]


def test_counters_of_another_type_cost_no_end(
    settings: Settings, redis_client: redis.Redis, make: Callable[[str], Janitor], time: Clock
) -> None:
    client = redis_client
    client.set(settings.keys.counters, "mine")
    for task_id in ("a", "b"):
        note(client, settings, task_id, DEAD)
        client.zadd(settings.keys.open, {task_id: 2e9})
    assert watch(make("a"), client, settings, time, LOST_AFTER_S + 6) == 2
    assert not client.exists(settings.keys.running, settings.keys.open)
    assert {record.task_id for record in records(client, settings)} == {"a", "b"}


@pytest.mark.parametrize("node_name", ["celery@host", "a|b@host"])
def test_a_run_is_known_by_the_instance_of_its_worker(node_name: str) -> None:
    instance = new_instance(node_name)
    field = running_field("any|id", 0, instance, 1)
    assert instance_of(field.encode()) == instance


def test_after_a_pause_of_everything_no_run_is_lost(
    settings: Settings, redis_client: redis.Redis, make: Callable[[str], Janitor], time: Clock
) -> None:
    """An outage of Redis, a suspended host: all heartbeats are old."""
    client = redis_client
    client.hset(settings.keys.workers, DEAD, "{}")
    note(client, settings, "a", DEAD)
    janitor = make("a")
    assert watch(janitor, client, settings, time, LOST_AFTER_S) == 0
    time.at += MAX_GAP_S + 1000
    assert watch(janitor, client, settings, time, LOST_AFTER_S) == 0
    assert watch(janitor, client, settings, time, 6) == 1


def test_no_run_is_lost_because_a_full_redis_refused_heartbeats(
    url: str, raw: redis.Redis, time: Clock
) -> None:
    settings = Settings(redis_url=url, timeout=5.0, breaker_period=1e-6)
    raw.hset(settings.keys.workers, DEAD, "{}")
    note(raw, settings, "a", DEAD)
    janitor = Janitor(Link(settings), settings, FleetClock(), "a", now=time)
    assert watch(janitor, raw, settings, time, LOST_AFTER_S) == 0
    raw.config_set("maxmemory", 1)
    for _ in range(10):
        time.at += 2
        with pytest.raises(StoreUnavailable):
            janitor.step()
    raw.config_set("maxmemory", 0)
    assert watch(janitor, raw, settings, time, LOST_AFTER_S) == 0
    assert watch(janitor, raw, settings, time, 6) == 1


def test_one_janitor_looks_and_another_takes_over(
    settings: Settings, redis_client: redis.Redis, make: Callable[[str], Janitor], time: Clock
) -> None:
    client = redis_client
    first, second = make("a"), make("b")
    note(client, settings, "a", DEAD)
    first.step()
    assert watch(second, client, settings, time, 40) == 0
    first.leave()
    second.leave()
    assert watch(second, client, settings, time, LOST_AFTER_S + 6) == 1
    assert client.get(settings.keys.janitor) == "b"


def test_unreadable_notes_are_removed(
    settings: Settings, redis_client: redis.Redis, make: Callable[[str], Janitor], time: Clock
) -> None:
    client = redis_client
    for field in ("rubbish", "", "a|b", f"t|0|{DEAD}|1"):
        client.hset(settings.keys.running, field, "{")
    assert watch(make("a"), client, settings, time, LOST_AFTER_S + 6) == 0
    assert client.hlen(settings.keys.running) == 0
    assert client.xlen(settings.keys.outbox) == 0


def test_a_task_whose_id_is_a_number_holds_up_no_others(
    settings: Settings, redis_client: redis.Redis, make: Callable[[str], Janitor], time: Clock
) -> None:
    """As in a message of a producer in another language."""
    client = redis_client
    number: Any = 7
    for task_id in (number, "a"):
        note(client, settings, task_id, DEAD)
    assert watch(make("a"), client, settings, time, LOST_AFTER_S + 6) == 2
    assert {record.task_id for record in records(client, settings)} == {7, "a"}


def test_a_run_that_ends_meanwhile_is_not_lost(
    settings: Settings, redis_client: redis.Redis
) -> None:
    client = redis_client
    note(client, settings, "a", DEAD)
    field = running_field("a", 0, DEAD, 1).encode()

    note(client, settings, "b", DEAD)
    fields = [field, running_field("b", 0, DEAD, 1).encode()]
    client.hdel(settings.keys.running, field)
    assert Janitor(Link(settings), settings, FleetClock(), "a")._end(fields) == 1
    (end,) = records(client, settings)
    assert end.task_id == "b"


@pytest.fixture
def board() -> NoteBoard:
    return SharedMemory.for_concurrency(2).notes


def begun(task_id: str, pid: int) -> Execution:
    """Return the note of a run of process *pid*."""
    return run(task_id)._replace(instance=LIVING, started_at=100.0, pid=pid)


def test_runs_of_a_process_that_is_gone_end_after_a_grace(
    board: NoteBoard, time: Clock
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    board.put(begun("alive", os.getpid()).to_json().encode())
    killed = begun("killed", gone.pid)
    board.put(killed.to_json().encode())
    clock, sink = FleetClock(), Kept()
    orphans = Orphans(board, sink, clock, now=time)
    assert orphans.step() == 0
    clock.offset_s -= 3600  # the clock of Redis is set back
    time.at += ORPHANED_AFTER_S / 2
    assert orphans.step() == 0
    time.at += ORPHANED_AFTER_S
    assert orphans.step() == 1
    (end,) = sink.ends
    assert (end.run_id, end.state, end.cause) == (killed.run_id, LOST, "killed")
    assert end.completed_at <= clock.now() - 1.5 * ORPHANED_AFTER_S, "not when its process went"
    assert [note.task_id for _, note in board.notes()] == ["alive"]
    time.at += 10 * ORPHANED_AFTER_S
    assert orphans.step() == 0
    assert health.take_counts() == {"runs_lost": 1}


def test_an_end_that_the_main_process_wrote_is_not_written_again(
    board: NoteBoard, time: Clock
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    board.put(begun("killed", gone.pid).to_json().encode())
    clock, sink = FleetClock(), Kept()
    orphans = Orphans(board, sink, clock, now=time)
    orphans.step()
    assert board.take("killed") is not None
    time.at += 2 * ORPHANED_AFTER_S
    assert orphans.step() == 0
    assert not sink.ends


def test_in_flight_runs_are_published(
    settings: Settings, redis_client: redis.Redis, board: NoteBoard
) -> None:
    client, running = redis_client, settings.keys.running
    in_flight = InFlightRuns(Link(settings), settings, board, LIVING)
    in_flight.step()
    assert not client.exists(running)
    a, b = begun("a", 1), begun("b", 2)
    slot = board.put(a.to_json().encode())
    in_flight.step()
    board.put(b.to_json().encode())
    client.delete(running)  # a server that was wiped is told again
    for _ in range(REPEAT_STEPS):
        in_flight.step()
    found = {Execution.from_json(text) for text in client.hvals(running)}
    assert {note.task_id for note in found} == {"a", "b"}
    board.clear(slot)
    in_flight.step()
    assert client.hkeys(running) == [running_field("b", 0, LIVING, 2)]


def test_a_note_that_redis_has_is_sent_again_now_and_then(
    settings: Settings, board: NoteBoard
) -> None:
    link = RecordingLink(settings)
    in_flight = InFlightRuns(link, settings, board, LIVING)
    for number in range(2 * REPEAT_STEPS):
        board.put(begun(f"task-{number}", number + 1).to_json().encode())
    in_flight.step()
    first = len(b"".join(link.asked))
    link.asked.clear()
    for _ in range(REPEAT_STEPS):
        in_flight.step()
    again = list(map(len, link.asked))
    assert sum(again) < 1.5 * first
    assert max(again) < 0.2 * first, "a tenth in each step"


def test_the_last_publication_asks_redis_whatever_it_had(board: NoteBoard) -> None:
    with RedisServer() as server:
        settings = Settings(redis_url=server.url, timeout=5.0)
        in_flight = InFlightRuns(Link(settings), settings, board, LIVING)
        board.put(begun("a", 1).to_json().encode())
        in_flight.step()
        server.stop()
        with pytest.raises(StoreUnavailable):
            in_flight.publish()


def test_another_run_of_a_task_in_the_same_process_replaces_its_note(
    settings: Settings, redis_client: redis.Redis, board: NoteBoard
) -> None:
    in_flight = InFlightRuns(Link(settings), settings, board, LIVING)
    for started_at in (100.0, 200.0):  # its message was queued again
        slot = board.put(begun("a", 1)._replace(started_at=started_at).to_json().encode())
        in_flight.step()
        (text,) = redis_client.hvals(settings.keys.running)
        assert Execution.from_json(text).started_at == started_at
        board.clear(slot)


def test_what_an_earlier_companion_left_is_removed(
    settings: Settings, redis_client: redis.Redis, board: NoteBoard
) -> None:
    client, running = redis_client, settings.keys.running
    slots = [board.put(begun(task_id, 1).to_json().encode()) for task_id in ("a", "b")]
    InFlightRuns(Link(settings), settings, board, LIVING).step()
    note(client, settings, "c", DEAD)
    # That companion is killed; meanwhile one of the runs ends.
    assert client.hlen(running) == 3
    board.clear(slots[0])
    InFlightRuns(Link(settings), settings, board, LIVING).step()
    left = [running_field("b", 0, LIVING, 1), running_field("c", 0, DEAD, 1)]
    assert sorted(client.hkeys(running)) == left


def test_a_note_that_a_restored_server_has_again_is_removed(
    url: str, raw: redis.Redis, board: NoteBoard
) -> None:
    """Or one that lost its last writes, in a failover: whoever reconnects, may meet another."""
    settings = Settings(redis_url=url, timeout=5.0)
    running = settings.keys.running
    slots = [board.put(begun(task_id, 1).to_json().encode()) for task_id in ("a", "b")]
    in_flight = InFlightRuns(Link(settings), settings, board, LIVING)
    in_flight.step()
    then = raw.hgetall(running)
    board.clear(slots[0])
    in_flight.step()
    left = [running_field("b", 0, LIVING, 1)]
    assert raw.hkeys(running) == left
    raw.hset(running, mapping=then)
    raw.client_kill_filter(_type="normal", skipme=True)
    for _ in range(REPEAT_STEPS + 1):  # one of them connects again, as each heartbeat would
        in_flight.step()
    assert raw.hkeys(running) == left
