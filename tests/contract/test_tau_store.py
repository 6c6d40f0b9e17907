"""The contract of the tau stores, in memory and on a real Redis."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from rts import health
from rts.link.link import Link
from rts.link.scripts import pack
from rts.ports import TauEntry, TauStore
from rts.settings import Settings
from rts.tau.memory import MemoryTauStore, choose_tau, ema
from rts.tau.redis import RedisTauStore
from rts.tau.sketch import Sketch
from rts.tau.snapshot import Snapshots
from tests.memory_ledger import MemoryLedger

LIGHT, NAME = "cpu-light", "proj.add"
FIELD = f"{LIGHT}/{NAME}"


@pytest.fixture
def settings(rts_redis_url: str, rts_key_prefix: str) -> Settings:
    return Settings(
        redis_url=rts_redis_url, key_prefix=rts_key_prefix, max_types=6, timeout=5.0
    )


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, settings: Settings) -> Iterator[TauStore]:
    if request.param == "memory":
        yield MemoryTauStore(settings)
        return
    link = Link(settings)
    yield RedisTauStore(link, settings)
    link.close()


@pytest.mark.parametrize(
    ("task_type", "tau"),
    [
        ("cpu-light", 5.0),
        ("cpu-heavy", 15.0),
        ("memory-heavy", 20.0),
        ("gpu-inference", 10.0),
        ("gpu-training", 60.0),
        ("mixed", 10.0),
    ],
)
def test_a_type_begins_with_its_default(store: TauStore, task_type: str, tau: float) -> None:
    assert store.get(task_type) == store.get(task_type, NAME) == tau
    assert store.entries() == {}


def test_every_prefix_agrees_with_the_closed_form(store: TauStore) -> None:
    rng = random.Random(7)
    samples = [rng.lognormvariate(0, 1) for _ in range(60)]
    deviation = None
    before = 5.0
    for n, x in enumerate(samples, start=1):
        learned = store.update(LIGHT, NAME, x)
        closed = 0.8**n * 5.0 + sum(
            0.2 * 0.8 ** (n - i) * y for i, y in enumerate(samples[:n], start=1)
        )
        assert learned.tau_before == learned.name_tau_before == pytest.approx(before, abs=1e-12)
        assert learned.tau_after == learned.name_tau_after == pytest.approx(closed, abs=1e-9)
        off = abs(x - before)
        deviation = off if deviation is None else ema(deviation, off, 0.2)
        before = learned.tau_after
        entry = store.entries()[FIELD]
        assert entry.count == n
        assert entry.deviation == pytest.approx(deviation, abs=1e-9)
        assert store.get(LIGHT) == entry.tau == learned.tau_after


def test_a_name_is_used_once_it_has_enough_runs(store: TauStore) -> None:
    for n in range(5):
        assert store.get(LIGHT, NAME) == store.get(LIGHT)
        store.update(LIGHT, "proj.other", 50.0)
        store.update(LIGHT, NAME, 1.0)
        assert store.entries()[FIELD].count == n + 1
    assert store.get(LIGHT, NAME) == pytest.approx(1 + 4 * 0.8**5)
    assert store.get(LIGHT) > 10
    by_type = Settings(tau_scope="type")
    assert choose_tau(by_type, store.entries(), LIGHT, NAME) == store.get(LIGHT)


def test_a_tau_can_be_set_and_learns_from_there(store: TauStore) -> None:
    store.set(LIGHT, 2.0)
    assert store.get(LIGHT) == 2.0
    assert store.update(LIGHT, NAME, 1.0).tau_after == pytest.approx(1.8)
    store.set(LIGHT, 3.0)
    assert store.entries()[LIGHT] == TauEntry(3.0, 1, 1.0)


def test_one_field_or_all_can_be_reset(store: TauStore) -> None:
    for _ in range(3):
        store.update(LIGHT, NAME, 1.0)
    store.reset(FIELD)
    assert set(store.entries()) == {LIGHT}
    store.reset()
    assert store.entries() == {}
    assert store.get(LIGHT) == 5.0


def test_there_are_no_more_fields_than_allowed(store: TauStore) -> None:
    for n in range(10):
        learned = store.update(LIGHT, f"proj.{n}", 1.0)
        assert (learned.name_tau_after is None) == (n >= 5)
    assert len(store.entries()) == 6
    assert store.entries()[LIGHT].count == 10, "what is there goes on learning"


def test_a_type_takes_the_place_of_the_name_with_the_fewest_runs(store: TauStore) -> None:
    for n in range(5):
        for _ in range(1 if n == 3 else 2):
            store.update(LIGHT, f"proj.{n}", 1.0)
    learned = store.update("mixed", NAME, 5.0)
    assert (learned.tau_after, learned.name_tau_after) == (9.0, None)
    others = {f"{LIGHT}/proj.{n}" for n in (0, 1, 2, 4)}
    assert set(store.entries()) == {LIGHT, "mixed", *others}
    for task_type in Settings().task_types:
        assert store.update(task_type, NAME, 1.0).tau_after is not None
    assert set(store.entries()) == set(Settings().task_types)


def test_concurrent_updates_are_not_lost(store: TauStore) -> None:
    samples = [0.1] * 200
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda x: store.update(LIGHT, NAME, x), samples))
    assert store.entries()[LIGHT].count == 200
    assert store.get(LIGHT) == pytest.approx(0.1 + 4.9 * 0.8**200)


class TestRedis:
    """The sketches of runtimes, and what people can do to the hashes."""

    @pytest.fixture
    def store(self, settings: Settings) -> RedisTauStore:
        return RedisTauStore(Link(settings), settings)

    @pytest.fixture
    def sketch(self, settings: Settings, redis_client: redis.Redis) -> Callable[[str], Sketch]:
        return lambda field: Sketch.from_hash(
            redis_client.hgetall(settings.keys.sketch + field)
        )

    def test_the_sketch_counts_every_runtime(
        self, store: RedisTauStore, sketch: Callable[[str], Sketch]
    ) -> None:
        model = Sketch()
        for x in (0.0, 1e-12, 1e-6, 0.76, 0.98, 1.0, 1.02, 5.0, 1e6):
            store.update(LIGHT, NAME, x)
            model.update(x)
        assert sketch(LIGHT).buckets == sketch(FIELD).buckets == model.buckets
        assert sketch(LIGHT).zeros == model.zeros == 2

    def test_a_reset_forgets_the_sketch_too(
        self, store: RedisTauStore, sketch: Callable[[str], Sketch]
    ) -> None:
        for _ in range(3):
            store.update(LIGHT, NAME, 1.0)
        store.reset(FIELD)
        assert sketch(FIELD).count == 0
        assert sketch(LIGHT).count == 3
        store.reset()
        assert sketch(LIGHT).count == 0

    @pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-1", "0", "\x00"])
    def test_what_is_no_tau_is_ignored_and_learned_over(
        self,
        store: RedisTauStore,
        settings: Settings,
        redis_client: redis.Redis,
        caplog: pytest.LogCaptureFixture,
        text: str,
    ) -> None:
        redis_client.hset(settings.keys.tau, LIGHT, text)
        redis_client.hset(settings.keys.deviation, LIGHT, text)
        redis_client.hset(settings.keys.tau, "mixed", "7")
        assert store.get(LIGHT) == 5.0
        assert store.entries().keys() == {"mixed"}
        assert health.take_counts() == {"refused_tau": 2}
        assert caplog.text.count("is not a number of seconds") == 1
        assert store.update(LIGHT, NAME, 1.0).tau_after == pytest.approx(4.2)
        assert store.entries()[LIGHT].tau == pytest.approx(4.2)

    @pytest.mark.parametrize("count", ["many", "-1", "1.5", "9" * 19, "9" * 5000])
    def test_counts_and_deviations_that_are_none_are_zero(
        self, store: RedisTauStore, settings: Settings, redis_client: redis.Redis, count: str
    ) -> None:
        redis_client.hset(settings.keys.tau, FIELD, "2")
        redis_client.hset(settings.keys.count, FIELD, count)
        redis_client.hset(settings.keys.deviation, FIELD, "nan")
        assert store.entries() == {FIELD: TauEntry(2.0, 0, 0.0)}

    def test_reset_forgets_what_is_not_sound_too(
        self, store: RedisTauStore, settings: Settings, redis_client: redis.Redis
    ) -> None:
        redis_client.hset(settings.keys.tau, "odd", "soon")
        redis_client.hset(settings.keys.count, "alone", "1")
        store.reset()
        keys = (settings.keys.tau, settings.keys.count)
        assert not redis_client.exists(*keys)


def test_what_was_learned_since_a_wipe_comes_after_the_snapshot(settings: Settings) -> None:
    link = Link(settings)
    store, whole = RedisTauStore(link, settings), MemoryTauStore(settings)
    snapshot = {
        LIGHT: TauEntry(0.75, 40, 0.25),
        FIELD: TauEntry(0.5, 30, 0.125),
        "mixed": TauEntry(7.0, 3, 1.0),
        "gpu-training": TauEntry(50.0, 1, 4.0),  # not seen since
        "memory-heavy": TauEntry(30.0, 8, 2.0),
        "cpu-heavy": TauEntry(9.0, 0, 0.0),  # set by hand
    }
    for field, entry in snapshot.items():
        whole.set(field, entry.tau)
    store.update("memory-heavy", NAME, 25.0)
    for actual_s in (0.7, 0.3, 0.9):
        store.update(LIGHT, NAME, actual_s)
        whole.update(LIGHT, NAME, actual_s)
    store.set("mixed", 2.0)  # by hand since the wipe: it stays
    since, left = store.entries(), (1 - settings.learning_rate) ** 3
    store.restore(snapshot, "g")
    store.restore(snapshot, "h")  # which is not wiped
    entries = store.entries()
    for field in (LIGHT, FIELD):
        assert entries[field].tau == pytest.approx(whole.entries()[field].tau, rel=1e-12)
        assert entries[field].count == snapshot[field].count + 3
        assert entries[field].deviation == pytest.approx(
            (1 - left) * since[field].deviation + left * snapshot[field].deviation
        )
    assert entries["mixed"] == TauEntry(2.0, 3, 1.0)
    assert entries["gpu-training"] == snapshot["gpu-training"]
    assert entries["memory-heavy"].tau == pytest.approx(0.2 * 25 + 0.8 * 30)
    assert entries["memory-heavy"].deviation == pytest.approx(0.2 * 5 + 0.8 * 2)
    assert entries["cpu-heavy"] == snapshot["cpu-heavy"]
    store.update("cpu-heavy", NAME, 5.0)
    assert store.entries()["cpu-heavy"] == TauEntry(0.2 * 5 + 0.8 * 9, 1, 4.0)
    link.close()


def test_a_snapshot_is_of_one_redis(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, ledger = Link(settings), MemoryLedger()
    store, snapshots = RedisTauStore(link, settings), Snapshots(link, settings, ledger)
    store.set(LIGHT, 2.0)
    assert not snapshots.save(), "nobody has looked yet whether there is one to restore"
    snapshots.restore()
    assert snapshots.save()
    assert not snapshots.save(), "nothing is new"
    store.set(LIGHT, 3.0)
    assert Snapshots(link, settings, MemoryLedger()).save(lease_s=60.0)
    assert not snapshots.save(lease_s=60.0), "another has done it"
    assert 30_000 < link.call(pack("PTTL", settings.keys.snapshot))[0] <= 60_000
    read = RedisTauStore.entries

    def wiped_and_restored(store: RedisTauStore) -> Any:
        entries = read(store)
        link.call(pack("DEL", settings.keys.generation))
        Snapshots(link, settings, MemoryLedger()).restore()
        return entries

    monkeypatch.setattr(RedisTauStore, "entries", wiped_and_restored)
    assert not snapshots.save()
    assert ledger.load_taus()[LIGHT].tau == 2.0
    link.close()
