"""pytest fixtures: real servers for a test session, isolated from test to test.

Enable them in a ``conftest.py`` with ``pytest_plugins = ("rts.testing.plugin",)``.
``RTS_TEST_REDIS_URL`` and ``RTS_TEST_MONGO_URL`` name servers to use instead of embedded ones
(a MongoDB URL with a password must name its ``authSource``). If there is neither, the tests are
skipped with the reason, or fail if the environment has ``CI``.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from rts.testing.binaries import ServerNotFound
from rts.testing.servers import MongoServer, RedisServer

#: Databases of the embedded Redis; the first one is never handed out.
DATABASES = 1000

#: Counts the databases that were handed out.
_used = itertools.count()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Skip a test that finds no server for itself or for a fixture."""
    with _skipping():
        return (yield)


pytest_runtest_call = pytest_runtest_setup


@contextmanager
def _skipping() -> Iterator[None]:
    """Turn a missing server into a skip, or an error in CI."""
    try:
        yield
    except ServerNotFound as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def rts_redis_server() -> Iterator[RedisServer]:
    """The session's embedded Redis. Do not stop or pause it: a test that needs to creates a
    :class:`RedisServer` of its own.
    """
    with RedisServer(arguments=("--databases", str(DATABASES))) as server:
        yield server


@pytest.fixture(scope="session")
def rts_mongo_server() -> Iterator[MongoServer]:
    """The session's embedded MongoDB, which no test may stop or pause."""
    with MongoServer() as server:
        yield server


@pytest.fixture(scope="session")
def rts_redis_session_url(request: pytest.FixtureRequest) -> str:
    """URL of the session's Redis: the one of the environment, or the embedded one."""
    given = os.environ.get("RTS_TEST_REDIS_URL")
    return given or str(request.getfixturevalue("rts_redis_server").url)


@pytest.fixture(scope="session")
def rts_mongo_session_url(request: pytest.FixtureRequest) -> str:
    """URL of the session's MongoDB: the one of the environment, or the embedded one."""
    given = os.environ.get("RTS_TEST_MONGO_URL")
    return given or str(request.getfixturevalue("rts_mongo_server").url)


@pytest.fixture
def rts_key_prefix() -> str:
    """A key prefix that no other test uses."""
    return f"rts-test-{secrets.token_hex(6)}:"


@pytest.fixture
def rts_redis_url(rts_redis_session_url: str) -> Iterator[str]:
    """URL of a database of this test's own on the embedded Redis, emptied afterwards, since a
    broker's keys (``unacked``) have no prefix. If ``RTS_TEST_REDIS_URL`` names the server, it
    is that very URL, and nothing is emptied; use :func:`rts_key_prefix` there.
    """
    if os.environ.get("RTS_TEST_REDIS_URL"):
        yield rts_redis_session_url
        return
    import redis

    database = 1 + next(_used) % (DATABASES - 1)
    url = urlsplit(rts_redis_session_url)._replace(path=f"/{database}").geturl()
    yield url
    with redis.Redis.from_url(url) as client:
        client.flushdb()


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
