"""pytest fixtures: real servers for a test session, a private corner for each test.

Enable them in a ``conftest.py`` with ``pytest_plugins = ("rts.testing.plugin",)``.
``RTS_TEST_REDIS_URL`` and ``RTS_TEST_MONGO_URL`` name servers to use instead of
embedded ones (a URL of MongoDB with a password must name its ``authSource``).
Where there is neither, the tests are skipped with the reason, or fail if the
environment has ``CI``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import TypeVar
from urllib.parse import urlsplit

import pytest

from rts.testing.servers import MongoServer, RedisServer, Server, ServerNotFound

S = TypeVar("S", bound=Server)


def _started(server: S) -> S:
    """Start *server*. Without its binary: an error in CI, a skip elsewhere."""
    try:
        return server.start()
    except ServerNotFound as exc:
        server.stop()
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))
    except BaseException:
        server.stop()
        raise


@pytest.fixture(scope="session")
def rts_redis_server() -> Iterator[RedisServer]:
    """The session's embedded Redis, with 1,000 databases. Do not stop or pause it: a
    test that does makes a :class:`RedisServer` of its own.
    """
    server = _started(RedisServer(arguments=("--databases", "1000")))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rts_mongo_server() -> Iterator[MongoServer]:
    """The session's embedded MongoDB, which no test may stop or pause."""
    server = _started(MongoServer())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rts_redis_session_url(request: pytest.FixtureRequest) -> str:
    """URL of the session's Redis: the one of the environment, or the embedded one."""
    return _url("RTS_TEST_REDIS_URL", request, "rts_redis_server")


@pytest.fixture(scope="session")
def rts_mongo_session_url(request: pytest.FixtureRequest) -> str:
    """URL of the session's MongoDB: the one of the environment, or the embedded one."""
    return _url("RTS_TEST_MONGO_URL", request, "rts_mongo_server")


def _url(variable: str, request: pytest.FixtureRequest, fixture: str) -> str:
    url = os.environ.get(variable)
    if url:
        return url
    server: Server = request.getfixturevalue(fixture)
    return server.url


@pytest.fixture
def rts_key_prefix() -> str:
    """A key prefix that no other test uses."""
    return f"rts-test-{secrets.token_hex(6)}:"


@pytest.fixture
def rts_redis_url(rts_redis_session_url: str) -> str:
    """URL of the session's Redis; use :func:`rts_key_prefix` on it."""
    return rts_redis_session_url


@pytest.fixture
def rts_mongo_url(rts_mongo_session_url: str) -> Iterator[str]:
    """URL of a database of this test's own, dropped afterwards."""
    import pymongo

    database = f"rts_test_{secrets.token_hex(6)}"
    parts = urlsplit(rts_mongo_session_url)
    yield parts._replace(path=f"/{database}").geturl()
    client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(rts_mongo_session_url)
    client.drop_database(database)
    client.close()
