"""The deadline order on a real Redis: claims against a model."""

from __future__ import annotations

import bisect
import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from rts.headers import DROPPED_HEADER
from rts.rule import Rule
from rts.scheduling.encoding import ARRIVAL, Place, member
from rts.scheduling.queues import COUNTED, SAMPLED, hopeless_in
from rts.scheduling.scripts import BYTES, CLAIM
from rts.simulation.orders import EarliestDeadlineFirst, Waiting
from rts.simulation.queues import Queues, WorkerGroup
from rts.testing import RedisServer
from tests.order import EDF, FAR, NAME, PAST, Message, connect, envelope


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
        assert (got.delivery_tag, DROPPED_HEADER in got.headers) == (
            expected[0].tag,
            expected[1],
        )
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
def test_claims_follow_the_rule(server: RedisServer, rule: Rule, operations: list[Any]) -> None:
    harness = Harness(server.url, rule)
    try:
        for operation, *values in operations:
            getattr(harness, operation)(*values)
            harness.check()
        harness.drain()
    finally:
        harness.close()


@pytest.mark.parametrize("strategy", ["round_robin", "priority"])
@pytest.mark.parametrize(
    "rule",
    [Rule(late_share=0.34), Rule(late_share=0.0, work=2.0), Rule(hopeless="keep")],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_simulated_queues_are_taken_from_as_claims_do(
    server: RedisServer, rule: Rule, strategy: str, seed: int
) -> None:
    """What predictions and replays go by is what workers go by, across several queues, too."""
    rng = random.Random(seed)
    in_turn, order = strategy == "round_robin", partial(EarliestDeadlineFirst, rule)
    simulated = Queues(order, [WorkerGroup(1, (0, 1, 2))], in_turn=in_turn)
    names = [uuid.uuid4().hex for _ in range(3)]
    claimed, expected = [], []
    with connect(server.url, rule, queue_order_strategy=strategy) as connection:
        channel: Any = connection.default_channel
        channel._queue_cycle.update(names)
        now = time.time()
        for number in range(60):
            if number < 40:
                queue, tau = rng.randrange(3), rng.choice([1.0, 50.0])
                arrival = now - rng.uniform(0, 1000)
                deadline = now + rng.choice([FAR, PAST]) + rng.uniform(0, 200)
                message = envelope(Message(deadline, arrival, tau, str(number)), names[queue])
                if due := rng.random() < 0.8:
                    simulated.push(queue, Waiting(arrival, tau, deadline, number))
                else:  # by its horizon
                    del message["headers"]["rts_deadline"]
                    message[ARRIVAL] = arrival
                    horizon = arrival + rule.horizon(names[queue])
                    simulated.push(queue, Waiting(arrival, tau, horizon, number, due))
                channel._put(names[queue], message)
            if number % 2 or number >= 40:
                queues = list(channel._queue_cycle.consume(3))
                reply = CLAIM.run(channel.plain, *channel._claim_arguments(queues))
                name, payload = channel._parse_claim(queues, reply)
                channel._queue_cycle.rotate(name)
                claimed.append(int(payload["headers"]["id"]))
                taken = simulated.pop(0, now, may=True)
                expected.append(taken[1].number)
    assert claimed == expected


@pytest.mark.parametrize("strategy", ["round_robin", "priority"])
def test_the_late_share_is_one_of_all_claims_and_serves_who_has_waited_longest(
    server: RedisServer, strategy: str
) -> None:
    """However many queues of a worker hold demoted messages."""
    names = [uuid.uuid4().hex for _ in range(8)]
    with connect(server.url, Rule(late_share=0.1), queue_order_strategy=strategy) as connection:
        channel: Any = connection.default_channel
        channel._queue_cycle.update(names)
        now = time.time()
        for number in range(70):
            message = Message(now + PAST, now + PAST + number, 1.0, f"late-{number}")
            queue = names[6 - number % 7]
            channel._put(queue, envelope(message, queue))
        for number in range(180):
            message = Message(now + FAR + number, now, 1.0, f"hopeful-{number}")
            channel._put(names[7], envelope(message, names[7]))
        claimed = []
        for _ in range(200):
            queues = list(channel._queue_cycle.consume(len(names)))
            reply = CLAIM.run(channel.plain, *channel._claim_arguments(queues))
            name, payload = channel._parse_claim(queues, reply)
            channel._queue_cycle.rotate(name)
            claimed.append(payload["headers"]["id"])
    late = [place for place, tag in enumerate(claimed) if tag.startswith("late")]
    assert [claimed[place] for place in late] == [f"late-{number}" for number in range(20)]
    assert late == list(range(9, 200, 10))


def test_the_late_share_does_not_exceed_the_cap(url: str, raw: redis.Redis) -> None:
    """Of a worker that may take no more demoted tasks; nor does it count such claims."""
    now = time.time()
    with connect(url, Rule(late_share=1.0)) as connection:
        channel: Any = connection.default_channel
        channel.slots = SimpleNamespace(may_take_demoted=lambda share: False)
        for number, offset in enumerate((PAST, FAR)):
            message = Message(now + offset, now, 1.0, str(number))
            channel._put(NAME, envelope(message))
        assert channel.basic_get(NAME).delivery_tag == "1"
        assert channel.basic_get(NAME) is None
        assert not raw.exists(f"{NAME}{EDF}:turns")


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
        assert raw.zcard(f"{NAME}{EDF}:demoted") == 3
        assert hopeless_in(channel, NAME) == 0


def test_hopeless_messages_far_back_are_estimated(url: str, raw: redis.Redis) -> None:
    now, message = time.time(), envelope(Message(1, 1, 1, "1"))

    def put(count: int, hopeless: Callable[[int], bool], payload: str = "{}") -> None:
        raw.delete(f"{NAME}{EDF}")
        places = [Place(n, now + (-FAR if hopeless(n) else FAR), n) for n in range(count)]
        members = {member(message, payload, place, NAME): place.score for place in places}
        raw.zadd(f"{NAME}{EDF}", members)

    with connect(url) as connection:
        channel, exact = connection.default_channel, COUNTED + SAMPLED
        put(exact, lambda n: n % 7 == 0)
        assert hopeless_in(channel, NAME) == len(range(0, exact, 7))
        # A few among the first are counted exactly, however many follow.
        put(20 * exact, lambda n: n in (3, 100, COUNTED - 1))
        assert hopeless_in(channel, NAME) == 3
        put(20 * exact, lambda n: n % 5 == 0)
        raw.config_resetstat()
        assert hopeless_in(channel, NAME) == pytest.approx(4 * exact, rel=0.25)
        assert raw.info("commandstats")["cmdstat_zrange"]["calls"] <= exact
        # Of large messages it looks at few.
        put(40, lambda n: n >= 3, "x" * (1 << 20))
        raw.config_resetstat()
        assert hopeless_in(channel, NAME) == 37
        assert raw.info("commandstats")["cmdstat_zrange"]["calls"] <= 2 * BYTES >> 20
