"""The stream of events on a real Redis, as its readers see it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from rts.ledger.events import Event, since
from rts.link.link import Link
from rts.settings import Settings

EVENT = Event("overdue", "t1", "proj.add", "mixed", "q", 1.0, 2.0, 0.5, 2.5, "PENDING", "w@h")


@pytest.fixture
def settings(rts_redis_url: str, rts_key_prefix: str) -> Settings:
    return Settings(redis_url=rts_redis_url, key_prefix=rts_key_prefix)


def test_events_come_back_in_order_and_from_where_one_was(
    settings: Settings, redis_client: redis.Redis
) -> None:
    link, keys = Link(settings), settings.keys
    assert since(link, keys, "0-0") == []
    told = [replace(EVENT, task_id=f"t{n}", worker="w\ud800\n") for n in range(7)]
    for event in told:
        redis_client.xadd(keys.events, {"e": event.to_json()})
    found = since(link, keys, "0-0", 3)
    assert [event for _, event in found] == told[:3]
    rest = since(link, keys, found[-1][0])
    assert [event for _, event in rest] == told[3:]
    assert since(link, keys, rest[-1][0]) == []


def test_what_is_no_event_is_passed_over(settings: Settings, redis_client: redis.Redis) -> None:
    link, keys = Link(settings), settings.keys
    bad = ["", "[]", "{}", "7", '{"kind": 1}', "\udcff".encode("utf-8", "surrogateescape")]
    for text in bad:
        redis_client.xadd(keys.events, {"e": text})
    redis_client.xadd(keys.events, {"other": "x"})
    redis_client.xadd(keys.events, {"e": EVENT.to_json()[:-1] + ',"new_field":1}'})
    assert [event for _, event in since(link, keys, "0-0", 2)] == [EVENT]
