"""A database of Redis for queues whose names are always the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis


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
