"""Settings, and a Redis for what no other test, and nobody else, may come near."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from rts.settings import Settings
from rts.testing import RedisServer


@pytest.fixture
def url(server: RedisServer) -> str:
    """The Redis of the file's own, emptied, for queues whose names are always the same."""
    with redis.Redis.from_url(server.url) as client:
        client.flushdb()
    return server.url


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    """A client of that Redis."""
    client = redis.Redis.from_url(url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def settings(rts_redis_url: str, rts_key_prefix: str) -> Settings:
    """Settings for the session's Redis; no test is to fail for its timeout."""
    return Settings(redis_url=rts_redis_url, key_prefix=rts_key_prefix, timeout=5.0)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of the file's own, which its tests may stop, pause and empty."""
    with RedisServer() as server:
        yield server
