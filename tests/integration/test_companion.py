"""The companion process on real servers: alone, killed, orphaned."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from rts import health
from rts.clock import FleetClock
from rts.companion.attempts import attempt
from rts.companion.host_chores import HostChores
from rts.companion.instructions import Instructions
from rts.companion.ledger_chores import LedgerChores
from rts.companion.loop import drain_alone
from rts.companion.loop import run as run_companion
from rts.companion.process import LAST_S
from rts.companion.supervisor import Companion
from rts.errors import StoreUnavailable
from rts.ledger.drain import BATCH
from rts.ledger.outbox import RedisOutbox
from rts.ledger.spool import Spool
from rts.link.link import Link
from rts.link.scripts import pack
from rts.load.sample import LoadSample
from rts.ports import TauEntry
from rts.records import Execution
from rts.settings import Settings
from rts.tau.redis import RedisTauStore
from rts.testing import MongoServer, RedisServer, wait_until
from rts.unfinished.in_flight import running_field
from rts.unfinished.shared_memory import SharedMemory
from tests.conftest import ROOT
from tests.records import as_line, run, success
from tests.relay import AHEAD_S, Ahead, relay

pytestmark = pytest.mark.measured

#: What every process that a test starts may take, on a busy machine.
PATIENCE_S = 60.0

#: That of the workers that the tests play.
MEMORY = SharedMemory.for_concurrency(2)


def instructions_of(settings: Settings, instance: str = "w@h/1-a") -> Instructions:
    """Return the instructions of a worker of two processes."""
    return Instructions(
        settings,
        "w@h",
        instance,
        os.getpid(),
        MEMORY.fd,
        MEMORY.notes.slots,
        None,
        logging.INFO,
    )


@pytest.fixture
def settings(
    rts_redis_url: str, rts_mongo_url: str, rts_key_prefix: str, tmp_path: Path
) -> Settings:
    return Settings(
        redis_url=rts_redis_url,
        mongo_url=rts_mongo_url,
        key_prefix=rts_key_prefix,
        spool_dir=str(tmp_path / "spool"),
    )


@pytest.fixture
def start() -> Iterator[Callable[..., Companion]]:
    """Start companions; they end with the test."""
    companions: list[Companion] = []

    def start(settings: Settings, instance: str = "w@h/1-a") -> Companion:
        companion = Companion()
        companions.append(companion)
        companion.start(instructions_of(settings, instance).to_json(), (MEMORY.fd,))
        return companion

    yield start
    for companion in companions:
        companion.stop()


def fill(client: Any, settings: Settings, n: int, first: int = 0) -> None:
    pipeline = client.pipeline(transaction=False)
    for i in range(first, first + n):
        done = run(str(i))._replace(state="SUCCESS", started_at=1.0, completed_at=2.0)
        pipeline.xadd(settings.keys.outbox, {"r": done._replace(runtime_s=1.0).to_json()})
    pipeline.execute()


def all_there(mongo: Any, n: int) -> Callable[[], bool]:
    return lambda: mongo.tasks.count_documents({}) == mongo.assignments.count_documents({}) == n


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_beats_drains_ships_and_deregisters(
    settings: Settings, start: Callable[..., Companion], redis_client: redis.Redis, mongo: Any
) -> None:
    fill(redis_client, settings, 100)
    MEMORY.load.write(LoadSample.of(0.5, 0.25, sampled_at=time.monotonic() + PATIENCE_S))
    Spool(settings.spool_dir, 1 << 20).append_line(
        as_line(run("spooled")._replace(state="FAILURE", completed_at=2.0))
    )
    companion = start(settings)
    wait_until(all_there(mongo, 101), PATIENCE_S)
    beat = json.loads(redis_client.hget(settings.keys.workers, "w@h/1-a") or "")
    assert beat["worker"] == "w@h"
    assert beat["concurrency"] == 2
    assert abs(beat["seen_at"] - redis_client.time()[0]) < 30
    assert beat["load"] == {"load": 0.375, "cpu": 0.5, "memory": 0.25, "age_s": 0.0}
    fill(redis_client, settings, 50, first=1000)
    pid = companion.pid
    companion.stop()
    assert not alive(pid)
    assert all_there(mongo, 151)(), "the last drain brought the rest"
    assert not redis_client.hexists(settings.keys.workers, "w@h/1-a")
    leases = (settings.keys.janitor, settings.keys.overdue_lease)
    assert not redis_client.exists(*leases), "another companion can go on at once"


def test_neither_counters_nor_heartbeat_suffer_where_redis_refuses_the_other(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts.companion.host_chores.BREAKER_S", 1e-6)
    chores, keys = HostChores(settings, drain=False), settings.keys
    beat = pack("HSET", keys.workers, "w@h/1-a", "{}")
    health.take_counts()
    health.count("receiver_errors")
    redis_client.set(keys.workers, "of another type")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            chores.beat(beat)
    redis_client.delete(keys.workers)
    redis_client.set(keys.counters, "of another type")
    chores.beat(beat)
    assert redis_client.hget(keys.workers, "w@h/1-a") == "{}"
    redis_client.delete(keys.counters)
    chores.beat(beat)
    assert redis_client.hget(keys.counters, "receiver_errors") == "1"
    chores.close()


def test_its_worker_goes_by_the_clock_of_redis(
    settings: Settings, start: Callable[..., Companion]
) -> None:
    with RedisServer() as server, relay(server, Ahead) as address:
        url = f"redis://127.0.0.1:{address.port}"
        companion = start(replace(settings, redis_url=url, drain=False))
        wait_until(lambda: MEMORY.clock_offset_s[0] > AHEAD_S - 60, PATIENCE_S)
        companion.stop()
    MEMORY.clock_offset_s[0] = 0.0


def test_without_a_drain_it_only_beats_and_ships(
    settings: Settings, start: Callable[..., Companion], redis_client: redis.Redis, mongo: Any
) -> None:
    settings = replace(settings, drain=False)
    Spool(settings.spool_dir, 1 << 20).append_line(as_line(run("a")))
    companion = start(settings)
    wait_until(lambda: redis_client.xlen(settings.keys.outbox) == 1, PATIENCE_S)
    wait_until(lambda: redis_client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)
    companion.stop()  # with a drain it would bring the rest
    assert redis_client.xlen(settings.keys.outbox) == 1
    assert mongo.tasks.count_documents({}) == 0


def test_it_ships_once_no_other_process_of_the_host_does(
    settings: Settings, start: Callable[..., Companion], redis_client: redis.Redis
) -> None:
    spool, beats = Spool(settings.spool_dir, 1 << 20), set()
    spool.append_line(as_line(run("a")))

    def has_beaten_again() -> bool:
        beats.update(redis_client.hvals(settings.keys.workers))
        return len(beats) > 2

    settings = replace(settings, drain=False)
    with spool.lease() as mine:
        assert mine
        start(settings)
        wait_until(has_beaten_again, PATIENCE_S)
        assert not redis_client.exists(settings.keys.outbox)
    wait_until(lambda: redis_client.xlen(settings.keys.outbox) == 1, PATIENCE_S)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("tls=true&tlsCAFile=/no/such.pem", "tlscafile file is not readable|No such file"),
        ("w=0&journal=true", "Cannot set w to 0"),
    ],
)
def test_with_an_unusable_mongodb_url_it_says_why_and_ships(
    settings: Settings,
    start: Callable[..., Companion],
    redis_client: redis.Redis,
    capfd: pytest.CaptureFixture[str],
    options: str,
    reason: str,
) -> None:
    settings = replace(settings, mongo_url=f"mongodb://me:hush@127.0.0.1:1/rts?{options}")
    Spool(settings.spool_dir, 1 << 20).append_line(as_line(run("a")))
    companion = start(settings)
    pid = companion.pid
    wait_until(lambda: redis_client.xlen(settings.keys.outbox) == 1, PATIENCE_S)
    counted = "configuration_errors"
    wait_until(lambda: redis_client.hget(settings.keys.counters, counted) == "1", PATIENCE_S)
    assert companion.pid == pid
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "cannot be used" in line]
    assert "rts_mongo_url = mongodb://***@127.0.0.1:1/rts?*** is not valid" in told
    assert re.search(reason, told)
    assert "hush" not in told


def test_a_killed_companion_is_restarted(
    settings: Settings, start: Callable[..., Companion], redis_client: redis.Redis, mongo: Any
) -> None:
    companion = start(settings)
    wait_until(lambda: redis_client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)
    first = companion.pid
    companion.set_queues(["emails"])
    worker = psutil.Process()
    descriptors = worker.num_fds()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: companion.pid not in (None, first), PATIENCE_S)
    wait_until(lambda: worker.num_fds() <= descriptors, PATIENCE_S)
    redis_client.delete(settings.keys.workers)
    beats = wait_until(lambda: redis_client.hvals(settings.keys.workers), PATIENCE_S)
    assert json.loads(beats[0])["queues"] == ["emails"]
    fill(redis_client, settings, 3)
    wait_until(all_there(mongo, 3), PATIENCE_S)


def test_files_of_the_app_do_not_shadow_modules(
    settings: Settings,
    start: Callable[..., Companion],
    redis_client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("redis", "logging", "socket", "pymongo", "rts"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hidden')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("PYTHONINSPECT", "1")
    start(settings)
    wait_until(lambda: redis_client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)


def test_an_agent_that_the_app_is_started_with_stays_there(
    settings: Settings,
    start: Callable[..., Companion],
    redis_client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('instrumented')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    start(settings)
    wait_until(lambda: redis_client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)


def kept(settings: Settings) -> list[Execution]:
    """Return the records that wait on the disk."""
    lines = b"".join(
        Path(path).read_bytes().rstrip(b"\0")
        for path in Spool(settings.spool_dir, 1 << 20).files()
    )
    return [Execution.from_json(line) for line in lines.splitlines() if line[:1] == b"["]


def begun(task_id: str, pid: int) -> None:
    """Note that a process of the worker that the tests play has begun a run."""
    note = run(task_id)._replace(started_at=time.time(), pid=pid, instance="w@h/1-a")
    assert MEMORY.notes.put(note.to_json().encode()) is not None


def test_it_deregisters_and_settles_killed_runs_while_mongodb_hangs(
    settings: Settings, start: Callable[..., Companion], redis_client: redis.Redis
) -> None:
    outbox = settings.keys.outbox
    with MongoServer() as server:
        companion = start(replace(settings, mongo_url=server.url))
        fill(redis_client, settings, 1)
        wait_until(lambda: redis_client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)
        wait_until(lambda: redis_client.xlen(outbox) == 0, PATIENCE_S)
        server.pause()
        fill(redis_client, settings, 3, first=1)
        wait_until(lambda: redis_client.xpending(outbox, "rts")["pending"] == 3, PATIENCE_S)
        killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        killed.kill()
        begun("killed", killed.pid)
        companion.stop()
        assert not redis_client.hexists(settings.keys.workers, "w@h/1-a")
        *hang, last = [fields["r"] for _, fields in redis_client.xrange(outbox)]
        assert len(hang) == 3
        end = Execution.from_json(last)
        assert (end.task_id, end.state) == ("killed", "LOST"), "Redis does not hang"
        assert kept(settings) == []
        killed.communicate()


def test_it_leaves_no_file_of_its_own(
    settings: Settings, start: Callable[..., Companion], redis_client: redis.Redis, mongo: Any
) -> None:
    companion = start(settings)
    wait_until(lambda: redis_client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    killed.kill()
    begun("killed", killed.pid)
    companion.stop()
    assert Spool(settings.spool_dir, 1 << 20).files() == []
    assert mongo.tasks.count_documents({"_id": "killed", "state": "LOST"}) == 1
    killed.communicate()


@pytest.mark.parametrize("trouble", ["away", "hangs", None])
def test_a_run_that_goes_on_is_known_somewhere(
    settings: Settings,
    start: Callable[..., Companion],
    trouble: str | None,
) -> None:
    with RedisServer() as server:
        settings = replace(settings, redis_url=server.url, drain=False)
        companion = start(settings)
        client = redis.Redis.from_url(server.url, decode_responses=True)
        wait_until(lambda: client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)
        if trouble == "away":
            server.kill()
        elif trouble == "hangs":
            server.pause()
        runs_on = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        begun("goes on", runs_on.pid)
        companion.stop()
        if trouble is None:
            (field,) = client.hkeys(settings.keys.running)
            assert field == running_field("goes on", 0, "w@h/1-a", runs_on.pid)
            assert not kept(settings)
            assert not client.exists(settings.keys.outbox), "it has not ended"
        else:
            assert [(end.task_id, end.state) for end in kept(settings)] == [("goes on", "LOST")]
        runs_on.communicate(b"\n")
        for slot, note in MEMORY.notes.notes():
            MEMORY.notes.release(slot, note)
        client.close()


def test_it_settles_the_last_runs_though_it_is_suspended_meanwhile(
    settings: Settings, start: Callable[..., Companion]
) -> None:
    with RedisServer() as server:
        settings = replace(settings, redis_url=server.url)
        companion = start(settings)
        with redis.Redis.from_url(server.url) as client:
            wait_until(lambda: client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S)
        server.kill()
        process = companion._process
        begun("goes on", os.getpid())
        companion._close_pipe()  # as the worker's end does
        time.sleep(0.3)  # it waits for the run to die, and for Redis
        process.send_signal(signal.SIGSTOP)
        time.sleep(LAST_S)
        process.send_signal(signal.SIGCONT)
        process.wait(PATIENCE_S)
        assert [(end.task_id, end.state) for end in kept(settings)] == [("goes on", "LOST")]
        for slot, note in MEMORY.notes.notes():
            MEMORY.notes.release(slot, note)


@pytest.mark.parametrize(
    ("name", "value"),
    [("executable", "/nowhere/python"), ("frozen", True)],  # the latter as PyInstaller does
)
def test_a_companion_that_cannot_start_does_no_harm(
    start: Callable[..., Companion],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
) -> None:
    monkeypatch.setattr(sys, name, value, raising=False)
    companion = start(settings)
    assert companion.pid is None
    companion.stop()


def test_one_that_cannot_be_started_is_tried_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float | None] = []

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout)
            return len(waited) > 13

    monkeypatch.setattr(sys, "executable", "")
    companion = Companion()
    companion._stopping = Stopping()
    companion._watch("{}")
    assert waited[1::2] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


#: A worker's main process with a child that outlives it, and lets go of the pipe unless
#: the fork is a C library's.
_WORKER = """
import ctypes, os, sys, time
from rts.companion.supervisor import Companion
companion = Companion()
companion.start(sys.stdin.readline().rstrip(), (int(sys.argv[2]),))
child = os.fork() if sys.argv[1] == "python" else ctypes.PyDLL(None).fork()
if child == 0:
    time.sleep(120)
    os._exit(0)
print(companion.pid, child, flush=True)
sys.stdin.readline()
companion.stop(30)
"""


@contextmanager
def worker_with_a_child(
    settings: Settings, redis_client: redis.Redis, fork: str = "python"
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a worker and its companion's process id, for its end while the child goes on."""
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER, fork, str(MEMORY.fd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=ROOT,
        pass_fds=(MEMORY.fd,),
    ) as worker:
        worker.stdin.write(instructions_of(settings).to_json() + "\n")
        pid, child = map(int, worker.stdout.readline().split())
        try:
            wait_until(
                lambda: redis_client.hexists(settings.keys.workers, "w@h/1-a"), PATIENCE_S
            )
            yield worker, pid
            assert alive(child)
            assert not redis_client.hexists(settings.keys.workers, "w@h/1-a")
        finally:
            worker.kill()
            os.kill(child, signal.SIGKILL)
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("fork", ["python", "c"])
def test_it_ends_with_a_worker_that_is_killed(
    settings: Settings, redis_client: redis.Redis, fork: str
) -> None:
    with worker_with_a_child(settings, redis_client, fork) as (worker, pid):
        worker.kill()
        wait_until(lambda: not alive(pid), PATIENCE_S)


def test_it_ends_though_a_child_of_the_worker_goes_on(
    settings: Settings, redis_client: redis.Redis
) -> None:
    with worker_with_a_child(settings, redis_client) as (worker, _):
        worker.stdin.write("stop\n")
        worker.wait(PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_processes_are_left_to_the_worker(
    settings: Settings, redis_client: redis.Redis, start: Callable[..., Companion], number: int
) -> None:
    companion, workers = start(settings), settings.keys.workers
    wait_until(lambda: redis_client.hexists(workers, "w@h/1-a"), PATIENCE_S)
    process = companion._process
    companion._stopping.set()  # a worker would start another one
    process.send_signal(number)
    redis_client.delete(workers)
    wait_until(lambda: redis_client.hexists(workers, "w@h/1-a"), PATIENCE_S)
    companion._close_pipe()
    assert process.wait(PATIENCE_S) == 0


def test_a_drain_is_killed_in_the_middle_and_another_takes_over(
    settings: Settings, start: Callable[..., Companion], redis_client: redis.Redis, mongo: Any
) -> None:
    fill(redis_client, settings, 2000)
    first = start(settings)
    wait_until(lambda: mongo.tasks.count_documents({}) > 0, PATIENCE_S, interval=0.001)
    first._stopping.set()
    os.kill(first.pid, signal.SIGKILL)
    fill(redis_client, settings, 500, first=2000)
    start(settings, "w@h/2-b")
    wait_until(all_there(mongo, 2500), PATIENCE_S)
    wait_until(lambda: redis_client.xlen(settings.keys.outbox) == 0, PATIENCE_S)
    assert mongo.tasks.count_documents({"attempts": 1}) == 2500


def test_taus_come_back_after_a_wipe(
    settings: Settings, start: Callable[..., Companion], mongo: Any
) -> None:
    with RedisServer() as server:
        settings = replace(settings, redis_url=server.url, timeout=5.0)
        store = RedisTauStore(Link(settings), settings)
        store.update("cpu-light", "proj.add", 7.5)
        kept = dict(store.entries())
        assert kept["cpu-light"] == TauEntry(5.5, 1, 2.5)
        companion = start(settings)
        wait_until(lambda: mongo.tau.count_documents({}) == len(kept), PATIENCE_S)
        with redis.Redis.from_url(server.url) as client:
            for _ in range(2):
                client.flushall()
                wait_until(lambda: dict(store.entries()) == kept, PATIENCE_S)
            store.update("cpu-light", "proj.add", 9.5)  # a moment before the worker ends
            kept = dict(store.entries())
            companion.stop()
            client.flushall()
            assert mongo.tau.count_documents({}) == len(kept)
        drain_alone(settings, threading.Event(), once=True)
        assert dict(store.entries()) == kept


def test_an_outage_of_redis_is_logged_once_though_many_links_meet_it(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as own:
        chores = HostChores(replace(settings, redis_url=own.url), drain=True)
        ledger = chores.ledger
        chores.spool.append_line(as_line(success("a")))
        each = [chores.beat, chores.ship_rest, ledger.drain.step]
        each += [ledger.overdue.step, ledger.leader.evaluate_objectives]
        own.kill()
        for step in each:
            with pytest.raises(StoreUnavailable, match="is not usable"):
                step()
        assert caplog.text.count("is not usable") == 1
        own.start()
        for step in each:
            wait_until(partial(attempt, "again", step))
        assert caplog.text.count("answers again") == 1
        chores.close()


def test_a_companion_that_cannot_start_all_its_threads_ends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker starts another one. Else nobody might ever drain."""
    chores, stop = HostChores(settings, drain=True), threading.Event()
    stop.set()
    begun: list[threading.Thread] = []
    start = threading.Thread.start

    def start_few(thread: threading.Thread) -> None:
        if len(begun) == 4:
            raise RuntimeError("can't start new thread")  # as where a limit is reached
        begun.append(thread)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_few)
        with pytest.raises(RuntimeError, match="new thread"):
            run_companion(chores, stop)
    chores.close()


def test_a_drain_alone_does_what_a_companion_does(
    settings: Settings, redis_client: redis.Redis, mongo: Any
) -> None:
    fill(redis_client, settings, 1500)
    Spool(settings.spool_dir, 1 << 20).append_line(
        as_line(run("spooled")._replace(state="FAILURE", completed_at=2.0))
    )
    assert drain_alone(settings, threading.Event(), once=True) == 1501
    assert all_there(mongo, 1501)()
    assert not redis_client.exists(settings.keys.workers)
    stop = threading.Event()
    thread = threading.Thread(target=drain_alone, args=(settings, stop))
    thread.start()
    fill(redis_client, settings, 5, first=2000)
    try:
        wait_until(all_there(mongo, 1506), PATIENCE_S)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_draining_once_takes_over_what_a_dead_drain_had_claimed(
    settings: Settings, redis_client: redis.Redis, mongo: Any
) -> None:
    fill(redis_client, settings, 10)
    assert len(RedisOutbox(Link(settings), settings, "killed").read(5).entries) == 5
    assert drain_alone(settings, threading.Event(), once=True) == 10
    assert all_there(mongo, 10)()


def test_draining_once_makes_room_in_a_redis_that_is_full(
    settings: Settings, mongo: Any
) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        settings = replace(settings, redis_url=server.url)
        drain_alone(settings, threading.Event(), once=True)
        fill(client, settings, 10)
        Spool(settings.spool_dir, 1 << 20).append_line(as_line(success("spooled")))
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable):  # it takes nothing from the spool
            drain_alone(settings, threading.Event(), once=True)
        assert all_there(mongo, 10)()
        assert client.xlen(settings.keys.outbox) == 0


def test_a_last_drain_ends_in_time_though_the_outbox_is_not_empty(
    settings: Settings, redis_client: redis.Redis, mongo: Any
) -> None:
    fill(redis_client, settings, 2 * BATCH + 1)
    chores = LedgerChores(settings, FleetClock(), "a", health.Outages(time.monotonic))
    chores.drain_all(0.0)
    assert chores.drain.moved == BATCH
    chores.drain_all(PATIENCE_S)
    assert all_there(mongo, 2 * BATCH + 1)()
    chores.close()


def test_busy_days_are_rolled_up_ahead_by_one_of_the_fleet(
    settings: Settings, redis_client: redis.Redis, mongo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts.views.intervals.DIRECT", 5)
    an_hour_ago = time.time() - 3600
    for i in range(10):
        done = success(str(i))._replace(completed_at=an_hour_ago - 60 * i)
        redis_client.xadd(settings.keys.outbox, {"r": done.to_json()})
    outages = health.Outages(time.monotonic)
    first, second = (LedgerChores(settings, FleetClock(), name, outages) for name in "ab")
    first.drain_all(5.0)
    first.roll_up()
    kept = mongo.rollups.count_documents({"tallies.type": {"$exists": True}})
    assert kept > 0
    mongo.rollups.delete_many({})
    second.roll_up()
    assert mongo.rollups.count_documents({}) == 0, "it was done a moment ago"
    for chores in (first, second):
        chores.close()
