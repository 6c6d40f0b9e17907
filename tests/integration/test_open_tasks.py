"""Tasks that are published: noted as open without a round trip, until their end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

import rts
from rts import health
from rts.alerting.alert import Alert
from rts.clock import FleetClock
from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.tau.cache import TauCache
from rts.testing import RedisServer, wait_until
from rts.unfinished import open_tasks as open_tasks_module
from rts.unfinished.open_tasks import OpenTasks
from rts.unfinished.overdue import SETTLE_S
from tests.clock import Clock
from tests.conftest import MakeStage, Stage, printed, python
from tests.forked import in_child
from tests.memory_ledger import MemoryLedger
from tests.open_tasks import counts, end, events, note, overdue_sweep, task


def test_notes_arrive_by_themselves_twice_a_second(
    settings: Settings, redis_client: redis.Redis
) -> None:
    open_tasks = OpenTasks(Link(settings), settings, every_s=0.05)
    for n in range(3):
        open_tasks.note(task(f"a{n}", 2e9 + n))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 3)
    open_tasks.note(task("b", 2e9 + 9, queue=None))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 4)
    assert redis_client.zscore(settings.keys.open, "a1") == 2e9 + 1
    assert counts(redis_client, settings) == {"open q": 3, "open ": 1}
    open_tasks.stop()
    wait_until(lambda: open_tasks._thread is None or not open_tasks._thread.is_alive())


def test_its_thread_ends_when_nothing_is_published(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_tasks_module, "IDLE_S", 0.01)

    def used_and_dropped() -> weakref.ref[OpenTasks]:
        open_tasks = OpenTasks(Link(settings), settings, every_s=0.01)
        for n in range(1, 4):
            open_tasks.note(task(f"a{n}", 2e9))
            wait_until(lambda: open_tasks._thread is None)
            assert redis_client.zcard(settings.keys.open) == n
        return weakref.ref(open_tasks)

    gone = used_and_dropped()
    wait_until(lambda: gone() is None)


class Late(threading.Event):
    """Is set just after the first wait for it has ended."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        return self.waits > 1 and super().wait(timeout)


def test_a_note_that_comes_while_its_thread_is_about_to_end_is_delivered(
    settings: Settings, redis_client: redis.Redis
) -> None:
    open_tasks = OpenTasks(Link(settings), settings, every_s=0.01)
    open_tasks._work = Late()
    open_tasks.note(task("a", 2e9))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 1)
    open_tasks.stop()


def test_a_task_has_one_note_and_its_first_deadline(
    settings: Settings, redis_client: redis.Redis
) -> None:
    note(settings, task("a", 2e9), task("a", 3e9, retries=1, queue="other"))
    note(settings, task("a", 3e9))
    assert redis_client.zscore(settings.keys.open, "a") == 2e9
    assert counts(redis_client, settings) == {"open q": 1}


def test_what_takes_a_tasks_place_has_its_own_deadline(
    settings: Settings, redis_client: redis.Redis
) -> None:
    open_tasks = note(settings, task("a", 1000.0), task("b", 1000.0, queue="r"))
    open_tasks.note(task("a", 4e9, queue="r"), replaces=True)
    end(settings, "gone")
    open_tasks.note(task("gone", 4e9), replaces=True)
    open_tasks.flush()
    note(settings, task("a", 1000.0))
    end(settings, "a", state="REPLACED")
    assert redis_client.zscore(settings.keys.open, "a") == 4e9
    assert counts(redis_client, settings) == {"open r": 2}
    ledger = MemoryLedger()
    assert overdue_sweep(settings, ledger).step() == 1
    assert set(ledger.tasks) == {"b"}
    end(settings, "a")
    assert counts(redis_client, settings) == {"overdue r": 1}


def test_the_note_of_what_takes_a_tasks_place_may_come_first(
    settings: Settings, redis_client: redis.Redis
) -> None:
    open_tasks = note(settings)
    for deadline, replaces in ((4e9, True), (2e9, False)):
        open_tasks.note(task("both at once", deadline), replaces=replaces)
    for name, queue in (("a", "r\ns"), ("ended", "q")):
        open_tasks.note(task(name, 4e9, queue=queue, name="proj.other"), replaces=True)
    open_tasks.flush()
    end(settings, "ended")
    note(settings, *(task(name, 2e9) for name in ("a", "ended")))
    assert redis_client.zscore(settings.keys.open, "both at once") == 4e9
    assert redis_client.zscore(settings.keys.open, "a") == 4e9
    assert counts(redis_client, settings) == {"open r s": 1, "open q": 1}
    assert "proj.other" in redis_client.hget(settings.keys.open_info, "a")
    end(settings, "a", "both at once")
    open_tasks.note(task("a", 4e9), replaces=True)  # once more
    open_tasks.flush()
    assert counts(redis_client, settings) == {}


def test_an_end_closes_its_task_whoever_comes_first(
    settings: Settings, redis_client: redis.Redis
) -> None:
    note(settings, task("a", 2e9), task("b", 2e9, queue="r"), task("r", 2e9))
    end(settings, "a", "late", "a")
    end(settings, "r", state="RETRY")
    note(settings, task("late", 2e9), task("a", 2e9))
    assert redis_client.zrange(settings.keys.open, 0, -1) == ["b", "r"]
    assert counts(redis_client, settings) == {"open q": 1, "open r": 1}
    end(settings, "r", "b")
    assert counts(redis_client, settings) == {}
    assert redis_client.hlen(settings.keys.open_info) == 0
    assert redis_client.zcard(settings.keys.closed) == 4


def test_a_task_stays_ended_though_its_note_comes_once_more(rts_key_prefix: str) -> None:
    """A server that stalls carries out what it was sent before, after the client gave up."""
    with RedisServer() as server:
        settings = Settings(
            redis_url=server.url, key_prefix=rts_key_prefix, breaker_period=0.05
        )
        open_tasks = OpenTasks(Link(settings), settings, every_s=1e6)
        open_tasks._link.call(pack("PING"))
        open_tasks.note(task("a", 2e9))
        server.pause()
        open_tasks.flush()
        server.resume()
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            wait_until(lambda: client.zcard(settings.keys.open) == 1)
            end(settings, "a")
            assert len(open_tasks._notes) == 1
            open_tasks.stop()
            assert counts(client, settings) == {}


def test_a_task_that_is_published_with_the_id_of_one_that_ended_is_open(
    settings: Settings, redis_client: redis.Redis
) -> None:
    now = redis_client.time()[0]
    note(settings, task("a", now + 5))
    end(settings, "a")
    redis_client.zincrby(settings.keys.closed, -10, "a")
    note(settings, task("a", now + 5, arrival=now - 15))  # once more
    assert counts(redis_client, settings) == {}
    note(settings, task("a", now + 15, arrival=now))
    assert counts(redis_client, settings) == {"open q": 1}


def test_a_task_that_ended_before_an_outage_and_is_registered_after_it_is_not_open(
    settings: Settings, redis_client: redis.Redis
) -> None:
    closed = settings.keys.closed

    def pass_by(seconds: float) -> None:
        for task_id in redis_client.zrange(closed, 0, -1):
            redis_client.zincrby(closed, -seconds, task_id)

    end(settings, "long before")
    pass_by(10)
    end(settings, "a")
    pass_by(600)
    end(settings, "b")  # the first one after the outage
    note(settings, task("a", 1000.0))
    assert counts(redis_client, settings) == {}
    assert set(redis_client.zrange(closed, 0, -1)) == {"a", "b"}
    pass_by(600)
    end(settings, "c")
    assert set(redis_client.zrange(closed, 0, -1)) == {"b", "c"}


def test_an_ignored_task_is_not_overdue_where_the_ledger_has_its_end_later(
    settings: Settings, redis_client: redis.Redis
) -> None:
    note(settings, task("a", 1000.0))
    end(settings, "a", state="IGNORED")
    assert overdue_sweep(settings, MemoryLedger()).step() == 0
    assert counts(redis_client, settings) == {}


def test_the_buffer_is_bounded_while_redis_is_unavailable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_tasks_module, "MAX_NOTES", 10)
    away = replace(settings, redis_url="redis://127.0.0.1:9/0", breaker_period=60.0)
    open_tasks = OpenTasks(Link(away), away, every_s=1e6)
    for n in range(15):
        open_tasks.note(task(str(n), 2e9))
    assert health.take_counts()["open_notes_dropped"] == 5
    for _ in range(3):
        open_tasks.flush()
    assert [one.task_id for one, _ in open_tasks._notes] == [str(n) for n in range(10)]


def test_a_process_that_ends_delivers_its_notes_though_redis_failed_a_moment_ago(
    rts_key_prefix: str,
) -> None:
    with RedisServer() as server:
        settings = Settings(redis_url=server.url, key_prefix=rts_key_prefix, breaker_period=1e6)
        open_tasks = OpenTasks(Link(settings), settings, every_s=1e6)
        open_tasks.note(task("a", 2e9))
        server.halt()
        open_tasks.flush()
        server.start()
        open_tasks.stop()
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            assert client.zrange(settings.keys.open, 0, -1) == ["a"]


def test_notes_survive_an_outage(rts_key_prefix: str) -> None:
    with RedisServer() as server:
        settings = Settings(
            redis_url=server.url, key_prefix=rts_key_prefix, breaker_period=0.05
        )
        server.stop()
        open_tasks = OpenTasks(Link(settings), settings, every_s=0.05)
        open_tasks.note(task("a", 2e9))
        wait_until(lambda: health.take_counts().get("redis_failures"))
        server.start()
        with redis.Redis.from_url(server.url) as client:
            wait_until(lambda: client.zcard(settings.keys.open) == 1)
        open_tasks.stop()


def test_open_tasks_are_bounded(settings: Settings, redis_client: redis.Redis) -> None:
    small = replace(settings, open_max=5)
    note(small, *(task(str(n), 2e9) for n in range(3)))
    note(small, *(task(str(n), 2e9) for n in range(8)))
    assert redis_client.zcard(settings.keys.open) == 5
    assert redis_client.hget(settings.keys.counters, "open_tasks_refused") == "3"


def test_hostile_texts_are_noted_as_texts(
    settings: Settings, redis_client: redis.Redis
) -> None:
    bad: Sequence[Any] = ["\ud800", "a\nb", "'\"]", "\0", 7, None, "x" * 100_000, b"\xff"]
    note(settings, *(task(f"n{n}", 1.0, name=v, queue=v) for n, v in enumerate(bad)))
    note(settings, *(task(v, 1.0) for v in bad))
    assert redis_client.zcard(settings.keys.open) == 2 * len(bad)
    ledger = MemoryLedger()
    assert overdue_sweep(settings, ledger).step() == 2 * len(bad)
    assert sum(counts(redis_client, settings).values()) == 2 * len(bad)
    assert len(ledger.tasks) == len(events(settings)) == 2 * len(bad)


DEEP = "[" * 100_000


def test_foreign_notes_hold_up_no_verdict(
    settings: Settings, redis_client: redis.Redis
) -> None:
    note(settings, task("a", 1000.0))
    strange = (DEEP, '{"a":' * 100_000, '"letters of a text"', "{}", "[]", "7", "null", "\0")
    for n, known in enumerate([*strange, "[null, 1, [], {}, 5, 6, 7, 8, 9, 10, 11, 12, 13]"]):
        redis_client.zadd(settings.keys.open, {f"n{n}": 1.0})
        redis_client.hset(settings.keys.open_info, f"n{n}", f"q\n{known}")
    ledger = MemoryLedger()
    overdue_sweep(settings, ledger).step()
    assert ledger.tasks["a"]["cause"] == "overdue"
    assert redis_client.zcard(settings.keys.open) == 0
    with pytest.raises(ValueError, match="nested too deeply"):
        Alert.from_json(DEEP)


def test_queues_that_are_counted_apart_are_bounded(
    settings: Settings, redis_client: redis.Redis
) -> None:
    fill = {f"overdue {n}": 0 for n in range(1999)}
    redis_client.hset(settings.keys.open_counts, mapping=fill)
    note(settings, task("last", 1.0, queue="last"))
    note(settings, task("a", 1.0, queue="one more"), task("b", 1.0, queue="and more"))
    assert counts(redis_client, settings) == {"open last": 1, "open other": 2}
    end(settings, "a")
    assert counts(redis_client, settings) == {"open last": 1, "open other": 1}


def test_a_forked_child_starts_with_an_empty_buffer(
    settings: Settings, redis_client: redis.Redis
) -> None:
    open_tasks = note(settings, task("before", 2e9))
    open_tasks.note(task("the parent's", 2e9))

    def act() -> None:
        open_tasks._every_s = 0.05
        open_tasks.note(task("child", 2e9))
        wait_until(lambda: not open_tasks._notes)  # by its own thread
        open_tasks.flush()

    assert in_child(act)[1] == 0
    assert set(redis_client.zrange(settings.keys.open, 0, -1)) == {"before", "child"}
    open_tasks.stop()
    assert redis_client.zcard(settings.keys.open) == 3


FORKS = """
import sys
from importlib import import_module
from tests.apps.basic import app
publish = lambda task_id: app.send_task("tests.apps.basic.ok", task_id=task_id)
publish("parent")
child = import_module(sys.argv[1]).get_context("fork").Process(target=publish, args=("child",))
child.start()
child.join()
"""


@pytest.mark.parametrize("module", ["multiprocessing", "billiard"])
def test_a_child_of_multiprocessing_delivers_what_is_left_when_it_ends(
    make_stage: MakeStage, settings: Settings, redis_client: redis.Redis, module: str
) -> None:
    done = python("-W", "ignore", "-c", FORKS, module, env=make_stage().environment)
    assert done.returncode == 0, done.stderr
    assert set(redis_client.zrange(settings.keys.open, 0, -1)) == {"parent", "child"}


def test_without_threads_the_next_refresh_of_the_taus_takes_them_along(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    now = Clock(1000.0)
    open_tasks = OpenTasks(Link(settings), settings, now)
    open_tasks.note(task("a", 2e9))
    cache = TauCache(Link(settings), settings, FleetClock(), now, open_tasks.take_stranded)
    cache.refresh()
    assert redis_client.zcard(settings.keys.open) == 0  # the thread would still come
    now.at += 3
    health.count("something")
    cache.refresh()
    assert redis_client.zcard(settings.keys.open) == 1
    assert redis_client.hget(settings.keys.counters, "something") == "1"
    open_tasks.note(task("b", 2e9))
    now.at += 3
    away = replace(settings, redis_url="redis://127.0.0.1:9/0")
    TauCache(Link(away), away, FleetClock(), now, open_tasks.take_stranded).refresh()
    assert [one.task_id for one, _ in open_tasks._notes] == ["b"]


def test_a_thread_that_could_not_be_started_is_started_later(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    now = Clock(1000.0)
    open_tasks = OpenTasks(Link(settings), settings, now, every_s=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        open_tasks.note(task("a", 2e9))
    now.at += 3
    TauCache(Link(settings), settings, FleetClock(), now, open_tasks.take_stranded).refresh()
    assert redis_client.zcard(settings.keys.open) == 1
    open_tasks.note(task("b", 2e9))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 2)
    open_tasks.stop()


def refusing(server: RedisServer, how: str) -> None:
    client = redis.Redis.from_url(server.url)
    if how == "memory":
        client.config_set("maxmemory", "1")
    else:
        client.replicaof("127.0.0.1", "9")
    client.close()


@pytest.mark.parametrize("how", ["memory", "replica"])
def test_where_redis_refuses_notes_the_taus_are_still_read(how: str) -> None:
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url)
        settings = Settings(redis_url=server.url)
        link = Link(settings)
        open_tasks = OpenTasks(link, settings, every_s=1e6)
        cache = TauCache(link, settings, FleetClock(), take_stranded=open_tasks.take_stranded)
        client.hset(settings.keys.tau, "mixed", "7.5")
        refusing(server, how)
        open_tasks.note(task("a", 2e9))
        open_tasks.flush()
        assert not link.breaker.succeeded(), "it was closed"
        open_tasks._since -= 60  # as if the thread did not run
        cache.refresh()
        assert cache.tau("mixed", "x") == 7.5
        client.config_set("maxmemory", "0")
        client.replicaof("NO", "ONE")
        open_tasks.flush()
        assert client.zcard(settings.keys.open) == 1
        open_tasks.stop()
        client.close()


@pytest.mark.parametrize("how", ["memory", "replica"])
def test_a_task_is_not_overdue_while_redis_refuses_its_end(how: str) -> None:
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        settings = Settings(redis_url=server.url, breaker_period=1e-6)
        note(settings, task("a", 1000.0), task("b", 1000.0))
        now, ledger = Clock(1000.0), MemoryLedger()
        looking = overdue_sweep(settings, ledger, now=now)
        looking._looked_at = now.at
        assert looking._lease.acquire()
        refusing(server, how)
        for _ in range(2):
            with suppress(StoreUnavailable):
                looking.step()
            now.at += 1
        assert not ledger.tasks
        client.config_set("maxmemory", "0")
        client.replicaof("NO", "ONE")
        assert looking.step() == 0
        end(settings, "a")
        now.at += SETTLE_S
        assert looking.step() == 1
        assert set(ledger.tasks) == {"b"}
        client.close()


INTERRUPTED = """
import faulthandler, signal, socket, sys
import rts
from celery import Celery
faulthandler.dump_traceback_later(20, exit=True)
silent = socket.socket()
silent.bind(("127.0.0.1", 0))
silent.listen()
app = Celery("producer", broker="memory://")
app.conf.rts_redis_url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
rts.install(app)
rts.wiring.parts_of(app)
with app.connection_for_write() as connection:
    app.backend, connection.default_channel  # what is imported only once is there already
def publish(*_):
    app.send_task("no.two")
    print("two")
signal.signal(signal.SIGALRM, publish)
signal.setitimer(signal.ITIMER_REAL, 0.2)  # the first refresh waits for 0.5 s
app.send_task("no.one")
print("one")
"""


def test_a_signal_handler_may_publish_while_its_thread_does() -> None:
    done = python("-c", INTERRUPTED)
    assert done.stdout.split() == ["two", "one"], done.stderr


PRODUCER = """
import rts, sys
from celery import Celery
app = Celery("producer", broker=sys.argv[1])
app.conf.update(rts_key_prefix=sys.argv[2], task_default_queue=sys.argv[3], rts_timeout=5.0)
rts.install(app)
for k in (9, "x", [2]):
    app.send_task("no.one", headers={"sla_multiplier": k})
"""


def test_a_producer_that_ends_at_once_delivers_its_notes_and_counts(
    settings: Settings, redis_client: redis.Redis
) -> None:
    queue = settings.key_prefix.strip(":")
    printed(PRODUCER, settings.redis_url, settings.key_prefix, queue)
    assert counts(redis_client, settings) == {f"open {queue}": 3}
    assert redis_client.hgetall(settings.keys.counters) == {"refused_sla_multiplier": "3"}


def test_a_pool_child_that_ends_at_once_delivers_its_notes(
    producer: tuple[Stage, Celery], redis_client: redis.Redis
) -> None:
    stage, app = producer
    stage.worker(concurrency=1, arguments=("--max-tasks-per-child=1",))
    nobody = f"{app.conf.task_default_queue}-nobody"
    child = app.send_task("tests.apps.basic.nested", (nobody,)).get(timeout=60)
    wait_until(lambda: redis_client.zscore(f"{stage.prefix}open", child))


def test_a_publish_that_failed_is_not_noted(
    settings: Settings, redis_client: redis.Redis
) -> None:
    app = Celery("nobody", broker="redis://127.0.0.1:9/0", set_as_current=False)
    app.conf.update(
        rts_redis_url=settings.redis_url,
        rts_key_prefix=settings.key_prefix,
        task_publish_retry=False,
        broker_transport_options={"max_retries": 0},
    )
    rts.install(app)
    with pytest.raises(OperationalError):
        app.send_task("no.one")
    rts.uninstall(app)
    app.close()
    assert redis_client.zcard(settings.keys.open) == 0
