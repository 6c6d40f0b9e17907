"""Shipping the spool into a real Redis: each run is learned once, whatever happens."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.shipper import CHUNK, LATE_S, Shipper
from rts.ledger.sink import SpoolRunSink
from rts.ledger.spool import Spool
from rts.link.link import Link
from rts.records import Execution
from rts.settings import Settings
from rts.testing import RedisServer
from tests.recording_link import RecordingLink
from tests.records import as_line, run, success


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
        timeout=2.0,
    )


@pytest.fixture
def spool(settings: Settings) -> Iterator[Spool]:
    spool = Spool(settings.spool_dir, settings.spool_max_bytes)
    yield spool
    spool.close()


@pytest.fixture
def shipper(settings: Settings, spool: Spool) -> Shipper:
    return Shipper(spool, Link(settings), settings)


class FailingLink(Link):
    """Fails at the next *left*-th call, before or after that is done."""

    left = -1
    does_it = False

    def call(self, *commands: bytes) -> list[Any]:
        self.left -= 1
        if self.left != 0:
            return super().call(*commands)
        if self.does_it:
            super().call(*commands)
        raise StoreUnavailable("on purpose")


def fail(shipper: Shipper, server: RedisServer) -> None:
    """Have it ship while the server hangs, which fails."""
    server.pause()
    try:
        with pytest.raises(StoreUnavailable):
            shipper.ship()
    finally:
        server.resume()


def outbox_ids(client: Any, settings: Settings) -> list[str]:
    entries = client.xrange(settings.keys.outbox)
    return [Execution.from_json(fields["r"]).task_id for _, fields in entries]


def test_all_arrive_in_order_and_are_learned(
    client: Any, settings: Settings, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rts.drain")
    shipper = Shipper(spool, Link(settings), settings)
    tau, taus = 5.0, []
    for i in range(2 * CHUNK + 7):
        spool.append_line(as_line(success(str(i), i / 100)))
        tau = 0.2 * (i / 100) + 0.8 * tau
        taus.append(tau)
    assert shipper.waiting() == 2 * CHUNK + 7
    assert shipper.ship() == 2 * CHUNK + 7
    assert outbox_ids(client, settings) == [str(i) for i in range(2 * CHUNK + 7)]
    assert float(client.hget(settings.keys.tau, "cpu-light")) == pytest.approx(tau, abs=1e-9)
    told = re.findall("tau learned: cpu-light .* -> (.*) s, ", caplog.text)
    assert list(map(float, told)) == pytest.approx(taus, rel=1e-5)
    assert shipper.ship() == 0
    assert shipper.waiting() == 0


def test_an_outbox_that_is_full_is_logged_once_until_it_is_half_empty(
    client: Any, settings: Settings, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    shipper = Shipper(spool, Link(settings), replace(settings, outbox_max=6))

    def said() -> int:
        spool.append_line(as_line(run("x")))
        shipper.ship()
        return caplog.text.count("the outbox is full: with each new record the oldest")

    assert [said() for _ in range(8)] == [0, 0, 0, 0, 0, 1, 1, 1]
    client.xtrim(settings.keys.outbox, maxlen=4, approximate=False)
    assert [said() for _ in range(2)] == [1, 1]
    client.xtrim(settings.keys.outbox, maxlen=2, approximate=False)
    assert [said() for _ in range(4)] == [1, 1, 1, 2]


def test_a_file_is_removed_once_its_writer_ended(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    spool.append_line(as_line(success("a")))
    shipper.ship()
    (path,) = spool.files()
    (kept,) = client.scan_iter(settings.keys.seq + "*")
    assert client.ttl(kept) > LATE_S, "its writer may have nothing to write for longer"
    spool.append_line(as_line(success("b")))
    spool.close()
    assert shipper.ship() == 1
    assert not os.path.exists(path)
    assert (shipper.ship(), shipper._tails) == (0, {})
    assert outbox_ids(client, settings) == ["a", "b"]
    assert 0 < client.ttl(kept) <= LATE_S


def test_a_call_that_arrives_once_its_file_is_gone_teaches_nothing(
    client: Any, settings: Settings, spool: Spool
) -> None:
    link = RecordingLink(settings)
    spool.append_line(as_line(success("a")))
    spool.close()
    assert Shipper(spool, link, settings).ship() == 1
    (late,) = [command for command in link.asked if b"EVAL" in command[:16]]
    link.call(late)
    assert outbox_ids(client, settings) == ["a"]
    assert client.hget(settings.keys.count, "cpu-light") == "1"
    (kept,) = client.scan_iter(settings.keys.seq + "*")
    assert 0 < client.ttl(kept) <= LATE_S


@pytest.mark.parametrize("delivered", [True, False])
def test_a_shipper_that_dies_halfway_teaches_nothing_twice(
    client: Any, settings: Settings, spool: Spool, delivered: bool
) -> None:
    n = 2 * CHUNK + 3
    for i in range(n):
        if i in (3, CHUNK + 5):
            spool.append_counts({"refused_plan": 1})
        spool.append_line(as_line(success(str(i))))
    link = FailingLink(settings)
    link.left, link.does_it = 3, delivered  # it asks what Redis has, a chunk goes, and then
    with pytest.raises(StoreUnavailable):
        Shipper(spool, link, settings).ship()
    Shipper(spool, Link(settings), settings).ship()
    assert outbox_ids(client, settings) == [str(i) for i in range(n)]
    assert client.hget(settings.keys.count, "cpu-light") == str(n)
    assert client.hget(settings.keys.counters, "refused_plan") == "2"


def test_after_a_lost_reply_redis_is_asked(
    client: Any, settings: Settings, spool: Spool
) -> None:
    spool.append_counts({"refused_plan": 1})
    spool.append_line(as_line(success("a")))
    link = FailingLink(settings)
    link.left, link.does_it = 2, True  # it asks, and what goes is applied
    shipper = Shipper(spool, link, settings)
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    spool.append_line(as_line(success("b")))
    shipper.ship()
    assert outbox_ids(client, settings) == ["a", "b"]
    assert client.hget(settings.keys.count, "cpu-light") == "2"
    assert client.hget(settings.keys.counters, "refused_plan") == "1"


def test_a_wiped_redis_gets_the_records_again_and_learns_none_twice(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper, server: RedisServer
) -> None:
    client.set(settings.keys.generation, "first")
    spool.append_counts({"refused_plan": 1})
    spool.append_line(as_line(success("a")))
    shipper.ship()
    spool.append_line(as_line(success("b")))
    fail(shipper, server)
    client.delete(*client.keys(settings.keys.prefix + "*"))
    shipper.ship()
    # What "a" taught is in the snapshot, which says so with a generation of its own.
    assert outbox_ids(client, settings) == ["a", "b"]
    assert client.hget(settings.keys.count, "cpu-light") == "1"
    assert client.hget(settings.keys.counters, "refused_plan") == "1"
    client.set(settings.keys.generation, "second")
    spool.append_line(as_line(success("c")))
    fail(shipper, server)
    shipper.ship()
    assert outbox_ids(client, settings) == ["a", "b", "c"]
    assert client.hget(settings.keys.count, "cpu-light") == "2"


def test_a_shipper_that_was_just_started_teaches_a_wiped_redis_nothing_twice(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper, server: RedisServer
) -> None:
    client.set(settings.keys.generation, "first")
    spool.append_line(as_line(success("a")))
    shipper.ship()
    next_one = Shipper(spool, Link(settings), settings)
    assert next_one.ship() == 1, "it reads what Redis has applied"
    spool.append_line(as_line(success("b")))
    fail(next_one, server)
    client.delete(*client.keys(settings.keys.prefix + "*"))
    next_one.ship()
    assert outbox_ids(client, settings) == ["a", "b"]
    assert client.hget(settings.keys.count, "cpu-light") == "1", "the snapshot has the other"


def test_a_wiped_redis_that_got_its_mark_after_the_first_records_learns_none_twice(
    client: Any, settings: Settings, spool: Spool, server: RedisServer
) -> None:
    shipper = Shipper(spool, Link(settings), settings)
    spool.append_line(as_line(success("before")))
    shipper.ship()
    client.set(settings.keys.generation, "first")  # nothing was to be restored
    spool.append_line(as_line(success("after")))
    shipper.ship()
    assert client.hget(settings.keys.count, "cpu-light") == "2"
    spool.append_line(as_line(success("last")))
    fail(shipper, server)
    client.delete(*client.keys(settings.keys.prefix + "*"))
    shipper.ship()  # before what the snapshot holds is back
    assert outbox_ids(client, settings) == ["before", "after", "last"]
    assert client.hget(settings.keys.count, "cpu-light") == "1"


@pytest.mark.parametrize("delivered", [True, False])
def test_a_wiped_redis_that_fails_again_halfway_learns_none_twice(
    client: Any, settings: Settings, spool: Spool, delivered: bool
) -> None:
    n = 2 * CHUNK + 50
    for i in range(n):
        spool.append_line(as_line(success(str(i))))
    client.set(settings.keys.generation, "first")
    link = FailingLink(settings)
    shipper = Shipper(spool, link, settings)
    shipper.ship()
    assert client.hget(settings.keys.count, "cpu-light") == str(n)
    client.delete(*client.keys(settings.keys.prefix + "*"))
    spool.append_line(as_line(success("last")))
    link.left = 1
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    link.left, link.does_it = 3, delivered  # it asks, a chunk goes, and then
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    client.set(settings.keys.generation, "second")  # the snapshot was restored
    shipper.ship()
    assert outbox_ids(client, settings) == [*map(str, range(n)), "last"]
    assert client.hget(settings.keys.count, "cpu-light") == "1"
    shipper.ship()
    assert client.hget(settings.keys.count, "cpu-light") == "1"


def test_a_redis_that_has_lost_its_last_second_learns_it_again(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper, server: RedisServer
) -> None:
    client.set(settings.keys.generation, "first")
    spool.append_line(as_line(success("a")))
    shipper.ship()
    kept = {key: client.dump(key) for key in client.keys(settings.keys.prefix + "*")}
    spool.append_line(as_line(success("b")))
    shipper.ship()
    spool.append_line(as_line(success("c")))
    fail(shipper, server)
    client.delete(*client.keys(settings.keys.prefix + "*"))
    for key, value in kept.items():
        client.restore(key, 0, value)
    shipper.ship()
    assert outbox_ids(client, settings) == ["a", "b", "c"]
    assert client.hget(settings.keys.count, "cpu-light") == "3"


def test_what_a_redis_lost_that_nobody_saw_fail_comes_again(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    """As in a failover behind one address: the next call goes to the new server at once."""
    quiet = Spool(settings.spool_dir, settings.spool_max_bytes)
    client.set(settings.keys.generation, "first")
    for file, name in ((spool, "a"), (quiet, "b")):
        file.append_line(as_line(success(name)))
        shipper.ship()
    kept = {key: client.dump(key) for key in client.keys(settings.keys.prefix + "*")}
    for file, name in ((spool, "c"), (quiet, "d")):
        file.append_line(as_line(success(name)))
        shipper.ship()
    client.delete(*client.keys(settings.keys.prefix + "*"))
    for key, value in kept.items():
        client.restore(key, 0, value)
    spool.append_line(as_line(success("e")))
    with pytest.raises(StoreUnavailable, match="has lost records"):
        shipper.ship()
    shipper.ship()
    assert sorted(outbox_ids(client, settings)) == ["a", "b", "c", "d", "e"]
    assert client.hget(settings.keys.count, "cpu-light") == "5"
    quiet.close()


def test_a_number_that_redis_forgot_means_no_loss(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    """It was evicted, or the file got no line for weeks."""
    spool.append_line(as_line(success("a")))
    shipper.ship()
    client.delete(*client.keys(settings.keys.seq + "*"))
    spool.append_line(as_line(success("b")))
    shipper.ship()
    assert outbox_ids(client, settings) == ["a", "b"]


def test_a_server_that_refuses_gets_everything_later(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper, server: RedisServer
) -> None:
    for i in range(CHUNK + 3):
        spool.append_line(as_line(success(str(i))))
    client.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    client.config_set("maxmemory", 0)
    client.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    client.replicaof("NO", "ONE")
    fail(shipper, server)
    shipper.ship()
    assert outbox_ids(client, settings) == [str(i) for i in range(CHUNK + 3)]
    assert client.hget(settings.keys.count, "cpu-light") == str(CHUNK + 3)


def test_what_was_counted_is_added_once_however_often_redis_refuses_the_records(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    spool.append_counts({"refused_plan": 1, "refused_tau": 2})
    spool.append_line(as_line(success("a")))
    client.set(settings.keys.tau, "of another type")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            shipper.ship()
    client.delete(settings.keys.tau)
    shipper.ship()
    assert outbox_ids(client, settings) == ["a"]
    assert client.hmget(settings.keys.counters, "refused_plan", "refused_tau") == ["1", "2"]
    spool.append_counts({"refused_plan": 5})  # after the last record
    for another in (shipper, Shipper(spool, Link(settings), settings)):
        another.ship()
        assert client.hget(settings.keys.counters, "refused_plan") == "6"


def test_lines_that_are_no_records_are_set_aside(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    spool.append_line(as_line(success("a")))
    (path,) = spool.files()
    spool.close()
    odd = [{"task_type": ["t"]}, {"tau": {"t": 1}}, {"runtime_s": 10**400}]
    with open(path, "ab") as file:
        for line in (b"rubbish", b"{}", b'{"counts":[1]}', b"\xff\xfe", b"[1]", b"[" * 100_000):
            file.write(line + b"\n")
        file.write(b'{"counts":{"a":null}}\n{"counts":{"a":1e999}}\n')
        file.writelines(as_line(success("odd")._replace(**changes)) for changes in odd)
        file.write(run("b").to_json().encode() + b"\n" + b'["torn')
    shipper.ship()
    assert outbox_ids(client, settings) == ["a", "b"]
    assert health.take_counts()["spool_refused"] == 12
    with open(os.path.join(settings.spool_dir, "refused.jsonl"), "rb") as refused:
        assert refused.read().endswith(b'["torn\n')


def test_records_of_strangers_messages_hold_up_no_others(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    odd: list[dict[str, Any]] = [{"queue": queue} for queue in ("\ud800", 7, ["q"], {"q": 1})]
    odd += [{"name": name} for name in ("\ud800", 7, None)]
    for i, changes in enumerate(odd):
        spool.append_line(as_line(success(str(i))._replace(**changes)))
        shipper.ship()
    assert outbox_ids(client, settings) == [str(i) for i in range(len(odd))]
    assert client.llen(f"{settings.keys.recent}?") == 1


def test_an_unreadable_file_does_not_hold_up_others(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    spool.append_line(as_line(success("a")))
    os.mkdir(os.path.join(settings.spool_dir, f"{0:020d}-1-{10:016x}.jsonl"))
    with pytest.raises(IsADirectoryError):
        shipper.ship()
    assert outbox_ids(client, settings) == ["a"]


def test_a_file_that_its_host_drops_meanwhile_holds_up_no_others(
    client: Any, settings: Settings, spool: Spool
) -> None:
    spool.append_line(as_line(success("a")))
    spool.close()
    (oldest,) = spool.files()
    spool.append_line(as_line(success("b")))

    class Meanwhile(Link):
        def call(self, *commands: bytes) -> list[Any]:
            Path(oldest).unlink(missing_ok=True)
            return super().call(*commands)

    assert Shipper(spool, Meanwhile(settings), settings).ship() == 1
    assert outbox_ids(client, settings) == ["b"]


def test_other_files_in_the_folder_are_left_alone(
    client: Any, settings: Settings, spool: Spool, shipper: Shipper
) -> None:
    spool.append_line(as_line(success("a")))
    names = ("train.jsonl", "2026-01-31.jsonl", "a-1-b.jsonl")
    theirs = [Path(settings.spool_dir, name) for name in names]
    for path in theirs:
        path.write_text('["precious"]\n')
    shipper.ship()
    assert outbox_ids(client, settings) == ["a"]
    assert [path.read_text() for path in theirs] == ['["precious"]\n'] * len(theirs)
    assert health.take_counts() == {}


def test_one_process_of_a_host_ships(spool: Spool, settings: Settings) -> None:
    with spool.lease() as before_there_is_a_folder:
        assert not before_there_is_a_folder
    spool.append_line(as_line(run("a")))
    other = Spool(settings.spool_dir, 1 << 20)
    with spool.lease() as mine:
        assert mine
        for path in Path(settings.spool_dir).iterdir():
            path.unlink()  # as by systemd-tmpfiles, of what is ten days old
        with other.lease() as too:
            assert not too
    with other.lease() as then:
        assert then


def test_without_a_disk_records_go_straight_to_redis(
    client: Any, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    nowhere = Spool(str(tmp_path / "file"), 1 << 20)
    sink = SpoolRunSink(nowhere, Link(settings), settings)
    for task_id in ("a", "b"):
        sink.ended(success(task_id))
    assert outbox_ids(client, settings) == ["a", "b"]
    assert client.hget(settings.keys.count, "cpu-light") == "2"
    assert caplog.text.count("rts_spool_dir") == 1
    client.config_set("maxmemory", 1)
    sink.ended(success("c"))
    assert health.take_counts()["records_lost"] == 1
