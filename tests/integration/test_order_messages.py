"""Unusual messages in queues in deadline order: on plain lists, unreadable, without room, …"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Consumer, Exchange, Producer, Queue

import rts
from rts import health
from rts.headers import DROPPED_HEADER
from rts.installation import parts_of
from rts.rule import Rule
from rts.scheduling import queue_metrics
from rts.scheduling.claims import SCAN_LIMIT
from rts.scheduling.discovery import FleetQueues, all_queue_names
from rts.scheduling.queue_metrics import queue_readings
from rts.scheduling.queues import move_to_lists, ordered_channel, state_of
from rts.scheduling.scripts import BYTES, CLAIM
from rts.settings import Settings
from tests.order import EDF, FAR, NAME, PAST, Message, connect, envelope, full, put


def test_messages_on_plain_lists_are_adopted(
    channel: Any, plain: Any, raw: redis.Redis
) -> None:
    start = time.time()
    ordered, plain = channel, plain
    first = Message(start + FAR, start, 1.0, "1")
    second = Message(start + 2 * FAR, start, 1.0, "2")
    third = Message(start + 3 * FAR, start, 1.0, "3")
    plain._put(NAME, envelope(third))
    ordered._put(NAME, envelope(second))
    plain._put(NAME, envelope(first))
    unplanned = envelope(Message(1, 1, 1, "0"))
    unplanned["headers"] = {"task": "t", "id": "0"}
    unplanned["properties"]["priority"] = 9
    plain._put(NAME, unplanned)
    refused = f"{NAME}{EDF}:refused"
    raw.rpush(refused, *["before"] * 1000)
    odd = ["no message", json.dumps({"properties": []}), "null"]
    raw.lpush(NAME, *odd)
    assert ordered.queue_declare(NAME, passive=True).message_count == 7
    tags = [ordered.basic_get(NAME).delivery_tag for _ in range(4)]
    assert tags == ["0", "1", "2", "3"]
    assert ordered.basic_get(NAME) is None
    assert raw.lrange(refused, 0, -1) == [*reversed(odd), *["before"] * 997]
    assert health.take_counts()["messages_refused"] == 3
    # Their entries in unacked are kombu's: its workers can restore them.
    noted = json.loads(raw.hget("unacked", "1") or "")
    assert noted == [envelope(first), "", NAME]
    plain.qos.restore_by_tag("1")
    assert raw.llen(NAME) == 1
    assert ordered.basic_get(NAME).headers["redelivered"] is True


class Queues(str, Enum):
    HIGH = "high"


def test_a_message_waits_in_the_queue_that_a_member_of_an_enum_names(channel: Any) -> None:
    put(channel, "1", queue=Queues.HIGH)
    assert channel.basic_get("high").delivery_tag == "1"


@pytest.mark.parametrize("work", [0.0, 2.0])
@pytest.mark.parametrize("deadline", [5.0, 1e9 + 0.25, 253402300799.0])
def test_an_adopted_message_gets_the_place_that_a_published_one_has(
    url: str, raw: redis.Redis, work: float, deadline: float
) -> None:
    rule = Rule(hopeless="keep", work=work)
    with connect(url, rule) as connection, Connection(url) as other:
        channel, message = connection.default_channel, Message(deadline, 2.5, 10.0, "1")
        channel._put(NAME, envelope(message))
        expected = raw.zrange(NAME + EDF, 0, -1, withscores=True)
        channel.queue_purge(NAME)
        channel._put(NAME, envelope(Message(1.0, 1.0, 0.1, "before")))
        other.default_channel._put(NAME, envelope(message))
        assert channel.basic_get(NAME).delivery_tag == "before"
        assert raw.zrange(NAME + EDF, 0, -1, withscores=True) == expected


@pytest.mark.parametrize("leftmost", [False, True])
def test_a_message_without_the_order_is_put_back_where_kombu_puts_it(
    channel: Any, plain: Any, raw: redis.Redis, leftmost: bool
) -> None:
    plain = plain
    for tag in ("1", "2"):
        plain._put(NAME, envelope(Message(1.0, 1.0, 1.0, tag)))
    assert plain.basic_get(NAME).delivery_tag == "1"
    channel.qos.restore_by_tag("1", leftmost=leftmost)
    again = json.loads(raw.lindex(NAME, 0 if leftmost else -1) or "")
    assert again["properties"]["delivery_tag"] == "1"
    assert again["properties"]["delivery_info"]["redelivered"] is True


def test_a_message_without_the_order_is_put_back_into_all_its_queues(
    channel: Any, raw: redis.Redis
) -> None:
    names = ("one", "two")
    for name in names:
        Queue(name, Exchange("topics", "topic"), "#")(channel).declare()
    noted = [envelope(Message(1.0, 1.0, 1.0, "1")), "topics", "any"]
    raw.hset("unacked", "1", json.dumps(noted))
    raw.zadd("unacked_index", {"1": 0})
    channel.qos.restore_by_tag("1")
    for name in names:
        (again,) = raw.lrange(name, 0, -1)
        assert json.loads(again)["properties"]["delivery_tag"] == "1"
    assert raw.exists(*(f"{name}{EDF}:bell" for name in names)) == 2
    assert not raw.exists("unacked", "unacked_index")


def test_what_is_no_message_keeps_no_other_from_being_put_back(
    channel: Any, raw: redis.Redis
) -> None:
    noted = [envelope(Message(1.0, 1.0, 1.0, "2")), "", NAME]
    raw.hset("unacked", mapping={"1": "no message", "2": json.dumps(noted)})
    raw.zadd("unacked_index", {"1": 0, "2": 1})
    channel.qos.restore_visible(num=None)
    assert not raw.exists("unacked", "unacked_index")
    assert channel.basic_get(NAME).delivery_tag == "2"


def test_a_lone_surrogate_in_a_message_on_a_plain_list_does_not_matter(
    channel: Any, plain: Any
) -> None:
    start = time.time()
    for tag, offset in (("2é", 2.0), ("1é", 1.0)):
        message = envelope(Message(start + FAR + offset, start, 1.0, tag))
        message["headers"]["file"] = "\udcff.txt"  # as os.listdir has it
        message["headers"]["error"] = "can't encode character '\\udcff'"  # as Python says
        plain._put(NAME, message)
    for tag in ("1é", "2é"):
        got = channel.basic_get(NAME)
        assert (got.delivery_tag, got.headers["file"]) == (tag, "\udcff.txt")
    assert "messages_refused" not in health.take_counts()


def test_a_tag_that_no_one_can_acknowledge_is_refused(
    channel: Any, plain: Any, raw: redis.Redis
) -> None:
    start = time.time()
    for number, tag in enumerate(("\ud800", "why?")):
        message = envelope(Message(start + FAR + number, start, 1.0, tag))
        message["headers"].update(file="\udcff.txt", argsrepr="('who?',)")
        plain._put(NAME, message)
    # Surrogates in pairs are characters.
    pair = envelope(Message(start + 2 * FAR, start, 1.0, "\U0001f600"))
    plain._put(NAME, pair)
    for tag in ("why?", "\U0001f600"):
        got = channel.basic_get(NAME)
        assert got.delivery_tag == tag
        got.ack()
        assert not raw.exists("unacked")
    assert channel.basic_get(NAME) is None
    assert health.take_counts()["messages_refused"] == 1


def test_a_message_without_a_deadline_keeps_its_place_when_a_list_held_it(channel: Any) -> None:
    for tag in ("1", "2"):
        unplanned = envelope(Message(1, 1, 1, tag))
        unplanned["headers"] = {"task": "t", "id": tag}
        channel._put(NAME, unplanned)
        if tag == "1":
            assert move_to_lists(channel, NAME) == 1
    assert [channel.basic_get(NAME).delivery_tag for _ in range(2)] == ["1", "2"]


def test_a_claim_adopts_few_large_messages(channel: Any, raw: redis.Redis) -> None:
    start = time.time()
    for number in range(5):
        message = envelope(Message(start + FAR + number, start, 1.0, str(number)))
        raw.lpush(NAME, json.dumps({**message, "body": "x" * 1_000_000}))
    assert channel.basic_get(NAME).delivery_tag == "0"
    state = state_of(channel, NAME)
    assert (state.ordered, state.plain) == (0, 4)


def test_a_claim_demotes_a_limited_number_of_messages(channel: Any) -> None:
    start = time.time()
    for number in range(2 * SCAN_LIMIT + 1):
        message = Message(start + PAST, start + number, 1.0, str(number))
        channel._put(NAME, envelope(message))
    arguments = channel._claim_arguments([NAME])
    for demoted in (SCAN_LIMIT, 2 * SCAN_LIMIT):
        reply = CLAIM.run(channel.plain, *arguments)
        assert reply[0] == b"again"
        assert state_of(channel, NAME).demoted == demoted
        assert channel._parse_claim([NAME], reply) == (None, None)
        assert channel._block_s == 0, "the next claim follows at once"
    assert channel.basic_get(NAME).delivery_tag == "0"


#: Redis parses these, Python or kombu does not.
UNREADABLE = {
    "no text": b'{"body":"\xff\xfe","headers":{},"properties":{"delivery_tag":"%d"}}',
    "no JSON": b'{"body":"x","size":0x1F,"headers":{},"properties":{"delivery_tag":"%d"}}',
    "headers": b'{"body":"x","headers":[1],"properties":{"delivery_tag":"%d"}}',
    "encoding": b'{"body":"x","properties":{"delivery_tag":"%d","body_encoding":"zip"}}',
    "body": b'{"body":{},"headers":{},"properties":{"delivery_tag":"%d"}}',
    "tag": b'{"body":"x","headers":{},"properties":{"delivery_tag":"%065536d"}}',
    "C string": b'{"body":"x","headers":{},"properties":{"delivery_tag":"%d"}}\0',
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_messages_are_refused(url: str, raw: redis.Redis, text: bytes) -> None:
    got: list[str] = []
    with connect(url) as connection, redis.Redis.from_url(url) as client:
        channel = connection.default_channel
        queue = Queue(NAME, Exchange(""), NAME, no_declare=True)
        raw.rpush(f"{NAME}{EDF}:refused", *["before"] * 1000)
        client.lpush(NAME, text % 1)
        put(channel, "first")
        assert channel.basic_get(NAME, no_ack=True).delivery_tag == "first"
        client.lpush(NAME, text % 2)
        put(channel, "second")
        with Consumer(
            channel, queue, on_message=lambda m: (got.append(m.delivery_tag), m.ack())
        ):
            while not got:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=5)
        assert got == ["second"]
        last, first, *before = client.lrange(f"{NAME}{EDF}:refused", 0, -1)
        for number, kept in ((2, last), (1, first)):
            assert kept.startswith((text % number)[:-1])  # its arrival was added
        assert before == [b"before"] * 998
        assert health.take_counts()["messages_refused"] == 2
        assert not raw.exists("unacked", "unacked_index", f"{NAME}{EDF}")


def test_unreadable_messages_are_counted_and_moved(url: str, raw: redis.Redis) -> None:
    last = Message(time.time() + 2 * FAR, 1.0, 1.0, "last")
    text = UNREADABLE["no text"] % 1
    with connect(url, Rule(horizons={NAME: FAR})) as connection:
        channel = connection.default_channel
        put(channel, "first", 5)
        channel._put(NAME, envelope(last))
        with redis.Redis.from_url(url) as client:
            client.lpush(NAME, text)
            assert channel.basic_get(NAME, no_ack=True).delivery_tag == "first"  # adopts it
            state = state_of(channel, NAME)
            assert (state.ordered, state.next_deadline) == (2, None)
            assert move_to_lists(channel, NAME) == 2
            moved = client.lrange(NAME, 0, -1)
    assert moved[1].startswith(text[:-1])
    assert json.loads(moved[0]) == envelope(last)


def test_a_message_without_delivery_info_is_requeued_to_its_queue(url: str) -> None:
    foreign = envelope(Message(1, 1, 1, "1"))
    foreign["headers"] = None
    del foreign["properties"]["delivery_info"]
    with connect(url) as connection, redis.Redis.from_url(url) as client:
        channel = connection.default_channel
        client.lpush(NAME, json.dumps(foreign))
        channel.basic_get(NAME).reject(requeue=True)
        assert channel.basic_get(NAME, no_ack=True).delivery_tag == "1"


def test_workers_empty_the_queues_of_a_redis_out_of_memory(
    channel: Any, plain: Any, raw: redis.Redis
) -> None:
    put(channel, "1")
    put(channel, "2", PAST)
    put(plain, "3", 2 * FAR)
    with full(raw):
        with pytest.raises(redis.ResponseError):
            put(channel, "4", 0.0)
        for settle in ("ack", "reject", "ack"):
            getattr(channel.basic_get(NAME), settle)()
    assert channel.basic_get(NAME) is None
    assert not raw.exists("unacked", "unacked_index")


def test_a_worker_that_may_take_no_more_waits_for_a_redis_out_of_memory(
    channel: Any, raw: redis.Redis
) -> None:
    put(channel, "1", PAST)
    channel.slots = SimpleNamespace(may_take_demoted=lambda share: False)
    assert channel.basic_get(NAME) is None
    raw.delete(f"{NAME}{EDF}:bell")
    with full(raw):
        assert channel.basic_get(NAME) is None


def test_an_unreadable_message_stops_no_worker_of_a_redis_out_of_memory(
    url: str, raw: redis.Redis
) -> None:
    with connect(url) as connection, redis.Redis.from_url(url) as client:
        channel = connection.default_channel
        client.lpush(NAME, UNREADABLE["no text"] % 1)
        put(channel, "2")
        with full(raw):
            assert channel.basic_get(NAME, no_ack=True).delivery_tag == "2"
            assert channel.basic_get(NAME) is None
        assert raw.llen(f"{NAME}{EDF}:refused") == 1
        assert not raw.exists("unacked", "unacked_index")


def test_a_redis_out_of_memory_is_counted_and_purged(
    channel: Any, plain: Any, raw: redis.Redis
) -> None:
    put(channel, "1")
    put(plain, "2")
    with full(raw):
        state = state_of(channel, NAME)
        assert (state.ordered, state.plain) == (1, 1)
        assert channel.queue_declare(NAME, passive=True).message_count == 2
        assert channel.queue_purge(NAME) == 2
    assert not raw.exists(NAME, f"{NAME}{EDF}")


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="needs kombu >= 5.7")
def test_messages_that_are_published_in_a_batch_are_ordered(
    channel: Any, raw: redis.Redis
) -> None:
    start = time.time()
    producer = Producer(channel)
    with producer.batch():
        for offset in (3, 1, 2):
            message = envelope(Message(start + FAR + offset, start, 1.0, str(offset)))
            producer.publish({}, routing_key=NAME, headers=message["headers"])
        assert not raw.exists(f"{NAME}{EDF}"), "they are sent together"
    got = [channel.basic_get(NAME, no_ack=True).headers["id"] for _ in range(3)]
    assert got == ["1", "2", "3"]


def test_demoted_messages_are_dropped_once_drop_is_configured(url: str, channel: Any) -> None:
    start = time.time()
    late, due = Message(start + PAST, start, 1.0, "1"), Message(start + FAR, start, 1.0, "2")
    for message in (late, due):
        channel._put(NAME, envelope(message))
    assert channel.basic_get(NAME, no_ack=True).delivery_tag == "2"
    with connect(url, Rule(hopeless="drop")) as connection:
        got = connection.default_channel.basic_get(NAME, no_ack=True)
        assert (got.delivery_tag, got.headers[DROPPED_HEADER]) == ("1", True)


def test_moving_to_lists_ends_while_workers_in_order_adopt_messages(url: str) -> None:
    start = time.time()
    with connect(url) as connection, connect(url) as worker:
        channel = connection.default_channel
        for number in range(5):
            channel._put(NAME, envelope(Message(start + FAR, start + number, 1.0, str(number))))
        run = channel.plain.execute_command

        def with_worker(*arguments: Any, **options: Any) -> Any:
            answer = run(*arguments, **options)
            if arguments[0] in ("EVAL", "EVALSHA"):  # after each move, adopt it again
                worker.default_channel.basic_get(NAME).requeue()
            return answer

        channel.plain.execute_command = with_worker
        assert move_to_lists(channel, NAME) <= 5
        assert channel.queue_declare(NAME, passive=True).message_count == 5


def test_large_messages_are_moved_to_lists_a_few_at_a_time(url: str, raw: redis.Redis) -> None:
    start, read = time.time(), []
    with connect(url) as connection:
        channel = connection.default_channel
        for number in range(40):
            message = envelope(Message(start + FAR + number, start, 1.0, str(number)))
            channel._put(NAME, {**message, "body": "x" * (1 << 20)})
        run = channel.plain.execute_command

        def reading(*arguments: Any, **options: Any) -> Any:
            answer = run(*arguments, **options)
            if arguments[0] == "ZRANGE":
                read.append(sum(map(len, answer)))
            return answer

        channel.plain.execute_command = reading
        assert move_to_lists(channel, NAME) == 40
    tags = [json.loads(text)["properties"]["delivery_tag"] for text in raw.lrange(NAME, 0, -1)]
    assert tags == [str(number) for number in reversed(range(40))]
    assert max(read) <= BYTES


@pytest.mark.parametrize(
    "value", [None, "soon", float("nan"), float("inf"), -1.0, 1e300, [], {}, "9" * 400, True]
)
def test_invalid_deadlines_get_the_horizon(url: str, value: Any) -> None:
    start = time.time()
    with connect(url, Rule(horizons={NAME: 50.0})) as connection, Connection(url) as other:
        for header in ("rts_deadline", "rts_arrival", "rts_tau"):
            channel = connection.default_channel
            before = Message(start + 40, start, 1.0, "before")
            after = Message(start + 100, start, 1.0, "after")
            strange = [envelope(Message(start + 1, start, 0.1, t)) for t in ("own", "other")]
            for message in strange:
                message["headers"][header] = value
            channel._put(NAME, strange[0])
            other.default_channel._put(NAME, strange[1])
            for message in (after, before):
                channel._put(NAME, envelope(message))
            tags = [channel.basic_get(NAME, no_ack=True).delivery_tag for _ in range(4)]
            assert tags == ["before", "own", "other", "after"]


def test_queues_are_found_below_a_prefix_that_reads_as_a_pattern(
    url: str, tmp_path: Path
) -> None:
    app = Celery("producer", broker=url, set_as_current=False)
    app.conf.update(rts_redis_url=url, rts_scheduler="edf", rts_spool_dir=str(tmp_path))
    app.conf.broker_transport_options = {"global_keyprefix": "[prod]*:"}
    rts.install(app)
    settings = Settings.from_conf(app.conf)
    with ordered_channel(app, settings) as channel:
        channel._put("unheard", envelope(Message(FAR, 1.0, 1.0, "1")))
        assert "unheard" in all_queue_names(app, settings, channel, FleetQueues())
    rts.uninstall(app)
    app.close()


def test_queues_without_workers_are_known_by_their_open_tasks(
    url: str, channel: Any, raw: redis.Redis, tmp_path: Path
) -> None:
    app = Celery("producer", broker=url, set_as_current=False)
    app.conf.update(rts_redis_url=url, rts_scheduler="edf", rts_spool_dir=str(tmp_path))
    rts.install(app)
    app.send_task("t", queue="elsewhere")
    settings, parts = Settings.from_conf(app.conf), parts_of(app)
    parts.open_tasks.flush()
    # Not every routing key is the name of a queue.
    raw.hset("users", "1", "me")
    raw.hset(settings.keys.open_counts, mapping={"open users": 1, "overdue gone": 1})
    channel._put("unheard", envelope(Message(FAR, 1.0, 1.0, "1")))
    raw.config_resetstat()
    reader = Celery("reader", broker=url, set_as_current=False)  # which has sent nothing
    waiting = {state.name: state.ordered for state, _ in queue_readings(reader, settings)()}
    assert waiting == {"celery": 0, "elsewhere": 1}
    assert "cmdstat_scan" not in raw.info("commandstats"), "scans all keys of the broker"
    with ordered_channel(app, settings) as channel:
        assert all_queue_names(app, settings, channel, FleetQueues()) == sorted(
            [*waiting, "unheard"]
        )
    rts.uninstall(app)
    for each in (app, reader):
        each.close()


def test_the_metrics_have_each_queue_that_workers_take_from_and_remember_some(
    url: str, raw: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_metrics, "MAX_REMEMBERED", 3)
    app = Celery("exporter", broker=url, set_as_current=False)
    app.conf.update(rts_redis_url=url, rts_spool_dir=str(tmp_path))
    settings = Settings.from_conf(app.conf)
    read, names = queue_readings(app, settings), [f"user-{number}" for number in range(5)]
    beat = {"seen_at": time.time(), "queues": names}
    for _ in range(2):
        raw.hset(settings.keys.workers, "w@h/1", json.dumps(beat))
        assert [state.name for state, _ in read()] == ["celery", *names]
    raw.delete(settings.keys.workers)
    assert len(read()) == 1 + 3
    app.close()
