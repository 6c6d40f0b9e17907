"""Shipping the spool into a real Redis: each run is learned once, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.ship import CHUNK, Shipper
from rts.ledger.sink import RedisRunSink
from rts.ledger.spool import Spool
from rts.link.link import Link
from rts.settings import Settings
from rts.testing import RedisServer
from tests.unit.test_spool import run


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.replicaof("NO", "ONE")


@pytest.fixture
def settings(server: RedisServer, rts_key_prefix: str, tmp_path: Path) -> Settings:
    return Settings(
        redis_url=server.url,
        key_prefix=rts_key_prefix,
        spool_dir=str(tmp_path / "spool"),
        breaker_period=1e-6,
    )


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool(settings.spool_dir, settings.spool_max_bytes)


@pytest.fixture
def shipper(settings: Settings, spool: Spool) -> Shipper:
    return Shipper(spool, Link(settings), settings)


def success(task_id: str, runtime_s: float = 1.0) -> Any:
    done = replace(run(task_id), state="SUCCESS", started_at=1.0, completed_at=2.0)
    return replace(done, runtime_s=runtime_s)


def outbox_ids(client: Any, settings: Settings) -> list[str]:
    from rts.records import Execution

    entries = client.xrange(settings.keys.outbox)
    return [Execution.from_json(fields["r"]).task_id for _, fields in entries]


def test_all_arrive_in_order_and_are_learned(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    tau = 5.0
    for i in range(2 * CHUNK + 7):
        spool.append(success(str(i), i / 100), elsewhere=False, suspect=None)
        tau = 0.2 * (i / 100) + 0.8 * tau
    assert shipper.ship() == 2 * CHUNK + 7
    assert outbox_ids(client, settings) == [str(i) for i in range(2 * CHUNK + 7)]
    assert float(client.hget(settings.keys.tau, "cpu-light")) == pytest.approx(tau, abs=1e-9)
    assert shipper.ship() == 0
    assert spool.waiting_bytes() == 0


def test_an_end_written_elsewhere_brings_the_note_and_is_not_learned(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    sink = RedisRunSink(Link(settings), settings, spool)
    sink.started(run("a"))
    spool.append(replace(success("a"), cause="killed"), elsewhere=True, suspect=None)
    # The note was posted on another connection, without waiting.
    from rts.testing import wait_until

    wait_until(lambda: client.hlen(settings.keys.running) == 1)
    shipper.ship()
    ((_, fields),) = client.xrange(settings.keys.outbox)
    assert '"task_id":"a"' in fields["start"]
    assert not client.exists(settings.keys.running, settings.keys.tau)


@pytest.mark.parametrize("marked", [True, False])
def test_a_shipper_that_dies_halfway_teaches_nothing_twice(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper, marked: bool
) -> None:
    n = 2 * CHUNK
    for i in range(n):
        spool.append(success(str(i)), elsewhere=False, suspect=None)

    class Died(Exception):
        pass

    real = shipper._mark

    def die(*args: Any) -> None:
        if marked:
            real(*args)
        raise Died

    shipper._mark = die  # type: ignore[method-assign]
    with pytest.raises(Died):
        shipper.ship()
    assert len(outbox_ids(client, settings)) == CHUNK
    assert Shipper(spool, Link(settings), settings).ship() >= n - CHUNK
    assert outbox_ids(client, settings) == [str(i) for i in range(n)]
    assert client.hget(settings.keys.count, "cpu-light") == str(n)


def test_what_had_arrived_before_the_answer_was_lost_counts_once(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    link = Link(settings)
    from rts.tau.finish import FinishCall

    call = FinishCall(settings)
    link.call(call.pack(success("a"), "writer", 1, whole=True))
    spool.append(success("a"), elsewhere=False, suspect=("writer", 1))
    spool.append(success("b"), elsewhere=False, suspect=("writer", 2))
    shipper.ship()
    assert outbox_ids(client, settings) == ["a", "b"]
    # And the first delivery of "b" arrives after all.
    assert link.call(call.pack(success("b"), "writer", 2, whole=True)) == [b"dup"]
    assert client.hget(settings.keys.count, "cpu-light") == "2"


def test_a_server_that_refuses_gets_everything_later(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper, server: RedisServer
) -> None:
    for i in range(CHUNK + 3):
        spool.append(success(str(i)), elsewhere=False, suspect=None)
    client.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    client.config_set("maxmemory", 0)
    client.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    client.replicaof("NO", "ONE")
    server.pause()
    try:
        with pytest.raises(StoreUnavailable):
            shipper.ship()
    finally:
        server.resume()
    shipper.ship()
    assert outbox_ids(client, settings) == [str(i) for i in range(CHUNK + 3)]
    assert client.hget(settings.keys.count, "cpu-light") == str(CHUNK + 3)


def test_a_record_that_is_refused_between_others_comes_later(
    client: Any, settings: Settings, spool: Spool
) -> None:
    class Refusing(Link):
        """Refuses one record of a chunk: no server does that on demand."""

        refuse = True

        def call(self, *commands: bytes) -> list[Any]:
            if not self.refuse:
                return super().call(*commands)
            self.refuse = False
            answers = super().call(commands[0], commands[1], *commands[3:])
            answers[-1].insert(1, redis.ResponseError("ERR on purpose"))
            return answers

    for i in range(3):
        spool.append(success(str(i)), elsewhere=False, suspect=None)
    assert Shipper(spool, Refusing(settings), settings).ship() == 3
    assert outbox_ids(client, settings) == ["0", "2", "1"]
    assert client.hget(settings.keys.count, "cpu-light") == "3"


def test_lines_that_are_no_records_are_put_aside(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    spool.append(success("a"), elsewhere=False, suspect=None)
    spool.append_lines([b"rubbish", b"{}", b'{"execution":1,"elsewhere":false,"suspect":null}'])
    spool.append_lines([b'{"execution":{"run', b"\xff\xfe", b"[1]", b"[" * 100_000])
    spool.append(success("b"), elsewhere=False, suspect=None)
    assert shipper.ship() == 2
    assert outbox_ids(client, settings) == ["a", "b"]
    assert health.take_counts()["spool_refused"] == 7
    assert os.path.exists(os.path.join(settings.spool_dir, "refused.jsonl"))
