"""What INFO tells of a Redis that refuses writes."""

from __future__ import annotations

import pytest

from rts.views.redis_facts import refusal_of, version_of

MIB = 2**20


@pytest.mark.parametrize(
    ("limit", "used", "uncounted", "full"),
    [
        (8 * MIB, 8 * MIB, 0, False),
        (8 * MIB, 8 * MIB + 1, 0, True),
        # Buffers for replicas, which Redis leaves out when it compares.
        (8 * MIB, 9 * MIB, MIB, False),
        (8 * MIB, 9 * MIB + 1, MIB, True),
        (0, 9 * MIB, 0, False),
    ],
)
def test_a_redis_is_full_past_its_limit(
    limit: int, used: int, uncounted: int, full: bool
) -> None:
    facts = {"maxmemory": str(limit), "used_memory": str(used)}
    facts["mem_not_counted_for_evict"] = str(uncounted)
    told = refusal_of(facts, "rts:")
    assert told == ("its memory is full (maxmemory 8 MiB). Give it more" if full else None)


@pytest.mark.parametrize(
    ("policy", "keys", "full"),
    [
        ("noeviction", "keys=9,expires=3,avg_ttl=1", True),
        ("allkeys-lru", "keys=9,expires=0,avg_ttl=0", False),
        ("volatile-lru", "keys=9,expires=3,avg_ttl=1", False),
        ("volatile-lru", "keys=9,expires=0,avg_ttl=0", True),
    ],
)
def test_a_redis_that_can_evict_something_is_not_full(
    policy: str, keys: str, full: bool
) -> None:
    facts = {"maxmemory": str(MIB), "used_memory": str(2 * MIB), "maxmemory_policy": policy}
    assert (refusal_of({**facts, "db0": keys}, "rts:") is not None) == full


def test_a_replica_that_can_be_written_to_refuses_nothing() -> None:
    replica = {"role": "slave", "slave_read_only": "1"}
    assert "read-only replica" in str(refusal_of(replica, "rts:"))
    assert refusal_of({**replica, "slave_read_only": "0"}, "rts:") is None
    assert refusal_of({**replica, "role": "master"}, "rts:") is None


@pytest.mark.parametrize(
    ("prefix", "one_slot"), [("rts:", False), ("{rts}:", True), ("a{b}c", True), ("{}:", False)]
)
@pytest.mark.parametrize("field", ["redis_mode", "server_mode"])  # the latter: Valkey 8
def test_a_cluster_keeps_together_what_has_a_hash_tag(
    field: str, prefix: str, one_slot: bool
) -> None:
    refusal = refusal_of({field: "cluster"}, prefix)
    assert (refusal is None) == one_slot


def test_what_info_does_not_tell_is_no_refusal() -> None:
    assert refusal_of({}, "rts:") is None
    assert refusal_of({"maxmemory": "lots", "used_memory": "?"}, "rts:") is None


def test_valkey_is_called_by_its_own_version() -> None:
    facts = {"redis_version": "7.2.4"}
    assert version_of(facts) == "7.2.4"
    assert version_of({**facts, "valkey_version": "8.0.1"}) == "Valkey 8.0.1"
    assert version_of({}) is None
