"""finish.lua on a real Redis: what it learns, appends to the outbox, and refuses."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
import redis

from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.records import Execution, Learned
from rts.settings import Settings
from rts.tau.finish import FinishCall, FinishEntry, finish_entry, read_answer
from tests.records import run, success


def apply(
    settings: Settings, producer: str | None, *entries: FinishEntry
) -> list[Learned | None]:
    (answer,) = Link(settings).call(FinishCall(settings).pack(producer, entries))
    return list(read_answer(answer))


def test_each_number_of_a_writer_is_applied_once(
    settings: Settings, redis_client: redis.Redis
) -> None:
    entries = [finish_entry(success(str(n)), n) for n in (1, 2, 3)]
    learned = apply(settings, "w", *entries[:2])
    assert None not in learned
    noted = [fields["l"].encode() for _, fields in redis_client.xrange(settings.keys.outbox)]
    assert list(read_answer(b"\n".join(noted))) == learned
    assert apply(settings, "w", *entries)[:2] == [None, None]
    assert apply(settings, "other", entries[0])[0] is not None
    assert redis_client.hget(settings.keys.count, "cpu-light") == "4"
    assert redis_client.xlen(settings.keys.outbox) == 4
    assert redis_client.ttl(settings.keys.seq + "w") > 86400


def test_what_comes_with_records_is_counted_once(
    settings: Settings, redis_client: redis.Redis
) -> None:
    call = FinishCall(settings).pack("w", [finish_entry(success("a"), 1)], {"x": 2, "y": 1})
    Link(settings).call(call, call)
    assert redis_client.hgetall(settings.keys.counters) == {"x": "2", "y": "1"}


def test_an_entry_without_a_writer_leaves_no_key(
    settings: Settings, redis_client: redis.Redis
) -> None:
    apply(settings, None, finish_entry(success("a"), 1))
    apply(settings, None, finish_entry(success("b"), 1))
    assert redis_client.hget(settings.keys.count, "cpu-light") == "2"
    assert not list(redis_client.scan_iter(settings.keys.seq + "*"))


def test_long_names_of_unknown_tasks_stay_in_no_memory() -> None:
    """As a stranger's message may have: a companion would grow by gigabytes."""
    call = FinishCall(Settings())
    tracemalloc.start()
    for i in range(50):
        unknown = run(str(i))._replace(name=f"{i}" * 50_000, state="FAILURE", ran=False)
        record = unknown.to_json().encode()
        call.pack("w", [finish_entry(Execution.from_json(record), 1, record)])
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 1_000_000


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "FAILURE"},
        {"state": "RETRY"},
        {"state": "IGNORED"},
        {"runtime_s": None},
        {"runtime_s": float("nan")},
        {"runtime_s": float("inf")},
        {"runtime_s": -1.0},
    ],
)
def test_a_run_to_learn_nothing_from_goes_to_the_outbox_only(
    settings: Settings, redis_client: redis.Redis, changes: dict[str, object]
) -> None:
    assert apply(settings, "w", finish_entry(success("a")._replace(**changes), 1)) == [None]
    ((_, fields),) = redis_client.xrange(settings.keys.outbox)
    assert fields.keys() == {"r"}
    assert not redis_client.exists(settings.keys.tau, settings.keys.count)


def test_an_unknown_type_learns_as_mixed(settings: Settings, redis_client: redis.Redis) -> None:
    apply(settings, "w", finish_entry(success("a")._replace(task_type="of-another-version"), 1))
    assert set(redis_client.hkeys(settings.keys.tau)) == {"mixed", "mixed/proj.add"}


def test_one_call_makes_no_more_taus_than_there_may_be(
    settings: Settings, redis_client: redis.Redis
) -> None:
    entries = [finish_entry(success("a")._replace(name=f"n{n}"), n) for n in range(1, 6)]
    learned = apply(replace(settings, max_types=3), "w", *entries)
    assert [each and each.name_tau_after is not None for each in learned] == [
        *[True] * 2,
        *[False] * 3,
    ]
    assert redis_client.hlen(settings.keys.tau) == 3
    assert redis_client.hget(settings.keys.counters, "tau_keys_refused") == "3"


def test_a_type_finds_room_beside_names_of_the_same_call(
    settings: Settings, redis_client: redis.Redis
) -> None:
    entries = [finish_entry(success("a")._replace(name=f"n{n}"), n) for n in range(1, 3)]
    entries.append(finish_entry(success("b")._replace(task_type="mixed"), 3))
    *_, learned = apply(replace(settings, max_types=3), "w", *entries)
    assert learned is not None
    assert learned.tau_after is not None
    keys = settings.keys
    fields = set(redis_client.hkeys(keys.tau))
    assert len(fields) == 3
    assert fields > {"cpu-light", "mixed"}
    assert set(redis_client.hkeys(keys.count)) == fields
    assert set(redis_client.hkeys(keys.deviation)) == fields
    # Nor does anything stay of a name that a type displaces later.
    (name,) = fields - {"cpu-light", "mixed"}
    assert redis_client.exists(keys.sketch + name)
    another = success("c")._replace(task_type="cpu-heavy")
    apply(replace(settings, max_types=3), "w", finish_entry(another, 4))
    for key in (keys.tau, keys.count, keys.deviation):
        assert set(redis_client.hkeys(key)) == {"cpu-light", "mixed", "cpu-heavy"}
    assert not redis_client.exists(keys.sketch + name)


def test_a_type_finds_no_room_where_there_are_only_types(
    settings: Settings, redis_client: redis.Redis
) -> None:
    kinds = ("cpu-light", "mixed")
    entries = [
        finish_entry(success(kind)._replace(task_type=kind), n)
        for n, kind in enumerate(kinds, 1)
    ]
    assert apply(replace(settings, max_types=1), "w", *entries)[1] is None
    assert redis_client.hkeys(settings.keys.tau) == ["cpu-light"]
    assert redis_client.xlen(settings.keys.outbox) == 2


def test_the_oldest_records_are_dropped_when_the_outbox_is_full(
    settings: Settings, redis_client: redis.Redis
) -> None:
    small = replace(settings, outbox_max=10)
    for n in range(0, 25, 5):
        apply(small, "w", *(finish_entry(run(str(i)), i + 1) for i in range(n, n + 5)))
    entries = redis_client.xrange(settings.keys.outbox)
    assert [fields["r"] for _, fields in entries] == [
        run(str(n)).to_json() for n in range(15, 25)
    ]
    assert redis_client.hget(settings.keys.counters, "outbox_dropped") == "15"


@pytest.mark.parametrize(
    "key",
    [
        *("count", "deviation", "sketch", "ratio", "counters"),
        *("open", "overdue", "open_info", "open_counts", "closed"),
    ],
)
def test_a_side_key_of_another_type_costs_no_record(
    settings: Settings, redis_client: redis.Redis, key: str
) -> None:
    redis_client.zadd(settings.keys.open, {"1": 2e9})
    redis_client.hset(settings.keys.open_info, "1", "q\n[]")
    suffix = "cpu-light" if key in ("sketch", "ratio") else ""
    redis_client.set(getattr(settings.keys, key) + suffix, "mine")
    redis_client.hset(settings.keys.tau, "mixed/for.whose.place", 1.0)
    small = replace(settings, outbox_max=2, max_types=1)
    entries = [finish_entry(success(str(n))._replace(tau=2.0), n) for n in (1, 2, 3)]
    (answer,) = Link(small).call(FinishCall(small).pack("w", entries, {"refused": 1}))
    learned = list(read_answer(answer))
    assert [each and each.name_tau_after for each in learned] == [None] * 3
    assert learned[0].tau_after == pytest.approx(4.2)
    kept = [fields["r"] for _, fields in redis_client.xrange(settings.keys.outbox)]
    assert kept == [entry.record.decode() for entry in entries[1:]]


def test_hostile_names_do_no_harm(settings: Settings, redis_client: redis.Redis) -> None:
    for n, name in enumerate(("a\x00b", "a.b/c d", "$set", "ü" * 100, "\udcff"), start=1):
        apply(settings, "w", finish_entry(success(str(n))._replace(name=name), n))
    assert redis_client.hlen(settings.keys.tau) == 6
    assert redis_client.xlen(settings.keys.outbox) == 5


@pytest.mark.parametrize("key", ["tau", "outbox"])
def test_a_key_of_the_wrong_type_is_named(
    settings: Settings, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    name = getattr(settings.keys, key)
    redis_client.set(name, "mine")
    with pytest.raises(StoreUnavailable):
        apply(settings, "w", finish_entry(success("a", 1.0), 1, b"{}"))
    assert f"wrong kind of value: {name}" in caplog.text
    assert redis_client.keys(f"{settings.key_prefix}*") == [name]
