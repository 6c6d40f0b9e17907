"""Consumers of queues in deadline order on a real Redis: bells, slots, several queues."""

from __future__ import annotations

import itertools
import math
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.concurrency.prefork import TaskPool
from celery.worker import state
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from kombu.transport import redis as stock
from kombu.utils import eventio

from rts.link.link import MAX_IDLE_S
from rts.predictions.queue_reader import QueueReader
from rts.rule import Rule
from rts.scheduling.channel import Channel
from rts.scheduling.discovery import FleetQueues, all_queue_names
from rts.scheduling.layout import BELL_TTL_MS
from rts.scheduling.queues import ordered_channel
from rts.scheduling.scripts import CLAIM
from rts.scheduling.slots import Slots, limit_to_slots
from rts.scheduling.transport import SentinelTransport, Transport
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from tests.order import EDF, FAR, NAME, PAST, Message, connect, envelope, put
from tests.relay import relay


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


def test_a_consumer_polls_once_a_producer_has_pushed_to_the_plain_list(
    url: str, raw: redis.Redis
) -> None:
    with connect(url) as connection, Connection(url) as stock:
        consumer = Consumer(connection, Queue(NAME, Exchange(""), NAME))
        consumer.register_callback(lambda body, message: message.ack())
        with consumer:
            put(stock.default_channel, "1")
            connection.drain_events(timeout=5)
            assert next_wait(connection, raw).endswith(" 0.2")


def test_what_is_no_task_rings_the_bell_once_and_for_a_while(
    channel: Any, raw: redis.Redis
) -> None:
    bell = f"{NAME}{EDF}:bell"
    for number in range(2):
        reply = {**envelope(Message(FAR, 1.0, 1.0, str(number))), "headers": {}}
        channel._put(NAME, reply)
    assert (raw.llen(NAME), raw.lrange(bell, 0, -1)) == (2, ["1"])
    assert 0 < raw.pttl(bell) <= BELL_TTL_MS


def test_a_bell_is_rung_once_however_many_messages_wait(channel: Any, raw: redis.Redis) -> None:
    bell = f"{NAME}{EDF}:bell"
    for number in range(4):
        put(channel, str(number), FAR + number)
    for _ in range(2):
        channel.basic_get(NAME).requeue()
        assert raw.lrange(bell, 0, -1) == ["1"]


def test_round_robin_and_sorted_over_queues(url: str) -> None:
    for strategy, expected in (
        ("round_robin", [["a0", "b0"], ["a1", "b1"]]),
        ("sorted", [["a0", "a1"], ["b0", "b1"]]),
    ):
        got: list[str] = []
        queues = [Queue(name, Exchange(""), name, no_declare=True) for name in "ab"]
        with connect(url, queue_order_strategy=strategy) as connection:
            channel = connection.default_channel
            for name, number in itertools.product("ba", range(2)):
                put(channel, f"{name}{number}", FAR + number, queue=name)
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
    marked: list[bool] = []
    topic, fanout = Exchange("topics", "topic"), Exchange("all", "fanout")
    with connect(url) as connection:
        queues = [Queue("t", topic, "log.#"), Queue("f", fanout)]
        consumer = Consumer(
            connection,
            queues,
            callbacks=[
                lambda body, m: (
                    got.append((m.delivery_info["exchange"], body)),
                    marked.append(raw.hexists("unacked", m.delivery_tag)),
                    m.ack(),
                )
            ],
        )
        with consumer, connect(url) as sender:
            while not raw.client_list(_type="pubsub"):
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)  # subscribes
            producer = Producer(sender)
            producer.publish(1, exchange=topic, routing_key="log.error", declare=[topic])
            producer.publish(2, exchange=topic, routing_key="other", declare=[topic])
            producer.publish(3, exchange=fanout, declare=[fanout])
            while len(got) < 2:
                connection.drain_events(timeout=5)
    assert sorted(got) == [("all", 3), ("topics", 1)]
    assert marked == [True, True]


def test_size_purge_expiry_and_prefix(url: str, raw: redis.Redis) -> None:
    with connect(url, global_keyprefix="app1:") as connection:
        channel = connection.default_channel
        queue = Queue(NAME, Exchange(NAME), NAME, expires=60)(channel)
        queue.declare()
        for number, offset in enumerate((FAR, PAST, FAR)):
            put(channel, str(number), offset)
        if channel._expires:  # kombu 5.7
            assert all(0 < raw.pttl(name) <= 60_000 for name in raw.keys(f"*{EDF}*"))
        raw.pexpire(f"app1:{NAME}{EDF}", 10_000)
        assert channel.basic_get(NAME).delivery_tag == "0"
        assert queue.queue_declare(passive=True).message_count == 2
        assert all(name.startswith("app1:") for name in raw.keys("*"))
        if channel._expires:
            parts = ("edf", "edf:demoted", "edf:bell")
            # A get resets it.
            assert all(10_000 < raw.pttl(f"app1:{NAME}\x06\x16{p}") <= 60_000 for p in parts)
        assert queue.purge() == 2
        with pytest.raises(Exception, match="NOT_FOUND"):
            queue.queue_declare(passive=True)
        put(channel, "3")
        queue.delete()
        assert not raw.exists(f"app1:{NAME}{EDF}", f"app1:{NAME}{EDF}:bell")


def test_whatever_a_claim_leaves_of_a_queue_that_expires_does_so_too(
    channel: Any, plain: Any, raw: redis.Redis
) -> None:
    for number, offset in enumerate((FAR, PAST, FAR)):
        put(plain, str(number), offset)
    raw.pexpire(NAME, 60_000)
    state, *_ = CLAIM.run(channel.plain, *channel._claim_arguments([NAME]))
    assert state == b"message"
    left = {key: raw.pttl(key) for key in raw.scan_iter(f"{NAME}*")}
    parts = ("edf", "edf:demoted", "edf:bell", "edf:turns")
    assert left.keys() == {f"{NAME}\x06\x16{part}" for part in parts}
    assert all(0 < ttl <= 60_000 for ttl in left.values()), left


def test_no_prefix_may_be_given_as_none(url: str, raw: redis.Redis) -> None:
    none = {"global_keyprefix": None}
    with connect(url, **none) as connection, Connection(url) as other:
        channel = connection.default_channel
        task = envelope(Message(time.time() + FAR, 1.0, 1.0, "1"))
        for producer, message in (
            (channel, task),
            (channel, {**task, "headers": {}}),
            (other.default_channel, task),
        ):
            producer._put(NAME, message)
            channel.basic_get(NAME).requeue()
            channel.basic_get(NAME).ack()
        assert not raw.exists(NAME, f"{NAME}{EDF}", "unacked")
    app = Celery("reader", broker=url, set_as_current=False)
    app.conf.broker_transport_options = none
    settings = Settings.from_conf(app.conf)
    with ordered_channel(app, settings) as channel:
        assert all_queue_names(app, settings, channel, FleetQueues()) == ["celery"]
    reader = QueueReader(app, settings)
    assert reader.waiting(["celery"]) == [0]
    reader.close()
    app.close()


def test_a_message_is_marked_though_a_consumer_of_its_queue_acknowledges_none(
    channel: Any,
) -> None:
    channel.basic_consume(NAME, True, lambda message: None, "tag")
    put(channel, "1")
    channel.basic_get(NAME).requeue()
    assert channel._size(NAME) == 1


@pytest.mark.skipif(not hasattr(stock.Channel, "maybe_reauth"), reason="kombu < 5.7")
def test_connections_that_publish_get_new_credentials(url: str, raw: redis.Redis) -> None:
    from tests.tokens import Tokens  # redis-py >= 5.3

    tokens, options = Tokens(), {"rts": Rule().as_option()}
    with Connection(
        url, transport=Transport, transport_options=options, credential_provider=tokens
    ) as connection:
        channel = connection.default_channel
        put(channel, "1")
        raw.config_resetstat()
        tokens.renew()
        # One that publishes, and the one that claims.
        assert raw.info("commandstats")["cmdstat_auth"]["calls"] == 2


def test_without_emulated_acknowledgements(url: str, raw: redis.Redis) -> None:
    with connect(url, ack_emulation=False) as connection:
        channel = connection.default_channel
        put(channel, "1")
        message = channel.basic_get(NAME)
        assert not raw.exists("unacked")
        message.requeue()
        assert channel.basic_get(NAME).delivery_tag == "1"


def test_a_flushed_script_and_a_cut_connection(url: str, raw: redis.Redis) -> None:
    got: list[str] = []
    with connect(url) as connection:
        channel = connection.default_channel
        queue = Queue(NAME, Exchange(""), NAME, no_declare=True)
        with Consumer(
            channel, queue, on_message=lambda m: (got.append(m.delivery_tag), m.ack())
        ):
            for number in range(3):
                put(channel, str(number))
                connection.drain_events(timeout=5)
                raw.script_flush()
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
            raw.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(connection.connection_errors):  # by the second poll
                [connection.drain_events(timeout=1) for _ in range(2)]
    assert got == ["0", "1", "2"]


def test_a_connection_is_closed_twice_though_its_server_is_gone() -> None:
    """As Celery's worker does; what kombu raised at the second time ended it."""
    queues = [Queue(name, Exchange(""), name, no_declare=True) for name in (NAME, "other")]
    with RedisServer() as server:
        connection = connect(server.url)
        channels = [connection.default_channel, connection.channel()]
        for channel, queue in zip(channels, queues, strict=True):
            Consumer(channel, queue, on_message=lambda message: None).consume()
        channels[0]._put(NAME, envelope(Message(FAR, 0.0, 1.0, "unacknowledged")))
        connection.drain_events(timeout=5)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
        assert all(channel._in_poll for channel in channels)
        server.kill()
        connection.collect()
        connection.close()
    assert all(channel.closed for channel in channels)


def test_claims_are_limited_to_the_free_slots(url: str, raw: redis.Redis) -> None:
    class Gauge:
        slots, held = True, False

        def free(self) -> bool:
            return self.slots

        def may_take_demoted(self, share: float) -> bool:
            return not self.held

        def claimed_demoted(self, task_id: object) -> None:
            self.held = True

    gauge = Gauge()
    with connect(url) as connection, consuming(connection, gauge) as (channel, got):
        gauge.slots = False
        for tag, offset in (("1", PAST), ("2", PAST), ("3", FAR)):
            put(channel, tag, offset)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        gauge.slots = True
        for _ in range(2):
            connection.drain_events(timeout=5)
        assert got == ["3", "1"]
        with pytest.raises(TimeoutError):  # only demoted work waits, and the cap is reached
            connection.drain_events(timeout=0.3)
        # Once a demoted task has ended, the next one is claimed at once: nothing waits in
        # Redis meanwhile, neither for the bell, which each claim rings for others, nor for
        # time to pass, of which Redis lets a tenth of a second go by at least.
        with raw.monitor() as monitor:
            drained(connection)
            gauge.held = False
            connection.drain_events(timeout=5)
            raw.echo("over")
            while not (command := monitor.next_command()["command"]).startswith("ECHO"):
                assert not command.startswith("BRPOP")
        assert got == ["3", "1", "2"]
        channel.basic_qos(0, 3, False)  # the prefetch count limits them, too
        put(channel, "4")
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
        put(channel, "5")
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.3)
        gauge.slots = True
        connection.drain_events(timeout=5)
        assert got[4:] == ["5"]


def test_no_slot_of_a_pool_that_a_cold_shutdown_has_stopped_is_free() -> None:
    pool = TaskPool(2)  # its processes are not there yet, as they are no longer then
    worker = SimpleNamespace(pool=pool)
    assert not Slots(SimpleNamespace(controller=worker, pool=pool)).free()


def test_a_running_task_that_celery_no_longer_counts_holds_its_slot() -> None:
    """Celery < 5.7 drops it from the reserved ones at a reconnect."""

    class Running:
        """What Celery and its pool know of a running task."""

        _apply_result: Any = None

    pool = SimpleNamespace(active=True, is_green=False, num_processes=2, uses_semaphore=True)
    slots = Slots(SimpleNamespace(controller=SimpleNamespace(pool=pool), pool=pool))
    tasks, result = [Running() for _ in range(3)], Running()
    try:
        state.active_requests.update(tasks)
        assert slots.free()  # Celery 5.5's pool has given them up
        pool.uses_semaphore = False
        assert not slots.free()  # one of threads, which keeps no result itself, has not
        pool.uses_semaphore = True
        tasks[0]._apply_result = tasks[1]._apply_result = weakref.ref(result)
        assert not slots.free()
        state.reserved_requests.add(tasks[1])  # is not counted twice
        tasks[0]._apply_result = None
        assert slots.free()
        state.reserved_requests.add(tasks[0])
        assert not slots.free()
    finally:
        state.active_requests.difference_update(tasks)
        state.reserved_requests.difference_update(tasks)


def test_no_claim_goes_over_a_connection_that_was_idle_for_long() -> None:
    gauge = SimpleNamespace(free=lambda: True, may_take_demoted=lambda share: True)
    with RedisServer() as server, relay(server) as firewall, connect(server.url) as producer:
        limited = connect(f"redis://127.0.0.1:{firewall.port}/0")
        with limited as connection, consuming(connection, gauge) as (channel, got):
            put(producer.default_channel, "1")
            connection.drain_events(timeout=5)
            gauge.free = lambda: False
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            firewall.forget()
            channel._idle_since -= MAX_IDLE_S
            channel.pool.disconnect()  # what else goes to Redis needs a connection, too
            gauge.free = lambda: True
            put(producer.default_channel, "2")
            connection.drain_events(timeout=5)
    assert got == ["1", "2"]


@pytest.mark.skipif(
    not hasattr(stock.MultiChannelPoller, "maybe_check_brpop_health"), reason="kombu < 5.7"
)
def test_a_claim_whose_reply_never_comes_is_sent_over_another_connection() -> None:
    gauge = SimpleNamespace(free=lambda: True, may_take_demoted=lambda share: True)
    with (
        RedisServer() as server,
        relay(server) as firewall,
        connect(server.url) as producer,
        connect(f"redis://127.0.0.1:{firewall.port}/0") as connection,
        consuming(connection, gauge) as (channel, got),
    ):
        wait_until(lambda: drained(connection) or channel._claim_queues is None)
        firewall.forget()
        channel._brpop_sent_at -= 60
        # What else goes to Redis needs a connection, too.
        channel.pool.disconnect(inuse_connections=False)
        put(producer.default_channel, "1")
        drained(connection)  # finds that it has waited for too long
        connection.drain_events(timeout=5)
    assert got == ["1"]


def test_a_connection_that_ended_while_a_task_blocked_the_loop_is_replaced(
    url: str, raw: redis.Redis
) -> None:
    """redis-py would replace it, too, but the poller would not know, and what had been claimed
    over the new one would stay unacknowledged.
    """
    queue, got = Queue(NAME, Exchange(""), NAME, no_declare=True), []
    options = {"health_check_interval": 1, "retry_on_timeout": True}
    with connect(url) as producer, connect(url, **options) as connection:

        def run(message: Any) -> None:
            got.append(message.delivery_tag)
            if message.delivery_tag == "1":  # a long task in a solo pool
                host, port = channel.client.connection._sock.getsockname()
                raw.client_kill(f"{host}:{port}")
                time.sleep(options["health_check_interval"] + 0.1)

        channel = connection.default_channel
        with Consumer(channel, queue, on_message=run):
            for tag in ("1", "2", "3"):
                put(producer.default_channel, tag)
                connection.drain_events(timeout=5)
    assert got == ["1", "2", "3"]


def test_an_event_loop_forgets_a_connection_that_was_idle_for_long(url: str) -> None:
    """Its number may next be that of a pipe to a pool process, whose end would stop the loop
    (kombu < 5.7) or have it spin.
    """
    gauge = SimpleNamespace(free=lambda: True, may_take_demoted=lambda share: True)
    hub = Hub()

    def run_until(condition: Callable[[], bool]) -> None:
        wait_until(lambda: condition() or next(hub.loop), 10)

    lower = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    with connect(url) as connection, consuming(connection, gauge) as (channel, got):
        connection.register_with_event_loop(hub)
        put(channel, "1")
        run_until(lambda: got == ["1"])
        gauge.free = lambda: False
        run_until(lambda: not channel._in_poll)
        (before,) = connection.transport.cycle.fds
        for fileno in lower:  # the next connections get their numbers
            os.close(fileno)
        channel._idle_since -= MAX_IDLE_S
        gauge.free = lambda: True
        put(channel, "2")
        run_until(lambda: got == ["1", "2"])
        (after,) = connection.transport.cycle.fds
        assert [after] == list(hub.readers) != [before]


def test_a_poller_forgets_a_connection_that_ended_while_no_slot_was_free(
    url: str, raw: redis.Redis
) -> None:
    """Its number may next be that of another file, which gevent's poller would take for it."""
    gauge = SimpleNamespace(free=lambda: True, may_take_demoted=lambda share: True)
    other, writer = socket.socketpair()
    with other, writer, connect(url) as producer, connect(url) as connection:
        connection.transport.cycle.poller = eventio._select()
        with consuming(connection, gauge) as (channel, got):
            put(producer.default_channel, "1")
            connection.drain_events(timeout=5)
            gauge.free = lambda: False
            drained(connection)
            ended = channel.client.connection._sock
            number, (host, port) = ended.fileno(), ended.getsockname()
            raw.client_kill(f"{host}:{port}")
            wait_until(lambda: drained(connection) or ended.fileno() == -1)
            os.dup2(other.fileno(), number)
            writer.send(b"for another reader")
            asked = itertools.count()
            gauge.free = lambda: next(asked) >= 2  # a task ends while events are awaited
            put(producer.default_channel, "2")
            wait_until(lambda: drained(connection) or got == ["1", "2"], 10)
        os.close(number)


def test_each_connection_of_a_worker_with_threads_wakes_it_with_one_timer(channel: Any) -> None:
    hub, slots = Hub(), None
    pool = SimpleNamespace(uses_semaphore=False)
    tasks = SimpleNamespace(channel=channel)
    consumer = SimpleNamespace(task_consumer=tasks, hub=hub, pool=pool)
    for _ in range(3):
        slots = limit_to_slots(consumer, slots)
        hub.timer.queue[0].entry()  # it fires
    assert len([each for each in hub.timer.queue if not each.entry.canceled]) == 1
    hub.close()


def test_a_worker_at_its_cap_rests_until_a_demoted_task_ends_or_for_a_moment(url: str) -> None:
    gauge = SimpleNamespace(free=lambda: True, may_take_demoted=lambda share: False)
    hub = Hub()
    with connect(url) as connection, consuming(connection, gauge) as (channel, got):
        connection.register_with_event_loop(hub)
        put(channel, "demoted", PAST)
        wait_until(lambda: next(hub.loop) or channel._rest_until > 0)
        assert hub.timer.queue[0].eta - channel._rest_until < 0.5, "it is woken soon"
        channel._rest_until = math.inf
        assert not channel.qos.can_consume()
        gauge.may_take_demoted = lambda share: True
        assert channel.qos.can_consume()
        gauge.may_take_demoted = lambda share: False
        channel._rest_until = -math.inf  # time passes
        put(channel, "hopeful")
        wait_until(lambda: next(hub.loop) or got)
    hub.close()
    assert got == ["hopeful"]


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


@contextmanager
def consuming(connection: Connection, slots: Any) -> Iterator[tuple[Any, list[str]]]:
    """Consume the queue as far as *slots* has free ones; yield the channel, and the tags of
    what is taken.
    """
    got: list[str] = []
    channel = connection.default_channel
    channel.slots = slots
    queue = Queue(NAME, Exchange(""), NAME, no_declare=True)
    with Consumer(channel, queue, on_message=lambda m: got.append(m.delivery_tag)):
        yield channel, got


def test_a_claim_rings_the_bell_for_messages_left_to_others(url: str, raw: redis.Redis) -> None:
    class Gauge:
        def free(self) -> bool:
            return True

        def may_take_demoted(self, share: float) -> bool:
            return False

        def claimed_demoted(self, task_id: object) -> None:
            raise AssertionError("it may not be claimed")

    queues = ["urgent", NAME]
    bell = f"{NAME}{EDF}:bell"
    with connect(url, queue_order_strategy="priority") as connection:
        channel = connection.default_channel
        channel.slots = Gauge()
        put(channel, "1")
        put(channel, "2", queue="urgent")
        assert raw.rpop(bell) == "1"
        state, index, *_ = CLAIM.run(channel.plain, *channel._claim_arguments(queues))
        assert (state, queues[index]) == (b"message", "urgent")
        assert raw.llen(bell) == 1
        # This worker may take no more demoted tasks, but another one might.
        raw.delete(f"{NAME}{EDF}")
        put(channel, "3", PAST)
        assert raw.rpop(bell) == "1"
        assert CLAIM.run(channel.plain, *channel._claim_arguments(queues))[0] == b"capped"
        assert raw.llen(bell) == 1


def test_without_the_option_the_transport_is_kombus(
    url: str, channel: Any, raw: redis.Redis
) -> None:
    with Connection(url, transport=Transport) as connection:
        assert type(connection.default_channel) is stock.Channel
        connection.SimpleQueue("plain").put(1)
        assert raw.llen("plain") == 1
    assert issubclass(SentinelTransport, stock.SentinelTransport)
    assert isinstance(channel, Channel)
