"""The link to Redis against a server that is killed, stopped and refuses."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded
from redis.exceptions import ResponseError

from rts import health
from rts.errors import ConfigurationError, StoreUnavailable
from rts.link.breaker import Breaker
from rts.link.link import MAX_IDLE_S, Link
from rts.link.scripts import pack
from rts.link.waits import BoundedSocket
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from tests.forked import forks_beside_threads, holds_in_child, in_child
from tests.relay import relay


@pytest.fixture
def link(server: RedisServer) -> Iterator[Link]:
    link = Link(Settings(redis_url=server.url, breaker_period=1e-6, timeout=5.0))
    yield link
    link.close()


def client_id(link: Link) -> int:
    (number,) = link.call(pack("CLIENT", "ID"))
    return int(number)


def test_replies_come_in_order_over_one_connection(link: Link) -> None:
    assert link.call(pack("ECHO", "a"), pack("ECHO", "b")) == [b"a", b"b"]
    assert client_id(link) == client_id(link)


def test_a_new_connection_sends_nothing_before_its_first_command(link: Link) -> None:
    link.call(pack("CONFIG", "RESETSTAT"))
    link.close()
    (stats,) = link.call(pack("INFO", "commandstats"))
    assert "cmdstat_config" in stats.decode()
    assert "cmdstat_client" not in stats.decode()


def test_a_refusal_is_an_error_and_the_connection_is_kept(link: Link) -> None:
    before = client_id(link)
    with pytest.raises(StoreUnavailable) as info:
        link.call(pack("ECHO", "a"), pack("NOSUCH"), pack("ECHO", "b"))
    assert isinstance(info.value.__cause__, ResponseError)
    a, refused, b = link.call_each(pack("ECHO", "a"), pack("NOSUCH"), pack("ECHO", "b"))
    assert (a, b) == (b"a", b"b")
    assert isinstance(refused, ResponseError)
    assert client_id(link) == before


def test_a_restarted_server_is_reached_at_the_first_call(
    link: Link, server: RedisServer
) -> None:
    link.call(pack("PING"))
    server.kill()
    server.start()
    assert link.call(pack("PING")) == [b"PONG"]
    assert "redis_failures" not in health.take_counts()


def test_an_unreachable_server_fails_fast_until_the_period_is_over(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link(Settings(redis_url=server.url, breaker_period=3600.0, timeout=2.0))
    server.pause()
    try:
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                link.call(pack("PING"))
    finally:
        server.resume()
    link.try_now()  # changes nothing: callers have waited for a timeout
    with pytest.raises(StoreUnavailable):
        link.call(pack("PING"))
    counts = health.take_counts()
    assert (counts["redis_failures"], counts["breaker_opened"]) == (1, 1)
    assert caplog.text.count("is not usable") == 1
    assert "rts_redis_url" in caplog.text
    link.breaker._retry_at = time.monotonic()  # the period passes
    assert link.call(pack("PING")) == [b"PONG"]
    assert caplog.text.count("answers again") == 1


def test_a_host_that_no_name_server_can_be_asked_for_is_an_outage() -> None:
    link = Link(Settings(redis_url="redis://redis..svc/0"))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            link.call(pack("PING"))
    assert health.take_counts()["redis_failures"] == 1


def test_a_resolver_that_does_not_answer_is_not_waited_for(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, resolve = threading.Event(), socket.getaddrinfo

    def wait_and_resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "redis.internal":
            answers.wait(60)
            host = "127.0.0.1"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", wait_and_resolve)
    url = f"redis://redis.internal:{server.port}/0"
    link = Link(Settings(redis_url=url, breaker_period=1e-6, connect_timeout=0.05))
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="TimeoutError"):
            link.call(pack("PING"))
    assert threading.active_count() <= threads + 1, "one waits for the resolver"
    patient = Link(Settings(redis_url=url, connect_timeout=60.0, timeout=60.0))
    threading.Timer(0.1, answers.set).start()
    assert patient.call(pack("PING")) == [b"PONG"]
    patient.close()
    assert wait_until(lambda: answer(link) == [b"PONG"])
    link.close()


def answer(link: Link) -> Any:
    """Return what the server says to a PING, ``None`` while it cannot be reached."""
    try:
        return link.call(pack("PING"))
    except StoreUnavailable:
        return None


def test_a_child_does_not_use_the_parents_connection(link: Link) -> None:
    mine = client_id(link)
    reading, writing = os.pipe()
    in_child(lambda: os.write(writing, str(client_id(link)).encode()))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert int(pipe.read()) != mine
    assert client_id(link) == mine


def test_a_child_that_has_closed_what_it_inherited_keeps_what_it_has_opened(
    link: Link,
) -> None:
    mine = client_id(link)

    def act() -> bool:
        os.closerange(3, 1024)  # as Celery's embedded beat does
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
        link.call(pack("PING"))
        null = os.stat(os.devnull)
        return all(os.path.samestat(os.fstat(fd), null) for fd in opened)

    assert in_child(act)[1] == 0
    assert client_id(link) == mine


@forks_beside_threads
def test_no_thread_of_a_child_waits_for_one_of_its_parent(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.breaker.failed()

    def both_threads_are_answered() -> bool:
        answers: list[Any] = []

        def while_another_thread_calls(period_s: float) -> Breaker:
            monkeypatch.undo()
            other = threading.Thread(target=lambda: answers.append(answer(link)), daemon=True)
            other.start()
            other.join(20)
            return Breaker(period_s)

        monkeypatch.setattr("rts.link.link.Breaker", while_another_thread_calls)
        answers.append(answer(link))
        return answers == [[b"PONG"]] * 2

    assert holds_in_child(both_threads_are_answered, link.breaker._lock)


@pytest.mark.parametrize(
    "options",
    [
        "protocol=3",
        "virtual_host=x&ssl_cert_reqs=none",
        "socket_timeout=9&retry_on_timeout=1&decode_responses=1",
    ],
)
def test_options_of_a_brokers_url_do_no_harm(
    server: RedisServer, options: str, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link(Settings(redis_url=f"{server.url}?{options}", timeout=5.0))
    assert link.call(pack("PING")) == [b"PONG"]
    assert ("virtual_host" in caplog.text) == ("virtual_host" in options)
    link.close()


def test_a_replica_and_a_full_server_can_be_read(server: RedisServer, link: Link) -> None:
    with redis.Redis.from_url(server.url) as client:
        changes: list[Any] = [
            (client.config_set, ("maxmemory", 1), ("maxmemory", 0)),
            (client.replicaof, ("127.0.0.1", "1"), ("NO", "ONE")),
        ]
        for change, there, back in changes:
            change(*there)
            refused, read = link.call_each(pack("SET", "x", "1"), pack("EXISTS", "x"))
            change(*back)
            assert isinstance(refused, ResponseError)
            assert read == 0


@pytest.mark.parametrize("script", [False, True])
def test_a_primary_that_was_demoted_is_left_for_the_new_one(script: bool) -> None:
    write = pack("EVAL", "return redis.call('SET', 'x', 1)", 0) if script else None
    write = write or pack("SET", "x", "1")
    with RedisServer() as old, RedisServer() as new, relay(old) as address:
        settings = Settings(redis_url=f"redis://127.0.0.1:{address.port}", breaker_period=1e-6)
        link = Link(settings)
        link.call(write)
        address.server = new
        with redis.Redis(port=old.port) as client:
            client.replicaof("127.0.0.1", str(new.port))
        with pytest.raises(StoreUnavailable):
            link.call(write)
        assert link.call(write, pack("EXISTS", "x"))[1] == 1
        link.close()


def test_connections_that_a_firewall_dropped_cost_one_timeout(
    server: RedisServer,
) -> None:
    with relay(server) as address, redis.Redis.from_url(server.url) as client:
        url = f"redis://127.0.0.1:{address.port}"
        link = Link(Settings(redis_url=url, breaker_period=1e-6, timeout=2.0))
        threads = [
            threading.Thread(target=link.call, args=(pack("BLPOP", "bell", 0),))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: client.info("clients")["blocked_clients"] == 3)
        client.rpush("bell", 1, 2, 3)
        for thread in threads:
            thread.join()
        address.forget()
        with pytest.raises(StoreUnavailable, match="TimeoutError"):
            link.call(pack("PING"))
        assert link.call(pack("PING")) == [b"PONG"]
        link.close()


@contextmanager
def trickling() -> Iterator[str]:
    """Give the URL of a server that replies with 40 "x", one by one, in some two seconds."""
    reply = b"$40\r\n%b\r\n" % (b"x" * 40)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                for n in range(len(reply)):
                    try:
                        connection.sendall(reply[n : n + 1])
                    except OSError:
                        return  # the link has given up
                    time.sleep(2 / len(reply))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        thread.join(5)


def test_a_reply_that_trickles_in_is_not_waited_for() -> None:
    with trickling() as url:
        link = Link(Settings(redis_url=url, timeout=0.5))
        with pytest.raises(StoreUnavailable):
            link.call(pack("GET", "x"))


def test_a_piecewise_link_waits_for_all_of_a_reply() -> None:
    with trickling() as url:
        link = Link(Settings(redis_url=url, timeout=1.0), piecewise=True)
        assert link.call(pack("GET", "x")) == [b"x" * 40]
        link.close()


def test_only_time_spent_in_waiting_counts() -> None:
    near, far = socket.socketpair()
    with near, far:
        bounded = BoundedSocket(near, 0.5)
        far.sendall(b"abc")
        assert bounded.recv(1) == b"a"
        time.sleep(0.6)
        assert bounded.recv(1) == b"b"
        assert bounded.recv_into(bytearray(1)) == 1
        with pytest.raises(TimeoutError):
            bounded.recv(1)
        with pytest.raises(TimeoutError):
            bounded.recv(1)
        bounded.begin()
        far.sendall(b"d")
        assert bounded.recv(1) == b"d"
        assert bounded.gettimeout() == 0.5


def test_a_reply_that_has_come_is_read_however_late() -> None:
    class Starved(socket.socket):
        """Of a thread that waits for the GIL: for as long as other threads compute."""

        def sendall(self, *args: Any) -> None:
            super().sendall(*args)
            time.sleep(0.1)

        def recv(self, *args: Any) -> bytes:
            timeouts.append(self.gettimeout())
            time.sleep(0.1)
            return super().recv(*args)

    timeouts: list[float | None] = []
    near, far = socket.socketpair()
    with Starved(fileno=near.detach()) as sock, far:
        bounded = BoundedSocket(sock, 0.05)
        for _ in range(2):
            bounded.begin()
            bounded.sendall(b"?")
            far.sendall(b"abc")
            assert [bounded.recv(1) for _ in range(3)] == [b"a", b"b", b"c"]
    assert timeouts[0] == timeouts[3] == 0.05, "it has waited for nothing yet"


def test_a_connection_that_was_idle_for_minutes_is_not_used(server: RedisServer) -> None:
    at = 0.0
    with relay(server) as address:
        url = f"redis://127.0.0.1:{address.port}"
        link = Link(Settings(redis_url=url, timeout=2.0), now=lambda: at)
        first = client_id(link)
        at += MAX_IDLE_S - 1
        assert client_id(link) == first
        address.forget()
        at += MAX_IDLE_S
        assert client_id(link) != first
        link.close()


def test_an_option_of_the_wrong_type_is_reported() -> None:
    with pytest.raises(ConfigurationError, match="rts_redis_url = 'redis://host/0'"):
        Link(Settings(redis_url="redis://:secret@host/0?socket_timeout=soon"))


class Passport(redis.CredentialProvider):
    """Credentials that are not in the URL, such as a cloud's token."""

    def get_credentials(self) -> tuple[str, str]:
        return "rts", "s3cret"


@pytest.mark.parametrize("separator", ".:")
def test_the_credential_provider_of_a_brokers_url_is_used(
    server: RedisServer, separator: str
) -> None:
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "rts", "on", ">s3cret", "~*", "+@all")
        url = server.url.replace("://", "://nobody:else@")
        link = Link(
            Settings(redis_url=f"{url}?credential_provider={__name__}{separator}Passport")
        )
        assert link.call(pack("ACL", "WHOAMI")) == [b"rts"]
        link.close()
        admin.execute_command("ACL", "DELUSER", "rts")


class Expired(redis.CredentialProvider):
    """What a cloud's library does while its token service is away."""

    asked = 0
    error: Exception = KeyError("token")

    def get_credentials(self) -> tuple[str, str]:
        Expired.asked += 1
        raise self.error


def test_a_credential_provider_that_fails_is_an_outage(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    link = Link(Settings(redis_url=f"{server.url}?credential_provider={__name__}.Expired"))
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            link.call(pack("PING"))
    assert Expired.asked == 1
    assert "no credentials (KeyError: 'token')" in caplog.text
    monkeypatch.setattr(Expired, "error", SoftTimeLimitExceeded())
    link.breaker._retry_at = time.monotonic()  # the period passes
    with pytest.raises(SoftTimeLimitExceeded):
        link.call(pack("PING"))


class Unready(Passport):
    """One whose token service is away when it is made."""

    made = 0

    def __init__(self) -> None:
        Unready.made += 1
        if Unready.made < 3:
            raise OSError("no route to the token service")


def test_a_credential_provider_that_cannot_be_made_yet_is_an_outage(
    server: RedisServer,
) -> None:
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "rts", "on", ">s3cret", "~*", "+@all")
        url = f"{server.url}?credential_provider={__name__}.Unready"
        link = Link(Settings(redis_url=url, breaker_period=1e-6))
        with pytest.raises(StoreUnavailable, match=r"no credentials \(OSError: no route"):
            link.call(pack("PING"))
        assert link.call(pack("ACL", "WHOAMI")) == [b"rts"]
        link.close()
        admin.execute_command("ACL", "DELUSER", "rts")


class Unset(redis.CredentialProvider):
    """One that reads its token from the environment, which lacks it."""

    def __init__(self) -> None:
        raise KeyError("REDIS_TOKEN")


@pytest.mark.parametrize(
    "name", ["Passport", "nowhere.Passport", "rts.Passport", "redis.Redis", f"{__name__}.Unset"]
)
def test_a_missing_credential_provider_is_reported(name: str) -> None:
    with pytest.raises(ConfigurationError, match="whose credential_provider names a class"):
        Link(Settings(redis_url=f"redis://host/0?credential_provider={name}"))


@pytest.mark.parametrize("separator", ".:")
def test_a_dependency_that_a_credential_provider_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    package = tmp_path / f"cloud_{ord(separator)}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tokens.py").write_text("import a_cloud_s_own_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"{package.name}.tokens{separator}Tokens"
    with pytest.raises(ConfigurationError, match="No module named 'a_cloud_s_own_library'"):
        Link(Settings(redis_url=f"redis://host/0?credential_provider={name}"))


@pytest.mark.usefixtures("unmeasured")
def test_a_server_that_alternates_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at = 1000.0
    with RedisServer() as server, redis.Redis(port=server.port) as admin:
        settings = Settings(redis_url=server.url, breaker_period=1e-6)
        link = Link(settings, now=lambda: at)
        for _ in range(1800):
            admin.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable):
                link.call(pack("SET", "a", "b"))
            admin.config_set("maxmemory", 0)
            link.call(pack("SET", "a", "b"))
            at += 2
        told = caplog.text.count("is not usable")
        assert 2 <= told <= 10, "seldomer and seldomer"
        assert caplog.text.count("answers again") == told
        at += 10_000
        admin.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable):
            link.call(pack("SET", "a", "b"))
        assert caplog.text.count("is not usable") == told + 1, "after a calm it is told at once"
        link.close()


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (pack("SET", "a", "b"), pack("GET", "a")),
        (
            pack("EVAL", "return redis.call('SET', 'a', 'b')", 0),
            pack("EVAL", "return redis.call('GET', 'a')", 0),
        ),
    ],
    ids=["commands", "scripts"],
)
def test_a_server_that_refuses_some_commands_does_not_answer_again_by_the_others(
    caplog: pytest.LogCaptureFixture, write: bytes, read: bytes
) -> None:
    at = 1000.0
    with RedisServer(arguments=("--maxmemory", "1")) as server:
        link = Link(Settings(redis_url=server.url, breaker_period=1e-6), now=lambda: at)
        for _ in range(9):
            with pytest.raises(StoreUnavailable):
                link.call(write)
            link.call(read)
            at += 10_000
        assert caplog.text.count("is not usable") == 1
        assert "answers again" not in caplog.text
        link.call(pack("CONFIG", "SET", "maxmemory", 0))
        link.call(write)
        assert caplog.text.count("answers again") == 1
        # An outage ends with any answer.
        with pytest.raises(StoreUnavailable):
            link.call(pack("NONSENSE"))
        server.kill()
        with pytest.raises(StoreUnavailable):
            link.call(read)
        server.start()
        link.call(read)
        assert caplog.text.count("answers again") == 2
        link.close()
