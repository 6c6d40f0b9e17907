"""The scripts that read a queue's parts, lists and sorted sets, against a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from rts.predictions.queue_parts import parts_of
from rts.predictions.queue_reader import FIND_TASK
from rts.predictions.survey import survey
from rts.scheduling.layout import TURNS, keys_of, unacked_keys
from rts.scheduling.scripts import read_messages
from tests.order import NAME, connect

#: A message's text, with a body of so many bytes and after that some more.
BODY, REST = '{"body": "%s", ', '"headers": {"id": "%s", "root_id": "%s"}}'


def text(number: int, body: int = 10) -> str:
    return BODY % ("x" * body) + REST % (f"t-{number}", f"t-{number - 1}")


@pytest.fixture(params=["list", "set"])
def put(raw: redis.Redis, request: pytest.FixtureRequest) -> Any:
    """Put texts into the key ``part``, the first to be consumed first."""

    def put(texts: Sequence[str]) -> None:
        raw.delete("part")
        if request.param == "list":
            raw.lpush("part", *texts)
        else:
            raw.zadd("part", {each: number for number, each in enumerate(texts)})

    return put


def test_ranges_are_read_without_bodies(url: str, raw: redis.Redis, put: Any) -> None:
    texts = [text(number) for number in range(30)]
    # Not as kombu writes it: what may be more than the body stays.
    texts[7], texts[8] = '{"body": "a\\"b"}', f'{{"pad": "{"x" * 600}", "body": "y"}}'
    texts[9] = text(9, 0)
    put(texts)
    raw.hset("taken", mapping={"1": text(1), "3": "odd"})
    shown = [each.replace("x" * 10, "") if len(each) < 200 else each for each in texts]
    with redis.Redis.from_url(url) as client:
        for first, last in ((0, 0), (0, 29), (3, 20), (28, 99), (30, 40), (5, 4)):
            ranges = [("part", first, last), ("part", 0, 1)]
            found, tags = read_messages(client, ranges, "taken", [b"1", b"2", b"3"])
            assert [each.decode() for each in found[0]] == shown[first : last + 1]
            assert [each.decode() for each in found[1]] == shown[:2]
            assert tags == [shown[1].encode(), None, b"odd"]
        assert read_messages(client, [("part", 0, 0)])[1] == []
        # Of large ones few are read at a time.
        put([text(number, 100_000) for number in range(30)])
        ((some,), _) = read_messages(client, [("part", 0, 29)], most_bytes=1_000_000)
        assert 10 <= len(some) <= 11


def test_a_task_is_found_by_its_own_id(url: str, raw: redis.Redis, put: Any) -> None:
    put([*(text(number) for number in range(9)), '{"id":"té"}', r'{"id": "t\u00e8"}'])

    def find(task_id: str, first: int = 0, last: int = 99) -> Any:
        ids = [json.dumps(task_id, ensure_ascii=escaped) for escaped in (True, False)]
        found = FIND_TASK.run(raw, ["part"], [first, last, *ids])
        return found and found[0]

    assert [find(f"t-{number}") for number in range(9)] == list(range(9))
    assert (find("té"), find("tè"), find("t-9"), find("t-")) == (9, 10, [], [])
    assert (find("t-4", 4, 4), find("t-4", 2, 6), find("t-4", 0, 3), find("t-4", 5)) == (
        4,
        4,
        [],
        [],
    )


def test_parts_are_measured(url: str, raw: redis.Redis) -> None:
    with connect(url) as connection:
        channel: Any = connection.default_channel
        unacked, index = unacked_keys(channel)
        parts = parts_of(channel, NAME, ordered=True)
        assert survey(channel, parts, queue=NAME)[:3] == (0, 0, [])
        raw.set(*keys_of(channel, NAME, TURNS), 7)
        for number in range(20):
            raw.zadd(index, {f"t{number}": number})
            raw.hset(unacked, f"t{number}", "x" * number)
        raw.zadd(parts[0].key, {"y" * (number + 1): number for number in range(100)})
        raw.rpush(parts[-1].key, "zz", "zzz")
        found = survey(channel, parts, queue=NAME, unacked=3, which="latest")
        assert (found.turns, found.unacked) == (7, 20)
        assert [each.at for each in found.taken] == [19.0, 18.0, 17.0]
        assert [(each.tag, each.bytes) for each in found.taken[:1]] == [(b"t19", 19)]
        assert (found.sizes[0], found.sizes[-1], sum(found.sizes)) == (100, 2, 102)
        assert (found.mean_bytes[0], found.mean_bytes[-1]) == (pytest.approx(50, abs=2), 3)
        assert sum(found.mean_bytes[1:-1]) == 0
        for most, ranks in ((1, [0]), (3, [0, 9, 19]), (99, list(range(20)))):
            some = survey(channel, unacked=most)
            assert [each.at for each in some.taken] == ranks
        raw.rpush(parts[-1].key, *["w" * 1_000_000] * 20)
        raw.config_resetstat()
        survey(channel, parts[-1:])
        assert raw.info("commandstats")["cmdstat_lindex"]["calls"] <= 4
