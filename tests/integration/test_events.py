"""The stream of events on a real Redis, as a worker with receivers reads it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest
import redis

from rts import health, listener, signals
from rts.listener import Listener
from rts.notices import SloBurning, TaskOverdue
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from tests.forked import forks_beside_threads, in_child

NOTICE = TaskOverdue("t1", "proj.add", "mixed", "q", "w@h", 1.0, 2.0, 2.5)


def text_of(notice: TaskOverdue | SloBurning = NOTICE, **fields: Any) -> str:
    """Return a notice as it stands in the stream, with these *fields*."""
    return json.dumps({**asdict(notice), **fields})


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "POLL_S", 0.02)


@contextmanager
def hearing(settings: Settings, signal: Any) -> Iterator[list[Any]]:
    """The notices that a receiver of *signal* gets, from a listener that runs meanwhile."""
    told: list[Any] = []

    def hear(sender: str, notice: Any, **_: Any) -> None:
        if signal is signals.task_overdue:
            assert sender == notice.name
        told.append(notice)

    signal.connect(hear, weak=False)
    living = Listener(settings, "me")
    living.start()
    try:
        yield told
    finally:
        living.stop()
        signal.disconnect(hear)


@pytest.fixture
def heard(settings: Settings, redis_client: redis.Redis) -> Iterator[list[TaskOverdue]]:
    """The notices that a receiver gets from now on."""
    with hearing(settings, signals.task_overdue) as told:
        wait_until(lambda: redis_client.exists(settings.keys.events))
        yield told


def tell(client: redis.Redis, settings: Settings, *texts: str | bytes) -> None:
    for text in texts:
        client.xadd(settings.keys.events, {"e": text})


def test_events_come_in_order_each_once(
    settings: Settings, redis_client: redis.Redis, heard: list[TaskOverdue]
) -> None:
    group = listener.group_of("task_overdue")
    redis_client.xgroup_createconsumer(settings.keys.events, group, "another, idle")
    told = [replace(NOTICE, task_id=f"t{n}", worker="w\ud800\n") for n in range(7)]
    tell(redis_client, settings, *map(text_of, told[:4]))
    wait_until(lambda: len(heard) == 4)
    tell(redis_client, settings, *map(text_of, told[4:]))
    wait_until(lambda: len(heard) >= 7)
    assert heard == told
    assert len(redis_client.xinfo_consumers(settings.keys.events, group)) == 2
    # It takes no events of a signal that nobody receives here, which others may want.
    assert [of["name"] for of in redis_client.xinfo_groups(settings.keys.events)] == [group]


def test_what_is_not_an_event_is_skipped(
    settings: Settings, redis_client: redis.Redis, heard: list[TaskOverdue]
) -> None:
    tell(redis_client, settings, "", "[]", "{}", "7", '{"name": 1}', b"\xff", "[" * 100_000)
    redis_client.xadd(settings.keys.events, {"other": "x"})
    tell(redis_client, settings, text_of(new_field=1))
    wait_until(lambda: heard)
    assert heard == [NOTICE]


def test_a_notice_from_another_version_is_understood(
    settings: Settings, redis_client: redis.Redis
) -> None:
    notice = SloBurning("*", 0.95, "page", "firing", 20.0, "1h", -1.0, 2.0)
    with hearing(settings, signals.slo_burning) as told:
        wait_until(lambda: redis_client.exists(settings.keys.events))
        for text in ("[]", "{}", text_of(notice, new_field=1)):
            redis_client.xadd(settings.keys.events, {"n": text})
        wait_until(lambda: told)
        assert told == [notice]
        # Without a webhook, objectives are evaluated only for those who say that they listen.
        assert 0 < redis_client.ttl(settings.keys.listening) <= listener.LISTENING_TTL_S
        # None of the others is delivered again and again.
        group = listener.group_of("slo_burning")
        wait_until(lambda: not redis_client.xpending(settings.keys.events, group)["pending"])


def test_workers_that_were_killed_leave_the_group(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, group = settings.keys.events, listener.group_of("task_overdue")
    redis_client.xgroup_create(events, group, mkstream=True)
    tell(redis_client, settings, *(text_of() for _ in range(3)))
    for name in ("killed", "busy"):
        ((_, [(event_id, _)]),) = redis_client.xreadgroup(group, name, {events: ">"}, count=1)
        if name == "killed":
            redis_client.xack(events, group, event_id)
    monkeypatch.setattr(listener, "GONE_S", 0.0)
    with hearing(settings, signals.task_overdue) as told:
        wait_until(lambda: told)
        left = {each["name"] for each in redis_client.xinfo_consumers(events, group)}
        assert left == {"busy", "me"}


def test_what_a_dead_worker_had_in_hand_is_handled_by_another_some_time_later(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, group = settings.keys.events, listener.group_of("task_overdue")
    redis_client.xgroup_create(events, group, mkstream=True)
    texts = [text_of(task_id=f"t{n}") for n in range(4)]
    tell(redis_client, settings, *texts[:3])
    redis_client.xreadgroup(group, "dead", {events: ">"})
    redis_client.xtrim(events, maxlen=2, approximate=False)
    tell(redis_client, settings, texts[3])
    with hearing(settings, signals.task_overdue) as told:
        wait_until(lambda: told)
        assert [notice.task_id for notice in told] == ["t3"]
    # It acknowledges that one when it stops, which nobody waits for.
    wait_until(lambda: redis_client.xpending(events, group)["pending"] == 3)
    monkeypatch.setattr(listener, "TAKEOVER_S", 0.0)
    with hearing(settings, signals.task_overdue) as told:
        wait_until(lambda: not redis_client.xpending(events, group)["pending"])
    assert [notice.task_id for notice in told] == ["t1", "t2"]


def test_what_is_handled_while_the_worker_stops_is_not_handled_again(
    settings: Settings, redis_client: redis.Redis
) -> None:
    events, group = settings.keys.events, listener.group_of("task_overdue")
    living, stopped = Listener(settings, "me"), threading.Event()

    def stop(**_: Any) -> None:
        living.stop()
        stopped.set()

    signals.task_overdue.connect(stop)
    living.start()
    wait_until(lambda: redis_client.exists(events))
    tell(redis_client, settings, text_of())
    assert stopped.wait(30)
    # What it has in hand, another one would claim.
    wait_until(lambda: not redis_client.xpending(events, group)["pending"])


def test_an_event_whose_reply_was_lost_is_handled_next(
    settings: Settings, server: RedisServer
) -> None:
    settings = replace(settings, redis_url=server.url, timeout=0.2, breaker_period=0.1)
    paused = threading.Event()

    def pause(**_: Any) -> None:
        if not paused.is_set():
            server.pause()
            paused.set()

    health.take_counts()
    with redis.Redis.from_url(server.url) as client:
        signals.task_overdue.connect(pause, weak=False)
        try:
            with hearing(settings, signals.task_overdue) as told:
                wait_until(lambda: client.exists(settings.keys.events))
                # In one transaction: the first one that is heard pauses the server.
                with client.pipeline() as pipe:
                    tell(pipe, settings, *(text_of(task_id=f"t{n}") for n in range(3)))
                    pipe.execute()
                wait_until(paused.is_set)
                # Redis takes the next event out of the stream once it goes on.
                wait_until(lambda: health.take_counts().get("redis_failures"))
                server.resume()
                wait_until(lambda: len(told) == 3)
        finally:
            signals.task_overdue.disconnect(pause)
            server.resume()
    assert [notice.task_id for notice in told] == ["t0", "t1", "t2"]


def test_what_is_no_exception_does_not_end_the_thread(
    settings: Settings, redis_client: redis.Redis, heard: list[TaskOverdue]
) -> None:
    def leave(**_: Any) -> None:  # as gevent.Timeout, asyncio.CancelledError and SystemExit do
        raise BaseException

    signals.task_overdue.connect(leave)
    tell(redis_client, settings, text_of(), text_of(task_id="t2"))
    wait_until(lambda: "t2" in [notice.task_id for notice in heard])
    assert [notice.task_id for notice in heard] == ["t1", "t2"]


@forks_beside_threads
def test_no_child_is_forked_amid_a_receiver(
    settings: Settings, redis_client: redis.Redis, heard: list[TaskOverdue]
) -> None:
    held, inside = threading.Lock(), threading.Event()

    def hold(**_: Any) -> None:
        with held:  # such as one of the app's database library
            inside.set()
            time.sleep(0.2)

    signals.task_overdue.connect(hold)  # for as long as it lives
    tell(redis_client, settings, text_of())
    assert inside.wait(30)
    assert in_child(lambda: not held.locked())[1] == 0
