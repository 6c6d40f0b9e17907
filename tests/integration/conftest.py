"""Settings, and a database of Redis for queues whose names are always the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from rts.settings import Settings
from rts.testing import RedisServer


@pytest.fixture
def url(rts_redis_url: str) -> Iterator[str]:
    """An empty database of the session's Redis."""
    url = rts_redis_url.rpartition("/")[0] + "/12"
    client = redis.Redis.from_url(url)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    """A client of that database."""
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
