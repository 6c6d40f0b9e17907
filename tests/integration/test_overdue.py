"""Tasks that are published and never end: noted without a round trip, judged once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import rts
from rts import health
from rts.alerting.alert import Alert
from rts.clock import FleetClock
from rts.errors import StoreUnavailable
from rts.keys import running_field
from rts.ledger import announce
from rts.ledger.announce import Announcer
from rts.ledger.events import Event
from rts.ledger.overdue import BATCH, KEPT_S, MAX_GAP_S, SETTLE_S, OverdueSweep
from rts.link.link import Link
from rts.records import OpenTask, OutboxEntry
from rts.settings import Settings
from rts.tau.cache import TauCache
from rts.tau.finish import FinishCall, finish_entry
from rts.testing import RedisServer, wait_until
from tests.conftest import ROOT, Stage
from tests.memory_ledger import MemoryLedger
from tests.records import run, success

pytestmark = pytest.mark.usefixtures("unmeasured_processes")


class Time:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def task(task_id: str, deadline: float, **changes: Any) -> OpenTask:
    made = OpenTask(
        *(task_id, "proj.add", "mixed", "inferred", 5.0, 2.0, deadline - 10, deadline),
        *("published", "q", 0, "parent", "root"),
    )
    return made._replace(**changes)


def note(settings: Settings, *tasks: OpenTask) -> Announcer:
    announcer = Announcer(Link(settings), settings, every_s=1e6)
    for one in tasks:
        announcer.note(one)
    announcer.flush()
    return announcer


def end(settings: Settings, *task_ids: str, state: str = "SUCCESS") -> None:
    entries = [
        finish_entry(success(task_id)._replace(state=state), n)
        for n, task_id in enumerate(task_ids, 1)
    ]
    Link(settings).call(FinishCall(settings).pack(None, entries))


def counts(client: Any, settings: Settings) -> dict[str, int]:
    """Return the counts that are not 0, having checked that they agree with the sets."""
    keys = settings.keys
    with client.pipeline() as moment:  # workers may go on
        moment.hgetall(keys.open_counts)
        moment.zcard(keys.open).zcard(keys.overdue).hlen(keys.open_info)
        counted, *sizes, infos = moment.execute()
    found = {k: int(n) for k, n in counted.items() if int(n)}
    for what, size in zip(("open", "overdue"), sizes, strict=True):
        total = sum(n for field, n in found.items() if field.startswith(f"{what} "))
        assert total == size
    assert infos == sum(sizes)
    return found


def events(settings: Settings) -> list[Event]:
    client = redis.Redis.from_url(settings.redis_url)
    told = [values[b"e"] for _, values in client.xrange(settings.keys.events)]
    client.close()
    return [Event.from_json(text) for text in told]


def overdue_sweep(
    settings: Settings, ledger: Any, name: str = "me", **options: Any
) -> OverdueSweep:
    """Return one that has settled already, unless its time is moved by hand."""
    given = {"now": lambda: 0.0, **options}
    made = OverdueSweep(Link(settings), settings, ledger, name, overdue_after_s=0.0, **given)
    if "now" not in options:
        made._looked_at = 0.0
    return made


# -- what publishing does -----------------------------------------------------------------


def test_notes_arrive_by_themselves_twice_a_second(
    settings: Settings, redis_client: redis.Redis
) -> None:
    announcer = Announcer(Link(settings), settings, every_s=0.05)
    for n in range(3):
        announcer.note(task(f"a{n}", 2e9 + n))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 3)
    announcer.note(task("b", 2e9 + 9, queue=None))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 4)
    assert redis_client.zscore(settings.keys.open, "a1") == 2e9 + 1
    assert counts(redis_client, settings) == {"open q": 3, "open ": 1}
    announcer.stop()
    wait_until(lambda: announcer._thread is None or not announcer._thread.is_alive())


def test_its_thread_ends_when_nothing_is_published(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "IDLE_S", 0.01)

    def used_and_dropped() -> weakref.ref[Announcer]:
        announcer = Announcer(Link(settings), settings, every_s=0.01)
        for n in range(1, 4):
            announcer.note(task(f"a{n}", 2e9))
            wait_until(lambda: announcer._thread is None)
            assert redis_client.zcard(settings.keys.open) == n
        return weakref.ref(announcer)

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
    announcer = Announcer(Link(settings), settings, every_s=0.01)
    announcer._work = Late()
    announcer.note(task("a", 2e9))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 1)
    announcer.stop()


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
    announcer = note(settings, task("a", 1000.0), task("b", 1000.0, queue="r"))
    announcer.note(task("a", 4e9, queue="r"), again=True)
    announcer.note(task("gone", 4e9), again=True)  # its end came before the note
    announcer.flush()
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
    announcer = note(settings)
    for name, queue in (("a", "r\ns"), ("ended", "q"), ("of before", "q")):
        announcer.note(task(name, 4e9, queue=queue, name="proj.other"), again=True)
    announcer.flush()
    assert counts(redis_client, settings) == {}
    end(settings, "ended")
    note(settings, *(task(name, 2e9) for name in ("a", "ended")))
    note(settings, task("of before", 5e9))  # the id is used anew
    assert redis_client.zscore(settings.keys.open, "a") == 4e9
    assert redis_client.zscore(settings.keys.open, "of before") == 5e9
    assert counts(redis_client, settings) == {"open r s": 1, "open q": 1}
    assert "proj.other" in redis_client.hget(settings.keys.open_info, "a")
    assert redis_client.hkeys(settings.keys.ahead) == ["ended"]
    end(settings, "a")
    assert counts(redis_client, settings) == {"open q": 1}


def test_notes_that_wait_for_those_of_other_tasks_are_bounded(
    settings: Settings, redis_client: redis.Redis
) -> None:
    ahead = settings.keys.ahead
    redis_client.hset(ahead, mapping={str(n): "" for n in range(10_000)})
    announcer = note(settings)
    announcer.note(task("a", 4e9), again=True)
    announcer.flush()
    assert redis_client.hkeys(ahead) == ["a"]
    assert 0 < redis_client.ttl(ahead) <= 60


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
    monkeypatch.setattr(announce, "MAX_NOTES", 10)
    away = replace(settings, redis_url="redis://127.0.0.1:9/0", breaker_period=60.0)
    announcer = Announcer(Link(away), away, every_s=1e6)
    for n in range(15):
        announcer.note(task(str(n), 2e9))
    assert health.take_counts()["open_notes_dropped"] == 5
    for _ in range(3):
        announcer.flush()
    assert [one.task_id for one, _ in announcer.take(99)] == [str(n) for n in range(10)]


def test_notes_survive_an_outage(rts_key_prefix: str) -> None:
    with RedisServer() as server:
        settings = Settings(
            redis_url=server.url, key_prefix=rts_key_prefix, breaker_period=0.05
        )
        server.stop()
        announcer = Announcer(Link(settings), settings, every_s=0.05)
        announcer.note(task("a", 2e9))
        wait_until(lambda: health.take_counts().get("redis_failures"))
        server.start()
        with redis.Redis.from_url(server.url) as client:
            wait_until(lambda: client.zcard(settings.keys.open) == 1)
        announcer.stop()


def test_open_tasks_are_bounded(settings: Settings, redis_client: redis.Redis) -> None:
    note(replace(settings, open_max=5), *(task(str(n), 2e9) for n in range(8)))
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
    for read in (Event.from_json, Alert.from_json):
        with pytest.raises(ValueError, match="nested too deeply"):
            read(DEEP)


def test_queues_that_are_counted_apart_are_bounded(
    settings: Settings, redis_client: redis.Redis
) -> None:
    fill = {f"overdue {n}": 0 for n in range(2000)}
    redis_client.hset(settings.keys.open_counts, mapping=fill)
    note(settings, task("a", 1.0, queue="one more"), task("b", 1.0, queue="and more"))
    assert counts(redis_client, settings) == {"open other": 2}
    end(settings, "a")
    assert counts(redis_client, settings) == {"open other": 1}


def test_a_forked_child_starts_with_an_empty_buffer(
    settings: Settings, redis_client: redis.Redis
) -> None:
    announcer = Announcer(Link(settings), settings, every_s=0.05)
    announcer.note(task("before", 2e9))
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 1)
    announcer._notes.append((task("the parent's", 2e9), False))
    pid = os.fork()
    if not pid:
        announcer.note(task("child", 2e9))
        wait_until(lambda: not announcer._notes)  # by its own thread
        announcer.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 2)
    assert set(redis_client.zrange(settings.keys.open, 0, -1)) == {"before", "child"}
    announcer.stop()
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
    make_stage: Callable[..., Stage], settings: Settings, redis_client: redis.Redis, module: str
) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, module],
        env={**os.environ, **make_stage().environment},
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    assert set(redis_client.zrange(settings.keys.open, 0, -1)) == {"parent", "child"}


def test_without_threads_the_next_refresh_of_the_taus_takes_them_along(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    now = Time()
    announcer = Announcer(Link(settings), settings, now)
    announcer.note(task("a", 2e9))
    cache = TauCache(Link(settings), settings, FleetClock(), now, announcer)
    cache.refresh()
    assert redis_client.zcard(settings.keys.open) == 0  # the thread would still come
    now.at += 3
    health.count("something")
    cache.refresh()
    assert redis_client.zcard(settings.keys.open) == 1
    assert redis_client.hget(settings.keys.counters, "something") == "1"
    announcer.note(task("b", 2e9))
    now.at += 3
    away = replace(settings, redis_url="redis://127.0.0.1:9/0")
    TauCache(Link(away), away, FleetClock(), now, announcer).refresh()
    assert [one.task_id for one, _ in announcer.take(9)] == ["b"]


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
        announcer = Announcer(link, settings, every_s=1e6)
        cache = TauCache(link, settings, FleetClock(), passenger=announcer)
        client.hset(settings.keys.tau, "mixed", "7.5")
        refusing(server, how)
        announcer.note(task("a", 2e9))
        announcer.flush()
        assert not link.breaker.succeeded(), "it was closed"
        announcer._since -= 60  # as if the thread did not run
        cache.refresh()
        assert cache.tau("mixed", "x") == 7.5
        client.config_set("maxmemory", "0")
        client.replicaof("NO", "ONE")
        announcer.flush()
        assert client.zcard(settings.keys.open) == 1
        announcer.stop()
        client.close()


@pytest.mark.parametrize("how", ["memory", "replica"])
def test_a_task_is_not_overdue_while_redis_refuses_its_end(how: str) -> None:
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        settings = Settings(redis_url=server.url, breaker_period=1e-6)
        note(settings, task("a", 1000.0), task("b", 1000.0))
        now, ledger = Time(), MemoryLedger()
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
rts.integration.parts_of(app)
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
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
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
    arguments = [sys.executable, "-c", PRODUCER, settings.redis_url, settings.key_prefix, queue]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(arguments, check=True, timeout=60, env=env)
    assert counts(redis_client, settings) == {f"open {queue}": 3}
    assert redis_client.hgetall(settings.keys.counters) == {"refused_sla_multiplier": "3"}
    redis_client.delete(queue)


def test_a_publish_that_failed_is_not_noted(
    settings: Settings, redis_client: redis.Redis
) -> None:
    app = Celery("nobody", broker="redis://127.0.0.1:9/0", set_as_current=False)
    app.conf.update(
        rts_redis_url=settings.redis_url,
        rts_key_prefix=settings.key_prefix,
        task_publish_retry=False,
    )
    rts.install(app)
    with pytest.raises(Exception, match=r"."):
        app.send_task("no.one")
    rts.uninstall(app)
    app.close()
    assert redis_client.zcard(settings.keys.open) == 0


# -- the look --------------------------------------------------------------------------------


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
    assert (told.kind, told.task_id, told.name, told.queue) == ("overdue", "a", "proj.add", "q")
    assert (told.deadline, told.state, told.worker) == (1000.0, "PENDING", None)
    assert told.at == pytest.approx(time.time(), abs=60)
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
    assert ledger.tasks["a|b"]["state"] == "PENDING"
    told = {event.task_id: event for event in events(settings)}
    assert (told["a"].state, told["a"].worker, told["a"].retries) == ("STARTED", "w@h", 3)


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


def test_after_a_silence_ends_get_time_to_arrive(settings: Settings) -> None:
    note(settings, task("a", 1000.0))
    now = Time()
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


def test_a_task_that_never_ends_is_forgotten_some_day(
    settings: Settings, redis_client: redis.Redis
) -> None:
    note(settings, task("old", 1000.0), task("young", 1000.0))
    now = Time()
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
    note(small, *(task(f"t{n}", 1000.0) for n in range(3)))
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
    second = overdue_sweep(settings, ledger, "second")
    first.step()
    note(settings, task("b", 1000.0))
    assert second.step() == 0
    first.leave()
    second._ask_from = 0.0
    assert second.step() == 1
    first.leave()  # no longer its own
    assert Link(settings).call(
        b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n"
        % (len(settings.keys.overdue_lease), settings.keys.overdue_lease.encode())
    ) == [b"second"]


# -- with real workers ------------------------------------------------------------------------


@pytest.fixture
def producer(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery]
) -> tuple[Stage, Celery]:
    stage = make_stage()
    return stage, apps(stage)


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
        lambda: {e.task_id: e for e in events(settings)} if len(events(settings)) == 2 else None
    )
    # By Redis's own clock, so that a busy host does not count.
    for result, state in ((lost, "PENDING"), (slow, "STARTED")):
        event = told[result.id]
        assert (event.kind, event.state) == ("overdue", state)
        assert event.deadline <= event.at <= event.deadline + 5
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
    redis_client.delete(queue)


def test_a_task_of_a_producer_without_rts_is_open_where_it_is_received(
    make_stage: Callable[..., Stage],
    redis_client: redis.Redis,
    settings: Settings,
    tmp_path: Path,
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
