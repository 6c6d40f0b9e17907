"""Leases on a real Redis, which another takes at the worst moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from rts.link.lease import Lease, first_in
from rts.link.link import Link
from rts.settings import Settings
from rts.testing import RedisServer, wait_until

Make = Callable[..., Lease]


@pytest.fixture
def key(settings: Settings) -> str:
    return settings.keys.janitor


@pytest.fixture
def make(settings: Settings, key: str) -> Iterator[Make]:
    links: list[Link] = []

    def one(name: str, link: type[Link] = Link) -> Lease:
        links.append(link(settings))
        return Lease(links[-1], key, name, 60.0)

    yield one
    for link in links:
        link.close()


def test_it_is_renewed_while_redis_is_out_of_memory(settings: Settings, key: str) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        link = Link(replace(settings, redis_url=server.url))
        lease = Lease(link, key, "one", 60.0)
        assert lease.acquire()
        client.pexpire(key, 5000)
        client.config_set("maxmemory", 1)
        assert lease.acquire()
        assert client.pttl(key) > 5000
        link.close()


def test_one_holds_it_until_it_releases_it(
    make: Make, redis_client: redis.Redis, key: str
) -> None:
    one, two = make("one"), make("two")
    assert one.acquire()
    assert not two.acquire()
    two.release()  # not its own
    assert redis_client.get(key) == "one"
    one.release()
    one.release()
    assert redis_client.exists(key) == 0
    assert two.acquire()
    assert not one.acquire()


def test_renewing_it_starts_its_time_anew(
    make: Make, redis_client: redis.Redis, key: str
) -> None:
    one = make("one")
    assert one.acquire()
    assert 0 < redis_client.pttl(key) <= 60_000
    redis_client.pexpire(key, 30_000)
    assert one.acquire()
    assert redis_client.pttl(key) > 30_000


def test_a_holder_that_comes_back_after_its_time_leaves_another_alone(
    make: Make, redis_client: redis.Redis, key: str
) -> None:
    one, two = make("one"), make("two")
    assert one.acquire()
    redis_client.pexpire(key, 1)
    wait_until(two.acquire)
    one.release()
    assert redis_client.get(key) == "two"
    assert not one.acquire()


def test_a_lease_that_expires_during_its_release_is_not_taken_from_another(
    make: Make, redis_client: redis.Redis, key: str
) -> None:
    class Overtaken(Link):
        """Its lease runs out after the first answer, and another has it from then on."""

        calls = 0

        def call(self, *commands: bytes) -> list[Any]:
            replies = super().call(*commands)
            self.calls += 1
            if self.calls == 1:
                redis_client.set(key, "two")
            return replies

    redis_client.set(key, "one", px=60_000)
    make("one", link=Overtaken).release()
    assert redis_client.get(key) == "two"


def test_one_from_before_the_servers_clock_was_set_back_keeps_no_one_waiting(
    make: Make, redis_client: redis.Redis, key: str, settings: Settings
) -> None:
    hour_ms = 3_600_000
    redis_client.set(key, "gone", px=hour_ms)
    make("two").release()  # not its own
    assert redis_client.get(key) == "gone"
    assert make("two").acquire()
    assert redis_client.get(key) == "two"
    assert redis_client.pttl(key) <= 60_000
    redis_client.set(key, "gone", px=hour_ms)
    link = Link(settings)
    assert first_in(link, key, 10.0)
    assert not first_in(link, key, 10.0)
    link.close()
