"""What publishers know of the taus, and how often they read them."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import redis

from rts import health
from rts.clock import FleetClock
from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.tau.cache import FRESH_S, TauCache
from rts.tau.redis import RedisTauStore
from rts.testing import RedisServer
from tests.clock import Clock
from tests.forked import forks_beside_threads, holds_in_child

NAME = "proj.add"


class CountingLink(Link):
    """Counts its round trips, and keeps what it sent."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.trips, self.sent = 0, list[bytes]()

    def call_each(self, *commands: bytes) -> list[Any]:
        self.trips += 1
        self.sent += commands
        return super().call_each(*commands)


@pytest.fixture
def settings(server: RedisServer, rts_key_prefix: str) -> Settings:
    return Settings(
        redis_url=server.url, key_prefix=rts_key_prefix, breaker_period=1e-6, timeout=5.0
    )


@pytest.fixture
def link(settings: Settings) -> CountingLink:
    return CountingLink(settings)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(link: CountingLink, settings: Settings, clock: Clock) -> TauCache:
    return TauCache(link, settings, FleetClock(), clock)


def test_a_publish_adds_no_round_trip(
    cache: TauCache, link: CountingLink, settings: Settings, clock: Clock
) -> None:
    store = RedisTauStore(Link(settings), settings)
    assert cache.tau("cpu-light", NAME) == 5.0
    store.set("cpu-light", 2.0)
    for _ in range(100):
        clock.at += FRESH_S / 200
        assert cache.tau("cpu-light", NAME) == 5.0
    assert link.trips == 1
    clock.at += FRESH_S
    assert cache.tau("cpu-light", NAME) == 2.0
    assert link.trips == 2


def test_learned_quantiles_are_read_less_often(settings: Settings, clock: Clock) -> None:
    settings = replace(settings, deadline_policy="quantile")
    link = CountingLink(settings)
    cache = TauCache(link, settings, FleetClock(), clock)
    reads = dict.fromkeys(("tau", "ratio:mixed", "ratio:*"), 0)
    for _ in range(100):
        clock.at += FRESH_S
        link.sent.clear()
        cache.tau("mixed", NAME)
        for key in reads:
            reads[key] += pack("HGETALL", settings.keys.prefix + key) in link.sent
    assert reads == {"tau": 100, "ratio:mixed": 10, "ratio:*": 10}


def test_a_name_counts_once_it_has_enough_runs(
    cache: TauCache, settings: Settings, clock: Clock
) -> None:
    store = RedisTauStore(Link(settings), settings)
    by_type = replace(settings, tau_scope="type")
    without_names = TauCache(Link(settings), by_type, FleetClock(), clock)
    for n in range(6):
        clock.at += FRESH_S
        own, of_type = store.get("cpu-light", NAME), store.get("cpu-light")
        assert cache.tau("cpu-light", NAME) == own
        assert without_names.tau("cpu-light", NAME) == of_type
        assert (own == of_type) == (n < 5)
        store.update("cpu-light", "proj.other", 9.0)
        store.update("cpu-light", NAME, 1.0)


def test_without_a_server_the_last_taus_hold(
    cache: TauCache, settings: Settings, clock: Clock, server: RedisServer
) -> None:
    RedisTauStore(Link(settings), settings).set("mixed", 3.0)
    assert cache.tau("mixed", NAME) == 3.0
    health.count("refused_plan", 2)
    server.kill()
    try:
        clock.at += FRESH_S
        assert cache.tau("mixed", NAME) == 3.0
        assert health.take_counts()["refused_plan"] == 2, "not lost"
    finally:
        server.start()
    clock.at += FRESH_S
    assert cache.tau("mixed", NAME) == 10.0  # the server came back empty


class HeldLink(CountingLink):
    """Blocks its calls until *released*."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.asked, self.released = threading.Event(), threading.Event()

    def call_each(self, *commands: bytes) -> list[Any]:
        self.asked.set()
        assert self.released.wait(30)
        return super().call_each(*commands)


def test_a_thread_waits_for_the_first_answer_of_another_one(
    settings: Settings,
) -> None:
    RedisTauStore(Link(settings), settings).set("mixed", 3.0)
    link = HeldLink(settings)
    cache, taus = TauCache(link, settings, FleetClock()), []
    threads = [
        threading.Thread(target=lambda: taus.append(cache.tau("mixed", NAME))) for _ in range(2)
    ]
    threads[0].start()
    assert link.asked.wait(30)
    threads[1].start()
    threads[1].join(0.2)  # long enough to return with the default
    link.released.set()
    for thread in threads:
        thread.join(30)
    assert taus == [3.0, 3.0]
    assert link.trips == 1


def test_no_thread_waits_for_a_later_answer_of_another_one(
    settings: Settings, clock: Clock
) -> None:
    RedisTauStore(Link(settings), settings).set("mixed", 3.0)
    link = HeldLink(settings)
    cache = TauCache(link, settings, FleetClock(), clock)
    link.released.set()
    assert cache.tau("mixed", NAME) == 3.0
    link.asked.clear()
    link.released.clear()
    clock.at += FRESH_S
    other = threading.Thread(target=cache.refresh)
    other.start()
    assert link.asked.wait(30)
    assert cache.tau("mixed", NAME) == 3.0
    assert other.is_alive(), "its answer has not come"
    link.released.set()
    other.join(30)


@forks_beside_threads
def test_no_thread_of_a_child_waits_for_a_thread_of_its_parent(
    cache: TauCache, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    RedisTauStore(Link(settings), settings).set("mixed", 3.0)

    def both_threads_know_it() -> bool:
        taus: list[float] = []

        def while_another_thread_asks() -> Any:
            monkeypatch.undo()
            other = threading.Thread(target=lambda: taus.append(cache.tau("mixed", NAME)))
            other.start()
            other.join(20)
            return threading.RLock()

        monkeypatch.setattr(threading, "RLock", while_another_thread_asks)
        taus.append(cache.tau("mixed", NAME))
        return taus == [3.0, 3.0]

    assert holds_in_child(both_threads_know_it, cache._lock)


class SlowLink(CountingLink):
    """Makes each answer take *takes_s* by the test's clock."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__(settings)
        self.clock, self.takes_s = clock, 0.0

    def call_each(self, *commands: bytes) -> list[Any]:
        self.clock.at += self.takes_s
        return super().call_each(*commands)


@pytest.mark.parametrize(
    ("takes_s", "rest_s"),
    [(0.05, 1.0), (0.4, 4.0), (0.5, 5.0), (1.5, 5.0)],  # the last: one that reconnects
)
def test_publishers_wait_no_more_for_a_slow_server_than_for_an_absent_one(
    settings: Settings, clock: Clock, takes_s: float, rest_s: float
) -> None:
    settings = replace(settings, timeout=0.5, breaker_period=5.0)
    link = SlowLink(settings, clock)
    cache = TauCache(link, settings, FleetClock(), clock)
    link.takes_s = takes_s
    cache.tau("mixed", NAME)
    clock.at += rest_s - 0.01
    cache.tau("mixed", NAME)
    assert link.trips == 1
    clock.at += 0.02
    cache.tau("mixed", NAME)
    assert link.trips == 2


def test_the_same_round_trip_delivers_counts_and_measures_the_clock(
    link: CountingLink, settings: Settings, server: RedisServer
) -> None:
    health.count("refused_plan", 2)
    fleet = FleetClock()
    fleet.offset_s = 1000.0
    TauCache(link, settings, fleet).refresh()
    assert abs(fleet.offset_s) < 1.0
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.hgetall(settings.keys.counters) == {"refused_plan": "2"}
    assert health.take_counts() == {}


def test_time_that_a_test_freezes_is_not_taken_for_a_wrong_clock(
    link: CountingLink, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FleetClock()
    with monkeypatch.context() as frozen:
        frozen.setattr(time, "time", lambda: 1_000_000_000.0)
        TauCache(link, settings, clock).refresh()
    assert link.trips == 1
    assert abs(clock.offset_s) < 3600


def test_a_read_only_server_gives_taus_and_leaves_the_counts(
    link: CountingLink, settings: Settings, server: RedisServer
) -> None:
    RedisTauStore(Link(settings), settings).set("mixed", 3.0)
    health.count("refused_plan", 2)
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)
        try:
            assert TauCache(link, settings, FleetClock()).tau("mixed", NAME) == 3.0
        finally:
            client.config_set("maxmemory", 0)
    assert health.take_counts()["refused_plan"] == 2


def test_hashes_of_another_type_leave_the_defaults(
    cache: TauCache, settings: Settings, server: RedisServer
) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set(settings.keys.tau, "rubbish")
    assert cache.tau("mixed", NAME) == 10.0
