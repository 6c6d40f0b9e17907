"""Who asks for predictions: threads, many at once, the command; and when servers are away."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import redis
from celery import Celery
from kombu import Connection
from kombu.transport import redis as stock

import rts
from rts.errors import BrokerUnavailable
from rts.predictions.queue_reader import QueueReader
from rts.predictions.shared_connection import SharedConnection
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from tests.conftest import MakeApp, MakeStage, printed
from tests.predictions import OK, PATIENCE_S, busy, served


def test_threads_of_a_web_server_use_the_only_app(make_stage: MakeStage) -> None:
    stage = make_stage()
    script = f"""if True:
        from concurrent.futures import ThreadPoolExecutor
        from celery import Celery
        import rts

        app = Celery("web", broker={stage.broker!r})
        app.conf.update({stage.conf!r})
        rts.install(app)
        task = app.send_task("some.task").id
        with ThreadPoolExecutor(1) as requests:
            print(requests.submit(rts.predict, "nobody").result())
            for ask, what in ((rts.predict, task), (rts.predict_new, "some.task")):
                print(requests.submit(ask, what).exception())
            another = Celery("another", set_as_current=False)
            rts.install(another)
            print(requests.submit(rts.predict, "nobody").exception())
    """
    nobody, waits, new, two = printed(script).splitlines()
    assert nobody == "None"
    assert waits.startswith("no worker with rts takes")
    assert new.startswith("no worker with rts takes")
    assert two.startswith("the app 'default' does not have rts: call rts.install(app), or name")


def test_many_threads_predict_at_once(
    make_stage: MakeStage, apps: MakeApp, rts_redis_url: str
) -> None:
    """Each has a connection where it needs one, and one of them predicts for all."""
    many = 24  # kombu keeps ten connections
    with RedisServer() as server:
        stage = make_stage(broker=server.url, rts_redis_url=rts_redis_url)
        app = apps(stage, rts_timeout=60.0)
        worker = stage.worker(pool="threads", concurrency=1)
        served(app)
        assert rts.predict("nobody", app=app) is None
        client = redis.Redis.from_url(server.url)
        port = client.connection_pool.connection_kwargs["port"]

        def connections() -> int:
            made = psutil.Process().net_connections()
            return sum(each.raddr and each.raddr.port == port for each in made)

        for ask, least in (
            (lambda: rts.predict("nobody", app=app), many),
            (lambda: rts.predict_new("another", app=app), 1),
        ):
            client.config_resetstat()
            begun: list[None] = []

            def question(ask: Callable[[], Any] = ask, begun: list[None] = begun) -> bool:
                begun.append(None)
                return ask() is None

            with ThreadPoolExecutor(many) as pool:
                server.pause()
                asked = [pool.submit(question) for _ in range(many)]
                try:  # the functions are called within this turn of the loop (B023)
                    wait_until(lambda: len(begun) == many, message="all ask")  # noqa: B023
                    wait_until(
                        lambda: connections() >= least or any(each.done() for each in asked),  # noqa: B023
                        message="all wait for the broker",
                    )
                finally:
                    server.resume()
            assert len({each.result() for each in asked}) == 1
        # None where what was read for the first question is fresh still.
        looks = client.info("commandstats").get("cmdstat_zrevrange", {"calls": 0})
        assert looks["calls"] < many / 2
        client.close()
        worker.kill()


def test_many_threads_ask_at_once_while_nobody_takes_from_the_queue(
    make_app: MakeApp, rts_redis_url: str, rts_key_prefix: str
) -> None:
    """One of them reads the queue; the others learn from it, each about its own queue."""
    many = 24
    with RedisServer() as server:
        own = {"rts_redis_url": rts_redis_url, "rts_key_prefix": rts_key_prefix}
        app = make_app(server.url, rts_timeout=60.0, **own)
        client = redis.Redis.from_url(server.url)
        begun: list[None] = []

        def question(queue: str = "left") -> str:
            begun.append(None)
            with pytest.raises(rts.CommandError) as caught:
                rts.predict_new("any", queue=queue, app=app)
            return str(caught.value)

        with ThreadPoolExecutor(many) as pool:
            server.pause()
            asked = [pool.submit(question) for _ in range(many)]
            try:
                wait_until(lambda: len(begun) == many, message="all ask")
            finally:
                server.resume()
        assert {each.result().partition("queue ")[2] for each in asked} == {
            "left: start one, or name the queue of the task"
        }
        assert client.info("commandstats")["cmdstat_zrevrange"]["calls"] < many / 2
        assert "queue other:" in question("other")
        client.close()


def test_unavailable_servers_and_unsupported_brokers(make_app: MakeApp) -> None:
    with RedisServer() as server:
        port = server.url.rpartition(":")[2].partition("/")[0]
    url = f"redis://:secret@127.0.0.1:{port}/0"
    app = make_app(url, rts_redis_url=url)
    for ask in (lambda: rts.predict("x", app=app), lambda: rts.predict_new("t", app=app)):
        with pytest.raises(rts.StoreUnavailable) as caught:
            ask()
        assert "secret" not in str(caught.value)

    bare = Celery("bare", set_as_current=False)
    with pytest.raises(rts.CommandError, match=r"rts\.install"):
        rts.predict("x", app=bare)


def test_only_the_broker_is_unavailable(
    make_app: MakeApp, rts_redis_url: str, rts_key_prefix: str
) -> None:
    with RedisServer() as server:
        port = server.url.rpartition(":")[2].partition("/")[0]
    own = {"rts_redis_url": rts_redis_url, "rts_key_prefix": rts_key_prefix}
    app = make_app(f"redis://:secret@127.0.0.1:{port}/0", **own)
    with pytest.raises(rts.StoreUnavailable, match="the broker redis://") as caught:
        rts.predict("x", app=app)
    assert "secret" not in str(caught.value)

    with pytest.raises(rts.CommandError, match="need Redis as the broker"):
        rts.predict("x", app=make_app(**own))


@pytest.mark.skipif(not hasattr(stock.Channel, "maybe_reauth"), reason="kombu < 5.7")
def test_connections_that_read_queues_get_new_credentials(url: str, raw: redis.Redis) -> None:
    from tests.tokens import Tokens  # redis-py >= 5.3

    tokens = Tokens()
    app: Any = SimpleNamespace(
        connection_for_read=partial(Connection, url, credential_provider=tokens)
    )
    reader = QueueReader(app, Settings(timeout=PATIENCE_S))
    assert reader.waiting(["nothing"]) == [0]
    raw.config_resetstat()
    tokens.renew()
    # One that reads, and one of kombu's own.
    assert raw.info("commandstats")["cmdstat_auth"]["calls"] == 2
    reader.close()


def test_who_reads_last_closes_a_connection_that_has_failed() -> None:
    with RedisServer() as server:
        app = Celery("web", broker=server.url, set_as_current=False)
        settings = Settings(connect_timeout=PATIENCE_S, timeout=PATIENCE_S)
        shared = SharedConnection(app, settings)
        with redis.Redis.from_url(server.url) as raw:
            nobody = len(raw.client_list())
            with shared.channel() as channel:
                one = len(raw.client_list())
                with pytest.raises(BrokerUnavailable), shared.channel() as same:
                    same.plain.execute_command("NOSUCH")
                assert channel.plain.ping()
                with shared.channel() as another:
                    assert another is not channel
            assert one > nobody
            wait_until(lambda: len(raw.client_list()) == one)
            shared.close()
            wait_until(lambda: len(raw.client_list()) == nobody)


def test_the_command_shows_when_a_task_starts_and_finishes(
    make_stage: MakeStage, apps: MakeApp
) -> None:
    stage = make_stage()
    app = apps(stage, rts_timeout=PATIENCE_S)
    stage.worker(pool="threads", concurrency=1)
    busy(stage, app, 120, 1)
    waits = [app.send_task(OK, (0,)).id for _ in range(3)][-1]
    shown = stage.celery("rts", "eta", waits)
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()] == [
        *("start", "finish", "deadline", "2")
    ]
    assert "2 tasks ahead of it, 1 slot\n" in shown.stdout
    late = app.send_task(OK, (0,), headers={"sla_deadline": time.time() - 60}).id
    assert " s ago, met with a probability of 0%" in stage.celery("rts", "eta", late).stdout
    told = json.loads(stage.celery("rts", "eta", waits, "--json").stdout)
    assert told["task_id"] == waits
    assert (told["ahead"], told["slots"]) == (2, 1)
    assert 0 <= told["on_time"] <= 1
    times = [told[k] for k in ("start_low", "start", "start_high")]
    assert times == sorted(times)
    assert told["finish"].endswith("Z")
    missing = stage.celery("rts", "eta", "nobody")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "task nobody is neither waiting nor running. For" in missing.stderr
    elsewhere = stage.celery("rts", "eta", waits, "--queue", "other").stderr
    assert f"{waits} is neither waiting nor running in the queue other." in elsewhere
