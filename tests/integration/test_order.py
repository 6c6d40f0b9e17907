"""The deadline order on a real Redis: claims against a model, and a queue's life cycle."""

from __future__ import annotations

import bisect
import itertools
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub

import rts
from rts import health
from rts.headers import DROPPED
from rts.installation import parts_of
from rts.scheduling.activation import turn_on
from rts.scheduling.channel import Channel
from rts.scheduling.encoding import ARRIVAL, Place, member
from rts.scheduling.layout import BELL_TTL_MS
from rts.scheduling.qos import BATCH
from rts.scheduling.queue_metrics import queue_readings
from rts.scheduling.queues import (
    COUNTED,
    SAMPLED,
    FleetQueues,
    all_queue_names,
    hopeless_in,
    move_to_lists,
    ordered_channel,
    state_of,
)
from rts.scheduling.rule import Rule
from rts.scheduling.scripts import CLAIM
from rts.scheduling.slots import limit_to_slots
from rts.scheduling.transport import SentinelTransport, Transport
from rts.settings import Settings
from rts.testing import RedisServer, wait_until

NAME = "order"
#: Offsets of deadlines that no test misses, and of ones that have long passed.
FAR, PAST = 1e6, -1e6


@pytest.fixture
def url(rts_redis_url: str) -> Iterator[str]:
    """An empty database of the session's Redis."""
    url = rts_redis_url.rpartition("/")[0] + "/12"
    client = redis.Redis.from_url(url)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    """A client of that database."""
    client = redis.Redis.from_url(url, decode_responses=True)
    yield client
    client.close()


def connect(url: str, rule: Rule | None = None, **options: Any) -> Connection:
    """Return a connection in deadline order."""
    option = (rule or Rule()).as_option()
    return Connection(url, transport=Transport, transport_options={"rts": option, **options})


class Message(NamedTuple):
    """A message in the model."""

    deadline: float
    arrival: float
    tau: float
    tag: str


def envelope(message: Message, queue: str = NAME, priority: int = 0) -> dict[str, Any]:
    """Return the raw message as kombu has it."""
    return {
        "body": "e30=",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "task": "t",
            "id": message.tag,
            "rts_deadline": message.deadline,
            "rts_arrival": message.arrival,
            "rts_tau": message.tau,
        },
        "properties": {
            "delivery_tag": message.tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
            "priority": priority,
        },
    }


class Model:
    """A reference implementation of the rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        #: Sorted: of equal deadlines the earlier arrival is first.
        self.hopeful: list[Message] = []
        self.demoted: list[Message] = []
        self.turns = 0

    def put(self, message: Message) -> None:
        bisect.insort(self.hopeful, message, key=self._score)

    def _score(self, message: Message) -> tuple[float, float]:
        return message.deadline + self.rule.work * message.tau, message.arrival

    def claim(self) -> tuple[Message, bool] | None:
        """Return the next message and whether it is dropped."""
        while self.hopeful and self.rule.hopeless != "keep":
            head = self.hopeful[0]
            if time.time() <= head.deadline - 0.9 * head.tau:
                break
            self.hopeful.pop(0)
            if self.rule.hopeless == "drop":
                return head, True
            bisect.insort(self.demoted, head, key=lambda message: message.arrival)
        if self.demoted:
            self.turns += 1
            late = self.rule.late_every and self.turns % self.rule.late_every == 0
            if late or not self.hopeful:
                return self.demoted.pop(0), False
        return (self.hopeful.pop(0), False) if self.hopeful else None


class Harness:
    """Applies the same operations to a connection and to the model."""

    def __init__(self, url: str, rule: Rule) -> None:
        self.url, self.rule = url, rule
        self.model = Model(rule)
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self.client.flushdb()
        self.connection = connect(url, rule)
        self.start, self._numbers = time.time(), itertools.count()
        self.held: list[Any] = []
        self._by_tag: dict[str, Message] = {}

    def publish(self, offset: float, tau: float) -> None:
        number = next(self._numbers)
        message = Message(self.start + offset, self.start + number, tau, str(uuid.uuid4()))
        self._by_tag[message.tag] = message
        self.model.put(message)
        # Its priority must not matter.
        raw = envelope(message, priority=number * 7 % 10)
        self.connection.default_channel._put(NAME, raw)

    def claim(self) -> bool:
        """Claim from both; return whether there was a message."""
        got, expected = self.connection.default_channel.basic_get(NAME), self.model.claim()
        if got is None or expected is None:
            assert got is expected
            return False
        assert (got.delivery_tag, DROPPED in got.headers) == (expected[0].tag, expected[1])
        self.held.append(got)
        return True

    def settle(self, how: str, which: int = 0) -> None:
        """Acknowledge, reject or requeue a held message."""
        if not self.held:
            return
        message = self.held.pop(which % len(self.held))
        getattr(message, how)()
        if how == "requeue":
            self._back([message])

    def reconnect(self) -> None:
        """Close the connection, which requeues what is unacknowledged."""
        self.connection.close()
        self._back(self.held)
        self.connection = connect(self.url, self.rule)

    def restart(self, server: RedisServer, save: bool) -> None:
        """Kill Redis and start it again; the consumer dies with the messages that it holds."""
        if save:
            self.client.save()
        server.kill()
        server.start()
        # The consumer is dead: another one restores after the visibility timeout.
        with suppress(Exception):
            self.connection.default_channel.qos._delivered.clear()
            self.connection.close()
        self.connection = connect(self.url, self.rule, visibility_timeout=0)
        self.connection.default_channel.qos.restore_visible(num=None, interval=1)
        self._back(self.held)
        self.connection.close()
        self.connection = connect(self.url, self.rule)

    def drain(self) -> None:
        """Claim and acknowledge until nothing waits."""
        self.reconnect()
        while self.claim():
            self.settle("ack")
        self.check()
        assert not self.held

    def check(self) -> None:
        """Compare the unacknowledged messages."""
        unacked = self.client.hlen("unacked"), self.client.zcard("unacked_index")
        assert unacked == (len(self.held), len(self.held))

    def close(self) -> None:
        self.connection.close()
        self.client.close()

    def _back(self, messages: list[Any]) -> None:
        for message in messages:
            self.model.put(self._by_tag[message.delivery_tag])
        if messages is self.held:
            self.held = []


RULES = [
    Rule(late_share=0.5),
    Rule(late_share=0),
    Rule(late_share=0.34, work=2.0),
    Rule(hopeless="keep"),
    Rule(hopeless="drop"),
]
#: The offset of a deadline, which is often shared, and a tau.
PUBLISH = st.tuples(
    st.just("publish"),
    st.sampled_from([PAST, -10.0, FAR, FAR + 1, 2 * FAR]),
    st.sampled_from([0.01, 0.5, 5.0, 60.0]),
)
OPERATION = st.one_of(
    PUBLISH,
    st.tuples(st.just("claim")),
    st.tuples(st.just("claim")),
    st.tuples(st.just("settle"), st.sampled_from(["ack", "reject", "requeue"]), st.integers(0)),
    st.tuples(st.just("reconnect")),
)


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=60)
@given(operations=st.lists(OPERATION, max_size=60))
def test_claims_follow_the_rule(
    rts_redis_session_url: str, rule: Rule, operations: list[Any]
) -> None:
    harness = Harness(rts_redis_session_url.rpartition("/")[0] + "/12", rule)
    try:
        for operation, *values in operations:
            getattr(harness, operation)(*values)
            harness.check()
        harness.drain()
    finally:
        harness.close()


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[RedisServer]:
    """A Redis with an append-only file, which may be killed."""
    with RedisServer(persistent=True) as server:
        yield server


@pytest.mark.parametrize("rule", RULES[1:3], ids=str)
@settings(max_examples=8)
@given(
    operations=st.lists(
        st.one_of(OPERATION, OPERATION, PUBLISH, st.tuples(st.just("restart"))), max_size=40
    )
)
def test_the_order_survives_restarts_of_redis(
    lasting_redis: RedisServer, rule: Rule, operations: list[Any]
) -> None:
    harness = Harness(lasting_redis.url, rule)
    try:
        for operation, *values in [*operations, ("restart",)]:
            if operation == "restart":
                values = [lasting_redis, False]
            getattr(harness, operation)(*values)
            harness.check()
        harness.drain()
    finally:
        harness.close()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("rule", "count"), [(Rule(), 10_000), (Rule(work=2.0, late_share=0.2), 3000)]
)
def test_thousands_of_messages_in_exact_order(rule: Rule, count: int) -> None:
    with RedisServer(arguments=("--dbfilename", "dump.rdb")) as server:
        harness = Harness(server.url, rule)

        def publish() -> None:
            offset = random.choice([PAST, FAR]) + random.randrange(20_000)
            harness.publish(offset, random.choice([0.5, 5.0, 60.0]))

        for _ in range(count):
            publish()
        for number in range(3000):
            match random.randrange(6):
                case 0 | 1:
                    harness.claim()
                case 2:
                    publish()
                case 3:
                    harness.settle(random.choice(["ack", "reject"]), number)
                case 4:
                    harness.settle("requeue", number)
            if number % 1000 == 500:
                harness.reconnect()
        harness.restart(server, save=True)
        harness.drain()
        harness.close()


@pytest.mark.parametrize("rule", [Rule(), Rule(work=2.0)], ids=str)
def test_hopeless_messages_are_counted_as_a_claim_finds_them(
    url: str, raw: redis.Redis, rule: Rule
) -> None:
    now = time.time()
    with connect(url, rule) as connection:
        channel = connection.default_channel
        assert hopeless_in(channel, NAME) == 0
        for offset, tau in ((-10, 100.0), (50, 100.0), (60, 100.0), (500, 100.0), (FAR, 1.0)):
            message = Message(now + offset, now - 200, tau, str(offset))
            channel._put(NAME, envelope(message))
        # Its score, by its horizon, is in the past, but it has no deadline to miss.
        unplanned = envelope(Message(1, 1, 1, "unplanned"))
        unplanned["headers"], unplanned[ARRIVAL] = {"task": "t"}, now - 1000
        channel._put(NAME, unplanned)
        assert hopeless_in(channel, NAME) == 3
        assert channel.basic_get(NAME).delivery_tag == "unplanned"
        assert channel.basic_get(NAME).delivery_tag == "500"
        assert raw.zcard(f"{NAME}\x06\x16edf:demoted") == 3
        assert hopeless_in(channel, NAME) == 0


def test_hopeless_messages_far_back_are_estimated(url: str, raw: redis.Redis) -> None:
    now, message = time.time(), envelope(Message(1, 1, 1, "1"))

    def put(count: int, hopeless: Callable[[int], bool]) -> None:
        raw.delete(f"{NAME}\x06\x16edf")
        places = [Place(n, now + (-FAR if hopeless(n) else FAR), n) for n in range(count)]
        members = {member(message, "{}", place, NAME): place.score for place in places}
        raw.zadd(f"{NAME}\x06\x16edf", members)

    with connect(url) as connection:
        channel, exact = connection.default_channel, COUNTED + SAMPLED
        put(exact, lambda n: n % 7 == 0)
        assert hopeless_in(channel, NAME) == len(range(0, exact, 7))
        # A few among the first are counted exactly, however many follow.
        put(20 * exact, lambda n: n in (3, 100, COUNTED - 1))
        assert hopeless_in(channel, NAME) == 3
        put(20 * exact, lambda n: n % 5 == 0)
        assert hopeless_in(channel, NAME) == pytest.approx(4 * exact, rel=0.25)


def test_messages_on_plain_lists_are_adopted(url: str, raw: redis.Redis) -> None:
    start = time.time()
    with connect(url) as connection, Connection(url) as other:
        ordered, plain = connection.default_channel, other.default_channel
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
        refused = f"{NAME}\x06\x16edf:refused"
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


def test_a_claim_adopts_few_large_messages(url: str, raw: redis.Redis) -> None:
    start = time.time()
    with connect(url) as connection:
        channel = connection.default_channel
        for number in range(5):
            message = envelope(Message(start + FAR + number, start, 1.0, str(number)))
            raw.lpush(NAME, json.dumps({**message, "body": "x" * 1_000_000}))
        assert channel.basic_get(NAME).delivery_tag == "0"
        state = state_of(channel, NAME)
        assert (state.ordered, state.plain) == (0, 4)


#: Redis parses these, Python or kombu does not.
UNREADABLE = {
    "no text": b'{"body":"\xff\xfe","headers":{},"properties":{"delivery_tag":"%d"}}',
    "no JSON": b'{"body":"x","size":0x1F,"headers":{},"properties":{"delivery_tag":"%d"}}',
    "headers": b'{"body":"x","headers":[1],"properties":{"delivery_tag":"%d"}}',
    "encoding": b'{"body":"x","properties":{"delivery_tag":"%d","body_encoding":"zip"}}',
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_messages_are_refused(url: str, raw: redis.Redis, text: bytes) -> None:
    got: list[str] = []
    start = time.time()
    with connect(url) as connection, redis.Redis.from_url(url) as client:
        channel = connection.default_channel
        queue = Queue(NAME, Exchange(""), NAME, no_declare=True)
        raw.rpush(f"{NAME}\x06\x16edf:refused", *["before"] * 1000)
        client.lpush(NAME, text % 1)
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "first")))
        assert channel.basic_get(NAME, no_ack=True).delivery_tag == "first"
        client.lpush(NAME, text % 2)
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "second")))
        with Consumer(
            channel, queue, on_message=lambda m: (got.append(m.delivery_tag), m.ack())
        ):
            while not got:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=5)
        assert got == ["second"]
        last, first, *before = client.lrange(f"{NAME}\x06\x16edf:refused", 0, -1)
        for number, kept in ((2, last), (1, first)):
            assert kept.startswith((text % number)[:-1])  # its arrival was added
        assert before == [b"before"] * 998
        assert health.take_counts()["messages_refused"] == 2
        assert not raw.exists("unacked", "unacked_index", f"{NAME}\x06\x16edf")


def test_unreadable_messages_are_counted_and_moved(url: str, raw: redis.Redis) -> None:
    start = time.time()
    text = UNREADABLE["no text"] % 1
    with connect(url, Rule(horizons={NAME: FAR})) as connection:
        channel = connection.default_channel
        channel._put(NAME, envelope(Message(start + 5, start, 1.0, "first")))
        channel._put(NAME, envelope(Message(start + 2 * FAR, start, 1.0, "last")))
        with redis.Redis.from_url(url) as client:
            client.lpush(NAME, text)
            assert channel.basic_get(NAME, no_ack=True).delivery_tag == "first"  # adopts it
            state = state_of(channel, NAME)
            assert (state.ordered, state.next_deadline) == (2, None)
            assert move_to_lists(channel, NAME) == 2
            moved = client.lrange(NAME, 0, -1)
    assert moved[1].startswith(text[:-1])
    assert json.loads(moved[0]) == envelope(Message(start + 2 * FAR, start, 1.0, "last"))


def test_a_message_without_delivery_info_is_requeued_to_its_queue(url: str) -> None:
    foreign = envelope(Message(1, 1, 1, "1"))
    foreign["headers"] = None
    del foreign["properties"]["delivery_info"]
    with connect(url) as connection, redis.Redis.from_url(url) as client:
        channel = connection.default_channel
        client.lpush(NAME, json.dumps(foreign))
        channel.basic_get(NAME).reject(requeue=True)
        assert channel.basic_get(NAME, no_ack=True).delivery_tag == "1"


def test_workers_empty_the_queues_of_a_redis_out_of_memory(url: str, raw: redis.Redis) -> None:
    start = time.time()
    with connect(url) as connection, Connection(url) as other:
        channel = connection.default_channel
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "1")))
        channel._put(NAME, envelope(Message(start + PAST, start, 1.0, "2")))
        other.default_channel._put(NAME, envelope(Message(start + 2 * FAR, start, 1.0, "3")))
        raw.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.ResponseError):
                channel._put(NAME, envelope(Message(start, start, 1.0, "4")))
            for settle in ("ack", "reject", "ack"):
                getattr(channel.basic_get(NAME), settle)()
        finally:
            raw.config_set("maxmemory", 0)
        assert channel.basic_get(NAME) is None
        assert not raw.exists("unacked", "unacked_index")


def test_a_redis_out_of_memory_is_counted_and_purged(url: str, raw: redis.Redis) -> None:
    start = time.time()
    with connect(url) as connection, Connection(url) as other:
        channel = connection.default_channel
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "1")))
        other.default_channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "2")))
        raw.config_set("maxmemory", 1)
        try:
            state = state_of(channel, NAME)
            assert (state.ordered, state.plain) == (1, 1)
            assert channel.queue_declare(NAME, passive=True).message_count == 2
            assert channel.queue_purge(NAME) == 2
        finally:
            raw.config_set("maxmemory", 0)
        assert not raw.exists(NAME, f"{NAME}\x06\x16edf")


def test_demoted_messages_are_dropped_once_drop_is_configured(url: str) -> None:
    start = time.time()
    late, due = Message(start + PAST, start, 1.0, "1"), Message(start + FAR, start, 1.0, "2")
    with connect(url) as connection:
        for message in (late, due):
            connection.default_channel._put(NAME, envelope(message))
        assert connection.default_channel.basic_get(NAME, no_ack=True).delivery_tag == "2"
    with connect(url, Rule(hopeless="drop")) as connection:
        got = connection.default_channel.basic_get(NAME, no_ack=True)
        assert (got.delivery_tag, got.headers[DROPPED]) == ("1", True)


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


def test_queues_without_workers_are_known_by_their_open_tasks(
    url: str, raw: redis.Redis, tmp_path: Path
) -> None:
    app = Celery("producer", broker=url, set_as_current=False)
    app.conf.update(rts_redis_url=url, rts_scheduler="edf", rts_spool_dir=str(tmp_path))
    rts.install(app)
    app.send_task("t", queue="elsewhere")
    settings, parts = Settings.from_conf(app.conf), parts_of(app)
    assert parts is not None
    assert parts.open_tasks is not None
    parts.open_tasks.flush()
    # Not every routing key is the name of a queue.
    raw.hset("users", "1", "me")
    raw.hset(settings.keys.open_counts, mapping={"open users": 1, "overdue gone": 1})
    with connect(url) as connection:
        connection.default_channel._put("unheard", envelope(Message(FAR, 1.0, 1.0, "1")))
    raw.config_resetstat()
    waiting = {reading.queue: reading.ordered for reading in queue_readings(app, settings)()}
    assert waiting == {"celery": 0, "elsewhere": 1}
    assert "cmdstat_scan" not in raw.info("commandstats"), "scans all keys of the broker"
    with ordered_channel(app, settings) as channel:
        assert all_queue_names(app, settings, channel, FleetQueues()) == sorted(
            [*waiting, "unheard"]
        )
    rts.uninstall(app)
    app.close()


def test_a_consumer_wakes_on_publish(url: str) -> None:
    got: list[str] = []
    queue = Queue(NAME, Exchange(NAME), NAME)
    with connect(url) as connection, connect(url) as producer:
        consumer = Consumer(connection, queue)
        consumer.register_callback(lambda body, m: (got.append(body), m.ack()))
        consumer.consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.3)
        for number in range(3):
            Producer(producer, Exchange(NAME), NAME).publish(number)
            connection.drain_events(timeout=5)
    assert got == [0, 1, 2]


def next_wait(connection: Connection, raw: redis.Redis) -> str:
    """Return the arguments of the next ``BRPOP`` of *connection*: keys and timeout."""
    with raw.monitor() as monitor:
        while True:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            raw.echo("over")
            while not (command := str(monitor.next_command()["command"])).startswith("ECHO"):
                if command.startswith("BRPOP "):
                    return command.removeprefix("BRPOP ")


def test_an_idle_consumer_blocks_on_the_bell(url: str, raw: redis.Redis) -> None:
    # Replies of workers without the order come on plain lists, without a bell.
    with connect(url) as connection:
        channel, answers = connection.default_channel, Queue("answers")
        with Consumer(channel, Queue(NAME, Exchange(""), NAME)):
            assert next_wait(connection, raw).endswith(" 1")
            with Consumer(channel, answers, no_ack=True):
                assert next_wait(connection, raw).endswith(" 0.2")
            waits = [
                next_wait(connection, raw) for _ in range(2)
            ]  # the first may be an earlier one
            assert waits[-1].endswith(" 1")


def test_what_is_no_task_rings_the_bell_once_and_for_a_while(
    url: str, raw: redis.Redis
) -> None:
    bell = f"{NAME}\x06\x16edf:bell"
    with connect(url) as connection:
        for number in range(2):
            reply = {**envelope(Message(FAR, 1.0, 1.0, str(number))), "headers": {}}
            connection.default_channel._put(NAME, reply)
        assert (raw.llen(NAME), raw.lrange(bell, 0, -1)) == (2, ["1"])
        assert 0 < raw.pttl(bell) <= BELL_TTL_MS


def test_round_robin_and_sorted_over_queues(url: str) -> None:
    start = time.time()
    for strategy, expected in (
        ("round_robin", [["a0", "b0"], ["a1", "b1"]]),
        ("sorted", [["a0", "a1"], ["b0", "b1"]]),
    ):
        got: list[str] = []
        queues = [Queue(name, Exchange(""), name, no_declare=True) for name in "ab"]
        with connect(url, queue_order_strategy=strategy) as connection:
            channel = connection.default_channel
            for name, number in itertools.product("ba", range(2)):
                message = Message(start + FAR + number, start, 1.0, f"{name}{number}")
                channel._put(name, envelope(message, name))
            consumer = Consumer(
                channel,
                queues,
                on_message=lambda m, got=got: (got.append(m.delivery_tag), m.ack()),
            )
            with consumer:
                for _ in range(4):
                    connection.drain_events(timeout=5)
        assert [sorted(got[:2]), sorted(got[2:])] == expected


def test_topic_and_fanout(url: str, raw: redis.Redis) -> None:
    got: list[tuple[str, Any]] = []
    topic, fanout = Exchange("topics", "topic"), Exchange("all", "fanout")
    with connect(url) as connection:
        queues = [Queue("t", topic, "log.#"), Queue("f", fanout)]
        consumer = Consumer(
            connection,
            queues,
            callbacks=[
                lambda body, m: (got.append((m.delivery_info["exchange"], body)), m.ack())
            ],
        )
        with consumer, connect(url) as sender:
            while "12" not in [client["db"] for client in raw.client_list(_type="pubsub")]:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)  # subscribes
            producer = Producer(sender)
            producer.publish(1, exchange=topic, routing_key="log.error", declare=[topic])
            producer.publish(2, exchange=topic, routing_key="other", declare=[topic])
            producer.publish(3, exchange=fanout, declare=[fanout])
            while len(got) < 2:
                connection.drain_events(timeout=5)
    assert sorted(got) == [("all", 3), ("topics", 1)]


def test_size_purge_expiry_and_prefix(url: str, raw: redis.Redis) -> None:
    start = time.time()
    with connect(url, global_keyprefix="app1:") as connection:
        channel = connection.default_channel
        queue = Queue(NAME, Exchange(NAME), NAME, expires=60)(channel)
        queue.declare()
        for number, offset in enumerate((FAR, PAST, FAR)):
            channel._put(NAME, envelope(Message(start + offset, start, 1.0, str(number))))
        assert channel.basic_get(NAME).delivery_tag == "0"
        assert queue.queue_declare(passive=True).message_count == 2
        assert all(name.startswith("app1:") for name in raw.keys("*"))
        if channel._expires:  # kombu 5.7
            parts = ("edf", "edf:demoted", "edf:bell")
            assert all(0 < raw.pttl(f"app1:{NAME}\x06\x16{p}") <= 60_000 for p in parts)
        assert queue.purge() == 2
        with pytest.raises(Exception, match="NOT_FOUND"):
            queue.queue_declare(passive=True)
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "3")))
        queue.delete()
        assert not raw.exists(f"app1:{NAME}\x06\x16edf", f"app1:{NAME}\x06\x16edf:bell")


def test_without_emulated_acknowledgements(url: str, raw: redis.Redis) -> None:
    start = time.time()
    with connect(url, ack_emulation=False) as connection:
        channel = connection.default_channel
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "1")))
        message = channel.basic_get(NAME)
        assert not raw.exists("unacked")
        message.requeue()
        assert channel.basic_get(NAME).delivery_tag == "1"


def test_a_flushed_script_and_a_cut_connection(url: str, raw: redis.Redis) -> None:
    got: list[str] = []
    start = time.time()
    with connect(url) as connection:
        channel = connection.default_channel
        queue = Queue(NAME, Exchange(""), NAME, no_declare=True)
        with Consumer(
            channel, queue, on_message=lambda m: (got.append(m.delivery_tag), m.ack())
        ):
            for number in range(3):
                channel._put(NAME, envelope(Message(start + FAR, start, 1.0, str(number))))
                connection.drain_events(timeout=5)
                raw.script_flush()
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
            raw.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(connection.connection_errors):  # by the second poll
                [connection.drain_events(timeout=1) for _ in range(2)]
    assert got == ["0", "1", "2"]


def test_unacknowledged_messages_return_after_the_visibility_timeout(url: str) -> None:
    start = time.time()
    with (
        connect(url, visibility_timeout=0.1) as dead,
        connect(url, visibility_timeout=0.1) as connection,
    ):
        for tag, more in (("late", 9.0), ("soon", 1.0)):
            dead.default_channel._put(
                NAME, envelope(Message(start + FAR + more, start, 1.0, tag))
            )
        assert dead.default_channel.basic_get(NAME).delivery_tag == "soon"
        time.sleep(0.2)
        channel = connection.default_channel
        channel.qos.restore_visible(interval=1)
        message = channel.basic_get(NAME)
        assert (message.delivery_tag, message.headers["redelivered"]) == ("soon", True)
        dead.default_channel.qos._delivered.clear()


def test_what_a_queue_of_another_app_left_is_restored_for_its_workers(
    url: str, raw: redis.Redis
) -> None:
    start = time.time()
    with Connection(url) as stock, connect(url, visibility_timeout=0) as connection:
        theirs = stock.default_channel
        theirs._put("theirs", envelope(Message(start + FAR, start, 1.0, "1"), "theirs"))
        assert theirs.basic_get("theirs").delivery_tag == "1"
        theirs.qos._delivered.clear()  # it is dead
        connection.default_channel.qos.restore_visible(interval=1)
        assert 0 < raw.pttl("theirs\x06\x16edf:bell") <= BELL_TTL_MS
        message = theirs.basic_get("theirs")
        assert (message.delivery_tag, message.headers["redelivered"]) == ("1", True)
        assert not raw.exists("theirs\x06\x16edf")


def test_a_message_without_a_consumer_returns_to_the_order(url: str) -> None:
    with connect(url) as connection:
        _, channel = connection.channel(), connection.channel()
        channel.basic_consume(NAME, False, lambda message: None, "tag")
        channel._put(NAME, envelope(Message(time.time() + FAR, 1.0, 1.0, "1")))
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
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.time()
    with connect(url) as connection:
        channel = connection.default_channel
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "1")))
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
        assert raw.llen(f"{NAME}\x06\x16edf:bell") == 1
        assert channel.basic_get(NAME).delivery_tag == "1"


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


def test_claims_are_limited_to_the_free_slots(url: str, raw: redis.Redis) -> None:
    class Gauge:
        slots, held = True, False

        def free(self) -> bool:
            return self.slots

        def may_take_demoted(self, share: float) -> bool:
            return not self.held

        def claimed_demoted(self, task_id: object) -> None:
            self.held = True

    gauge, start = Gauge(), time.time()
    with connect(url) as connection:
        channel = connection.default_channel
        channel.slots = gauge
        got: list[str] = []
        queue = Queue(NAME, Exchange(""), NAME, no_declare=True)
        with Consumer(channel, queue, on_message=lambda m: got.append(m.delivery_tag)):
            gauge.slots = False
            for tag, offset in (("1", PAST), ("2", PAST), ("3", FAR)):
                channel._put(NAME, envelope(Message(start + offset, start, 1.0, tag)))
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            gauge.slots = True
            for _ in range(2):
                connection.drain_events(timeout=5)
            assert got == ["3", "1"]
            with pytest.raises(TimeoutError):  # only demoted work waits, and the cap is reached
                connection.drain_events(timeout=0.3)
            # A key with this queue's name: a Redis ACL may allow no other.
            assert next_wait(connection, raw).startswith(NAME)
            gauge.held = False
            connection.drain_events(timeout=5)
            assert got == ["3", "1", "2"]
            channel.basic_qos(0, 3, False)  # the prefetch count limits them, too
            channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "4")))
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            channel.basic_qos(0, 0, False)
            connection.drain_events(timeout=5)
            assert got[3:] == ["4"]
            # While it waits for the bell a task whose eta has come takes the slot. (Before
            # 5.7 kombu leaves the reply unread, and polls again at once.)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            gauge.slots = False
            channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "5")))
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.3)
            gauge.slots = True
            connection.drain_events(timeout=5)
            assert got[4:] == ["5"]


def test_each_connection_of_a_worker_with_threads_wakes_it_with_one_timer(url: str) -> None:
    hub, slots = Hub(), None
    pool = SimpleNamespace(uses_semaphore=False)
    with connect(url) as connection:
        tasks = SimpleNamespace(channel=connection.default_channel)
        consumer = SimpleNamespace(task_consumer=tasks, hub=hub, pool=pool)
        for _ in range(3):
            slots = limit_to_slots(consumer, slots)
            hub.timer.queue[0].entry()  # it fires
        assert len([each for each in hub.timer.queue if not each.entry.canceled]) == 1
    hub.close()


def test_a_broadcast_is_read_also_while_no_slot_is_free(url: str) -> None:
    class Full:
        def free(self) -> bool:
            return False

    with connect(url) as connection, connect(url) as sender:
        channel = connection.default_channel
        channel.slots = Full()
        news = Exchange("news", "fanout")
        got: list[Any] = []
        queue = Queue("reader", news, auto_delete=True)
        with Consumer(channel, queue, callbacks=[lambda body, _: got.append(body)]):
            drained(connection)  # it subscribes
            Producer(sender.default_channel, news).publish("extra")
            wait_until(lambda: drained(connection) or got, message="it is read")
        assert got == ["extra"]


def drained(connection: Connection) -> None:
    """Let the events of a tenth of a second happen."""
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.1)


def test_a_claim_rings_the_bell_for_messages_left_to_others(url: str, raw: redis.Redis) -> None:
    class Gauge:
        def free(self) -> bool:
            return True

        def may_take_demoted(self, share: float) -> bool:
            return False

        def claimed_demoted(self, task_id: object) -> None:
            raise AssertionError("it may not be claimed")

    start, queues = time.time(), ["urgent", NAME]
    bell = f"{NAME}\x06\x16edf:bell"
    with connect(url, queue_order_strategy="priority") as connection:
        channel = connection.default_channel
        channel.slots = Gauge()
        channel._put(NAME, envelope(Message(start + FAR, start, 1.0, "1")))
        channel._put("urgent", envelope(Message(start + FAR, start, 1.0, "2"), "urgent"))
        assert raw.rpop(bell) == "1"
        state, index, *_ = CLAIM.run(channel.plain, *channel._claim_arguments(queues))
        assert (state, queues[index]) == (b"message", "urgent")
        assert raw.llen(bell) == 1
        # This worker may take no more demoted tasks, but another one might.
        raw.delete(f"{NAME}\x06\x16edf")
        channel._put(NAME, envelope(Message(start + PAST, start, 1.0, "3")))
        assert raw.rpop(bell) == "1"
        assert CLAIM.run(channel.plain, *channel._claim_arguments(queues))[0] == b"capped"
        assert raw.llen(bell) == 1


def test_without_the_option_the_transport_is_kombus(url: str, raw: redis.Redis) -> None:
    from kombu.transport import redis as stock

    with Connection(url, transport=Transport) as connection:
        assert type(connection.default_channel) is stock.Channel
        connection.SimpleQueue("plain").put(1)
        assert raw.llen("plain") == 1
    assert issubclass(SentinelTransport, stock.SentinelTransport)
    with connect(url) as connection:
        assert isinstance(connection.default_channel, Channel)


def test_edf_is_refused_if_the_broker_is_not_redis() -> None:
    app = Celery("rabbit", broker="amqp://localhost")
    app.conf.rts_scheduler = "edf"
    with pytest.raises(rts.ConfigurationError, match=r"edf.*priority.*amqp"):
        rts.install(app)


def test_edf_is_refused_if_no_broker_is_ever_configured() -> None:
    app = Celery("none")
    app.conf.rts_scheduler = "edf"
    rts.install(app)  # a broker may still be configured
    with pytest.raises(rts.ConfigurationError, match=r"edf.*priority.*amqp"):
        turn_on(app, Settings.from_conf(app.conf))
    rts.uninstall(app)
