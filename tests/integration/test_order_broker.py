"""What kombu's Redis transport does goes on working in deadline order: real workers on
Redis behind TLS, a socket, Sentinel, a prefix; several queues; remote control.
"""

from __future__ import annotations

import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from celery import VERSION, Celery
from celery.contrib import migrate
from celery.exceptions import TaskRevokedError
from kombu import Exchange, Queue
from kombu.common import Broadcast

from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from rts.testing.binaries import find_binary
from rts.testing.processes import OwnedProcess
from tests.conftest import ONE_REPLY, MakeApp, MakeStage
from tests.order import EDF, in_order, publish_shuffled, ran
from tests.programs import certificate_in
from tests.rabbitmq import free_port
from tests.relay import relay

OK, LATE, UNTIL = (f"tests.apps.basic.{name}" for name in ("ok", "late", "until"))


# Ways to a Redis: each gives a broker URL, and options for the transport.


@contextmanager
def behind_prefix(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with RedisServer() as server:
        yield server.url, {"global_keyprefix": "app1:"}
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            keys = client.keys("*")
            assert all(name.startswith(("app1:", "rts-test-", "celery-task")) for name in keys)


@contextmanager
def behind_socket(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with TemporaryDirectory(dir="/tmp") as short:  # others may be too long for a socket
        path = f"{short}/redis.sock"
        with RedisServer(arguments=("--unixsocket", path)):
            yield f"redis+socket://{path}?virtual_host=0", {}


@contextmanager
def behind_tls(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    certificate, key = certificate_in(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with RedisServer() as server, relay(server, tls=context) as door:
        checks = f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={certificate}"
        yield f"rediss://localhost:{door.port}/0?{checks}", {}


@contextmanager
def behind_sentinel(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    port = free_port()
    with RedisServer() as server:
        conf = folder / "sentinel.conf"
        conf.write_text(
            f'port {port}\nbind 127.0.0.1\ndir "{folder}"\n'
            f"sentinel monitor main 127.0.0.1 {server.port} 1\n"
        )
        command = [find_binary("redis-server"), str(conf), "--sentinel"]
        process = OwnedProcess(command, folder / "sentinel.log")
        try:
            with redis.Redis(port=port) as client:
                wait_until(lambda: answers(client), message="Sentinel answers")
            yield f"sentinel://127.0.0.1:{port}", {"master_name": "main"}
        finally:
            process.stop()


def answers(client: redis.Redis) -> bool:
    """Return whether a server answers."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize(
    "way",
    [behind_prefix, behind_socket, behind_tls, behind_sentinel],
    ids=["prefix", "socket", "tls", "sentinel"],
)
def test_every_way_to_redis(
    make_stage: MakeStage,
    apps: MakeApp,
    mongo: Any,
    rts_redis_url: str,
    tmp_path: Path,
    way: Callable[[Path], Any],
) -> None:
    with way(tmp_path) as (broker, options):
        stage = make_stage(broker=broker, rts_scheduler="edf", rts_redis_url=rts_redis_url)
        stage.backend, stage.transport_options = rts_redis_url, options
        app = apps(stage)
        results = publish_shuffled(app)
        queue = app.conf.task_default_queue
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            assert channel.queue_declare(queue, passive=True).message_count == len(results)
            assert channel._size(queue) == len(results)
        worker = stage.worker(concurrency=1)
        assert ran(mongo, in_order(results)) == in_order(results)
        assert app.control.inspect(timeout=30, limit=1).ping()
        # All its connections break, as when the broker starts anew.
        with app.connection_for_read() as connection:
            connection.default_channel.client.client_kill_filter(_type="normal", skipme=False)
        again = publish_shuffled(app)
        assert [result.get(timeout=60) for result in again.values()] == [0.02] * 6
        stage.stop()
        assert "rts: " not in worker.log
        app.pool.force_close_all()


def test_the_broker_starts_anew(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, rts_redis_url: str
) -> None:
    with RedisServer(persistent=True) as server:
        stage = make_stage(broker=server.url, rts_scheduler="edf", rts_redis_url=rts_redis_url)
        stage.backend = rts_redis_url
        stage.transport_options = {"health_check_interval": 1, "visibility_timeout": 5}
        app = apps(stage)
        first = publish_shuffled(app)
        server.kill()
        server.start()  # what waits is in its append-only file
        worker = stage.worker(concurrency=1)
        assert ran(mongo, in_order(first)) == in_order(first)
        server.restart()
        second = publish_shuffled(app)
        for result in second.values():
            assert result.get(timeout=60) == 0.02
        server.pause()  # longer than a health check waits
        time.sleep(4)
        server.resume()
        third = publish_shuffled(app)
        for result in third.values():
            assert result.get(timeout=60) == 0.02
        with redis.Redis.from_url(server.url) as client:
            wait_until(lambda: not client.exists("unacked", "unacked_index"))
        assert worker.running
        app.pool.force_close_all()


def test_several_queues_topic_and_broadcast(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any
) -> None:
    stage = make_stage(rts_scheduler="edf")
    # Not "priority": before 5.7 kombu keeps the names in a set.
    stage.transport_options = {"queue_order_strategy": "sorted"}
    app, base = apps(stage), stage.prefix.strip(":")
    first, second, topical, other = (f"{base}-{name}" for name in "abtx")
    topics = Exchange(f"{base}-topics", "topic")
    app.conf.task_queues = [
        *(Queue(name, Exchange(""), name) for name in (first, second, other)),
        Queue(topical, topics, "log.#"),
        Broadcast(f"{base}-all", queue=f"{base}-all-here"),
    ]
    results = publish_shuffled(app, queue=second)
    before = publish_shuffled(app, queue=first)
    unseen = app.send_task(OK, (0,), queue=other)
    for key in ("log.error", "other.error"):
        app.send_task(OK, (0,), exchange=topics, routing_key=key, declare=[topics])
    stage.worker(concurrency=1, queues=[first, second])
    # The strategy decides between queues, the deadline within one.
    both = {**{offset + 10_000: r for offset, r in results.items()}, **before}
    assert ran(mongo, in_order(both)) == in_order(both)
    assert not unseen.ready()
    assert redis_client.zcard(other + EDF) == 1

    # A queue that is added while the worker runs, bound to the exchange it is not yet.
    reply = app.control.add_consumer(
        topical, exchange=topics.name, exchange_type="topic", routing_key="log.#", **ONE_REPLY
    )
    assert "ok" in str(reply)
    result = app.send_task(OK, (0.5,), exchange=topics, routing_key="log.warning")
    assert result.get(timeout=30) == 0.5
    assert app.control.cancel_consumer(second, **ONE_REPLY)
    waits = app.send_task(OK, (0,), queue=second)
    assert app.send_task(OK, (0,), queue=first).get(timeout=30) == 0
    assert redis_client.zcard(second + EDF) == 1
    assert not waits.ready()
    assert app.send_task(OK, (0,), queue=other).state == "PENDING"


def test_remote_control_events_and_lengths(
    make_stage: MakeStage, apps: MakeApp, redis_client: Any, tmp_path: Path
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    queue = app.conf.task_default_queue
    worker = stage.worker(concurrency=1, arguments=("-E",))
    with heard(app) as seen:
        marker = tmp_path / "marker"
        busy = app.send_task(UNTIL, (str(marker),))
        inspect = app.control.inspect([f"w0@{stage.prefix.strip(':')}"], timeout=5)
        wait_until(lambda: any((inspect.active() or {}).values()))
        waiting = [app.send_task(OK, (0.01,)) for _ in range(5)]
        # Nothing is claimed past the slot; remote control is served meanwhile.
        assert redis_client.zcard(queue + EDF) == 5
        assert redis_client.hlen("unacked") == 1
        for ask in (inspect.stats, inspect.registered, inspect.active_queues):
            assert ask()
        waiting[0].revoke()
        with app.connection_for_read() as connection:
            lengths = connection.default_channel.queue_declare(queue, passive=True)
            assert lengths.message_count == 5
        marker.touch()
        assert busy.get(timeout=30) == "released"
        for result in waiting[1:]:
            assert result.get(timeout=30) == 0.01
        with pytest.raises(TaskRevokedError):
            waiting[0].get(timeout=30)
        wait_until(lambda: seen.count("task-succeeded") == 5 and "task-revoked" in seen)
    stage.stop()
    assert "Traceback" not in worker.log

    for _ in range(3):
        app.send_task(OK, (0,))
    assert "3 messages" in stage.celery("purge", "-f").stdout
    assert not redis_client.exists(queue + EDF)


@contextmanager
def heard(app: Celery) -> Iterator[list[str]]:
    """Listen to the events of workers; gives their types."""
    seen: list[str] = []
    with app.connection_for_read() as connection:
        handlers = {"*": lambda event: seen.append(event["type"])}
        receiver = app.events.Receiver(connection, handlers=handlers)

        def listen() -> None:
            receiver.capture(limit=None, timeout=None, wakeup=False)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        wait_until(lambda: "worker-heartbeat" in seen)
        yield seen
        receiver.should_stop = True
        thread.join()


def test_contrib_migrate_moves_what_waits_in_order(
    make_stage: MakeStage, apps: MakeApp, redis_client: Any, mongo: Any
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    queue = app.conf.task_default_queue
    results = publish_shuffled(app)
    states = []
    target = Queue(f"{queue}-new", Exchange(""), f"{queue}-new")
    migrate.move(
        lambda body, message: target,
        app=app,
        source=[Queue(queue)],
        limit=6,
        callback=lambda state, body, message: states.append(state),
    )
    assert states[-1].filtered == 6
    assert redis_client.zcard(target.name + EDF) == 6
    stage.worker(concurrency=1, queues=[target.name])
    assert ran(mongo, in_order(results)) == in_order(results)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_claim_happens_only_when_a_slot_is_free(
    make_stage: MakeStage, apps: MakeApp, redis_client: Any, pool: str
) -> None:
    slots = 1 if pool == "solo" else 3
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    queue = app.conf.task_default_queue
    stage.worker(pool=pool, concurrency=slots)
    results = [app.send_task(LATE, (0.3,)) for _ in range(4 * slots)]
    most = 0

    def all_ran() -> bool:
        nonlocal most
        # In this order: what ends meanwhile is counted as ended. (An acknowledgement may be
        # on its way still when the next is claimed.)
        waiting = redis_client.zcard(queue + EDF) + redis_client.zcard(f"{queue}{EDF}:demoted")
        ended = sum(result.ready() for result in results)
        most = max(most, len(results) - waiting - ended)
        return ended == len(results)

    wait_until(all_ran, 60, interval=0.01)
    assert most == slots  # all of them were in use, and nothing was held beyond
    assert not redis_client.exists(queue + EDF)


def test_slots_follow_the_pool(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any, tmp_path: Path
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    stage.worker(concurrency=1)

    def held(count: int) -> Callable[[], bool]:
        return lambda: redis_client.hlen("unacked") == count

    def send(count: int, name: str, argument: Any) -> list[str]:
        hopeful = {"sla_deadline": time.time() + 600}  # so that they may have all slots
        return [app.send_task(name, (argument,), headers=hopeful).id for _ in range(count)]

    def running() -> int:
        (tasks,) = app.control.inspect(timeout=30, limit=1).active().values()
        return len(tasks)

    marker, again = tmp_path / "marker", tmp_path / "again"
    send(6, UNTIL, str(marker))
    wait_until(held(1))
    app.control.pool_grow(2, **ONE_REPLY)
    wait_until(held(3))
    marker.touch()
    wait_until(held(0))  # a pool whose processes are all busy does not shrink
    app.control.pool_shrink(1, **ONE_REPLY)
    # Celery may give a task to the process that is gone, and notices only some seconds later.
    send(2, UNTIL, str(again))
    wait_until(lambda: running() == 2)
    again.touch()
    wait_until(held(0))
    app.control.autoscale(4, 1, **ONE_REPLY)  # not for this worker
    ids = {"$in": send(4, LATE, 3.0)}
    ended = {"task_id": ids, "state": "SUCCESS"}
    wait_until(lambda: mongo.assignments.count_documents(ended) == 4)
    first, second, third, _ = mongo.assignments.find(ended).sort("started_at")
    assert second["started_at"] < first["completed_at"], "two at a time"
    assert third["started_at"] >= min(first["completed_at"], second["completed_at"])
    wait_until(held(0))


def test_autoscale_and_rate_limits(
    make_stage: MakeStage, apps: MakeApp, redis_client: Any
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    stage.worker(concurrency=1, arguments=("--autoscale", "3,1"))
    hopeful = {"headers": {"sla_deadline": time.time() + 600}}
    results = [app.send_task(LATE, (1.0,), **hopeful) for _ in range(12)]
    wait_until(lambda: redis_client.hlen("unacked") == 3)  # it has grown
    assert [result.get(timeout=60) for result in results] == [1.0] * 12
    app.control.rate_limit(OK, "2/s", **ONE_REPLY)
    limited = [app.send_task(OK, (0,)) for _ in range(4)]
    later = app.send_task(OK, (0,), countdown=2)
    assert [result.get(timeout=60) for result in limited] == [0] * 4
    assert later.get(timeout=60) == 0
    wait_until(lambda: not redis_client.exists("unacked", "unacked_index"))


def test_running_tasks_hold_their_slots_through_a_reconnect(
    make_stage: MakeStage, apps: MakeApp, rts_redis_url: str
) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        stage = make_stage(broker=server.url, rts_scheduler="edf", rts_redis_url=rts_redis_url)
        stage.backend = rts_redis_url
        app = apps(stage)
        queue = app.conf.task_default_queue
        worker = stage.worker(concurrency=2)
        running = [app.send_task(OK, (10.0,)) for _ in range(2)]
        wait_until(lambda: worker.log.count("received") == 2)
        wait_until(lambda: not client.exists("unacked"))  # begun
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
        wait_until(lambda: worker.log.count("Connected to redis") == 2)
        waits = app.send_task(OK, (0,))
        # Until one of them ends nothing is claimed; but Celery < 5.6.3 no longer knows of them.
        if VERSION < (5, 6, 3):
            assert waits.get(timeout=60) == 0
            return
        wait_until(lambda: not client.exists(queue + EDF) or any(r.ready() for r in running))
        wait_until(lambda: any(result.ready() for result in running), 1)
        assert waits.get(timeout=60) == 0
        app.pool.force_close_all()


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_redis_that_closes_idle_connections_disturbs_no_running_task(
    pool: str, make_stage: MakeStage, apps: MakeApp, rts_redis_url: str
) -> None:
    with RedisServer(arguments=["--timeout", "1"]) as server:
        stage = make_stage(broker=server.url, rts_scheduler="edf", rts_redis_url=rts_redis_url)
        stage.backend = rts_redis_url
        app = apps(stage)
        worker = stage.worker(concurrency=1, pool=pool)
        for seconds in (4.0, 0.0):  # nothing is asked of Redis while no slot is free
            assert app.send_task(LATE, (seconds,)).get(timeout=60) == seconds
        stage.stop()
        assert worker.log.count("received") == 2
        assert "Connection to broker lost" not in worker.log
        app.pool.force_close_all()


def test_what_a_worker_rejects_again_and_again_lets_others_run(
    make_stage: MakeStage, apps: MakeApp, tmp_path: Path
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    stage.worker(concurrency=1)
    marker, deadline = str(tmp_path / "marker"), time.time() + 600
    results = [
        app.send_task(f"tests.apps.basic.{name}", (marker,), headers={"sla_deadline": at})
        for name, at in (("waits_for", deadline), ("kill_once", deadline + 0.5))
    ]
    assert [result.get(timeout=60) for result in results] == ["found", "second life"]


def test_at_shutdown_what_was_not_begun_goes_back_to_its_place(
    make_stage: MakeStage, apps: MakeApp, redis_client: Any
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    queue = app.conf.task_default_queue
    worker = stage.worker(concurrency=1)
    # Claimed at once, and held until its eta.
    later = app.send_task(OK, (0,), countdown=3600)
    wait_until(lambda: redis_client.hlen("unacked") == 1)
    worker.stop()
    assert redis_client.zcard(queue + EDF) == 1
    assert not redis_client.exists("unacked", "unacked_index")
    ((_, score),) = redis_client.zrange(queue + EDF, 0, -1, withscores=True)
    assert score == pytest.approx(time.time() + 3600 + 20, abs=120)
    # The cold end, while a task runs that is acknowledged late.
    worker = stage.worker(concurrency=1)
    wait_until(lambda: redis_client.hlen("unacked") == 1)
    app.send_task(LATE, (60.0,), headers={"sla_deadline": time.time() + 500})
    wait_until(lambda: redis_client.hlen("unacked") == 2)
    inspect = app.control.inspect([f"w1@{stage.prefix.strip(':')}"], timeout=5)
    wait_until(lambda: any((inspect.active() or {}).values()))
    os.kill(worker.pid, signal.SIGQUIT)
    wait_until(lambda: not worker.running)
    assert not redis_client.exists("unacked", "unacked_index")
    scores = [score for _, score in redis_client.zrange(queue + EDF, 0, -1, withscores=True)]
    assert scores == pytest.approx([time.time() + 500, time.time() + 3620], abs=120)
    assert later.state == "PENDING"


def test_without_emulated_acknowledgements_a_worker_keeps_the_order(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any
) -> None:
    stage = make_stage(rts_scheduler="edf")
    stage.transport_options = {"ack_emulation": False}
    app = apps(stage)
    results = publish_shuffled(app)
    worker = stage.worker(concurrency=1)
    assert ran(mongo, in_order(results)) == in_order(results)
    assert not redis_client.exists("unacked", app.conf.task_default_queue + EDF)
    stage.stop()
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize(
    ("of", "beside"),
    [("broker_url", "broker_use_ssl"), ("result_backend", "redis_backend_use_ssl")],
)
def test_rts_goes_the_brokers_way_with_its_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, of: str, beside: str
) -> None:
    # As before redis-py 8.
    parsers = redis.connection.URL_QUERY_ARGUMENT_PARSERS
    monkeypatch.delitem(parsers, "ssl_min_version", raising=False)
    with behind_tls(tmp_path) as (url, _):
        place, _, checks = url.partition("://")[2].partition("?")
        tls = {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_ca_certs": checks.rpartition("=")[2],
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            "ssl_validate_ocsp_stapled": False,
        }
        app = Celery("app")
        app.conf.update({of: f"{scheme}://{place}", beside: tls})
        link = Link(replace(Settings.from_conf(app.conf), connect_timeout=5.0, timeout=5.0))
        assert link.call(pack("PING")) == [b"PONG"]
        link.close()
        app.close()


def test_rts_verifies_no_certificate_where_the_broker_does_not(tmp_path: Path) -> None:
    with behind_tls(tmp_path) as (url, _):
        place = url.partition("?")[0]
        app = Celery("app", broker=place, set_as_current=False)
        app.conf.broker_use_ssl = {"ssl_cert_reqs": None}
        with app.connection_for_write() as connection:
            assert connection.default_channel.client.ping()
        link = Link(replace(Settings.from_conf(app.conf), connect_timeout=5.0, timeout=5.0))
        assert link.call(pack("PING")) == [b"PONG"]
        link.close()
        app.close()
