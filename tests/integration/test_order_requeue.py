"""Messages that return to the deadline order, and to which queue."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Producer, Queue

from rts.scheduling.layout import BELL_TTL_MS
from rts.scheduling.qos import BATCH
from rts.scheduling.queues import state_of
from tests.order import EDF, FAR, NAME, Message, connect, envelope, put


def test_unacknowledged_messages_return_after_the_visibility_timeout(url: str) -> None:
    with (
        connect(url, visibility_timeout=0.1) as dead,
        connect(url, visibility_timeout=0.1) as connection,
    ):
        for tag, more in (("late", 9.0), ("soon", 1.0)):
            put(dead.default_channel, tag, FAR + more)
        assert dead.default_channel.basic_get(NAME).delivery_tag == "soon"
        time.sleep(0.2)
        channel = connection.default_channel
        channel.qos.restore_visible(interval=1)
        message = channel.basic_get(NAME)
        assert (message.delivery_tag, message.headers["redelivered"]) == ("soon", True)
        dead.default_channel.qos._delivered.clear()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_message_without_a_deadline_keeps_its_arrival(
    channel: Any, plain: Any, ordered: bool
) -> None:
    """Whether it was published in deadline order or adopted from a plain list."""
    for tag in ("1", "2"):
        message = envelope(Message(0, 0, 0, tag))
        message["headers"] = {"task": "t", "id": tag}
        (channel if ordered else plain)._put(NAME, message)
    assert channel.basic_get(NAME).delivery_tag == "1"
    channel.qos.restore_by_tag("1")
    assert [channel.basic_get(NAME).delivery_tag for _ in range(2)] == ["1", "2"]


def test_an_idle_consumer_without_an_event_loop_restores_messages(url: str) -> None:
    with (
        connect(url, visibility_timeout=0) as dead,
        connect(url, visibility_timeout=0) as connection,
    ):
        channel, got = dead.default_channel, []
        put(channel, "1")
        assert channel.basic_get(NAME).delivery_tag == "1"
        channel.qos._delivered.clear()
        queue = Queue(NAME, Exchange(""), NAME, no_declare=True)
        with Consumer(connection, queue, on_message=lambda m: (got.append(m), m.ack())):
            connection.drain_events(timeout=5)
        assert [message.delivery_tag for message in got] == ["1"]


def test_what_a_queue_of_another_app_left_is_restored_for_its_workers(
    url: str, raw: redis.Redis
) -> None:
    with Connection(url) as stock, connect(url, visibility_timeout=0) as connection:
        theirs = stock.default_channel
        put(theirs, "1", queue="theirs")
        assert theirs.basic_get("theirs").delivery_tag == "1"
        theirs.qos._delivered.clear()  # it is dead
        connection.default_channel.qos.restore_visible(interval=1)
        assert 0 < raw.pttl(f"theirs{EDF}:bell") <= BELL_TTL_MS
        message = theirs.basic_get("theirs")
        assert (message.delivery_tag, message.headers["redelivered"]) == ("1", True)
        assert not raw.exists(f"theirs{EDF}")


@pytest.mark.parametrize("written_by_kombu", [True, False])
def test_what_a_worker_rejects_once_more_goes_behind_the_others(
    url: str, raw: redis.Redis, written_by_kombu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the clock of the worker's host is an hour behind."""
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start - 3600)
    with connect(url) as connection:
        channel: Any = connection.default_channel
        channel.slots = SimpleNamespace(may_take_demoted=lambda share: True)  # as in a worker
        for number, tag in enumerate(("first", "second")):
            message = envelope(Message(start + FAR + number, start - 10, 1.0, tag))
            if not written_by_kombu:
                del message["properties"]["delivery_info"]
            raw.lpush(NAME, json.dumps(message))
        channel.basic_get(NAME).requeue()
        # What returns since its worker ended, or took too long, was not rejected.
        for _ in range(2):
            message = channel.basic_get(NAME)
            assert (message.delivery_tag, message.headers["redelivered"]) == ("first", True)
            channel.qos.restore_by_tag("first")
        channel.basic_get(NAME).requeue()
        assert [channel.basic_get(NAME).delivery_tag for _ in range(2)] == ["second", "first"]


def test_a_message_without_a_consumer_returns_to_the_order(url: str) -> None:
    with connect(url) as connection:
        _, channel = connection.channel(), connection.channel()
        channel.basic_consume(NAME, False, lambda message: None, "tag")
        put(channel, "1")
        connection.transport._callbacks.clear()  # the consumer is cancelled meanwhile
        connection.drain_events(timeout=5)  # it is rejected through the other channel
        state = state_of(channel, NAME)
        assert (state.ordered, state.plain) == (1, 0)


def test_a_message_returns_to_the_queue_that_it_was_taken_from(url: str) -> None:
    topics = Exchange("topics", "topic")
    with connect(url) as connection, connect(url, visibility_timeout=0) as stranger:
        channel = connection.default_channel
        for name, key in ((NAME, "log.#"), ("errors", "log.error")):
            Queue(name, topics, key)(channel).declare()
        Producer(channel).publish(
            1, exchange=topics, routing_key="log.error", headers={"task": "t", "id": "1"}
        )
        channel.basic_get(NAME).requeue()
        assert (channel._size(NAME), channel._size("errors")) == (1, 1)
        assert channel.basic_get(NAME).delivery_info["routing_key"] == "log.error"
        channel.qos._delivered.clear()  # it is dead; another worker knows no such exchange
        stranger.default_channel.qos.restore_visible(interval=1)
        assert (channel._size(NAME), channel._size("errors")) == (1, 1)
        # Each copy is settled by a tag of its own.
        copy, other = channel.basic_get(NAME), channel.basic_get("errors")
        copy.ack()
        other.requeue()
        assert (channel._size(NAME), channel._size("errors")) == (0, 1)


def test_what_cannot_be_looked_up_stays_unacknowledged(
    channel: Any, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(channel, "1")
    assert channel.basic_get(NAME).delivery_tag == "1"
    look_up = channel._lookup

    def cut_off(*args: Any) -> Any:
        raise redis.ConnectionError

    monkeypatch.setattr(channel, "_lookup", cut_off)
    with pytest.raises(redis.ConnectionError):
        channel.qos.restore_by_tag("1")
    assert raw.hexists("unacked", "1")
    monkeypatch.setattr(channel, "_lookup", look_up)
    channel.qos.restore_by_tag("1")
    assert raw.llen(f"{NAME}{EDF}:bell") == 1
    assert channel.basic_get(NAME).delivery_tag == "1"


def test_what_another_worker_has_restored_and_claimed_meanwhile_is_left_to_it(
    channel: Any, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(channel, "1")
    assert channel.basic_get(NAME).delivery_tag == "1"
    read_before = iter([["1"], []])
    monkeypatch.setattr(channel.qos, "_claimed_before", lambda *_: next(read_before))
    channel.qos.restore_visible(interval=1)
    assert raw.hexists("unacked", "1")
    assert state_of(channel, NAME).waiting == 0


def test_a_worker_restores_a_few_at_a_time_and_now_and_then(
    channel: Any, raw: redis.Redis
) -> None:
    for number in range(25):
        message = envelope(Message(time.time() + FAR, 1.0, 1.0, str(number)))
        raw.hset("unacked", str(number), f'[{json.dumps(message)},"","{NAME}"]')
        raw.zadd("unacked_index", {str(number): 1})
    left = []
    for _ in range(11):
        channel.qos.restore_visible()
        left.append(raw.zcard("unacked_index"))
    assert left == [*[15] * 10, 5]


def test_workers_restore_messages_together(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = 3 * BATCH
    with connect(url) as one, connect(url) as other:
        qos = one.default_channel.qos
        for number in range(waiting):
            message = Message(time.time() + FAR, 1.0, 1.0, f"{number:03}")
            entry = f'[{json.dumps(envelope(message))},"","{NAME}"]'
            raw.hset("unacked", message.tag, entry)
            raw.zadd("unacked_index", {message.tag: number + 1})
        tried: list[str] = []
        requeue = qos._requeue

        def requeue_after_other(tag: Any, *args: Any) -> None:
            if not tried:
                other.default_channel.qos.restore_visible(num=None, interval=1)
            tried.append(tag)
            requeue(tag, *args)

        monkeypatch.setattr(qos, "_requeue", requeue_after_other)
        qos.restore_visible(num=None, interval=1)
        assert len(tried) <= BATCH
        state = state_of(one.default_channel, NAME)
        assert (state.ordered, raw.exists("unacked", "unacked_index")) == (waiting, 0)
