"""What a worker tells of itself is read back, and whatever else stands there does no harm."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.unfinished.heartbeat import (
    FIGURES,
    LOST_AFTER_S,
    MAX_SLOTS,
    Heartbeat,
    read_heartbeats,
)

INSTANCE = "w@h/12-ab12cd34"
BEAT = Heartbeat(
    instance=INSTANCE,
    seen_at=1000.5,
    worker="w@h",
    load={"load": 0.5, "cpu": 1.25, "memory": 0.0, "age_s": 0.1, "gpus": [{"index": 0}]},
    host="h",
    pid=12,
    slots=4,
    queues=("mail", "web"),
    ahead=8.0,
    received="AAAAAAEAAAA=",
    ordered=True,
)
#: What one of an older version is known by.
UNTOLD = Heartbeat(INSTANCE, 1000.5, "w@h", {})


def read(told: Any) -> Heartbeat | None:
    return Heartbeat.from_json(INSTANCE, told if isinstance(told, str) else json.dumps(told))


def test_a_heartbeat_is_read_back() -> None:
    for beat in (BEAT, BEAT._replace(ahead=math.inf), BEAT._replace(queues=()), UNTOLD):
        assert read(beat.to_json()) == beat
    told = json.loads(BEAT._replace(ahead=math.inf).to_json())
    assert (told["concurrency"], told["ahead"]) == (4, None)
    assert "instance" not in told
    assert BEAT.marks() == {0, 1}


def test_heartbeats_of_other_versions_are_read_as_far_as_they_are_known() -> None:
    assert read({"seen_at": 1000.5}) == UNTOLD
    assert read({"seen_at": 1000.5, "worker": "w@h", "load": None, "queues": None}) == UNTOLD
    assert read({**json.loads(BEAT.to_json()), "colour": "red"}) == BEAT
    newer = read({"seen_at": 1000.5, "load": {"cpu": 0.5, "disk": {"a": 1}}})
    assert newer.load == {"cpu": 0.5, "disk": {"a": 1}}
    named = Heartbeat.from_json("stranger", '{"seen_at": 1}')
    assert named.worker == "stranger"


@pytest.mark.parametrize(
    "told",
    [
        *("", "no JSON", "[]", "null", "7", "{}", "[" * 100_000, '{"seen_at": NaN}'),
        *('{"seen_at": Infinity}', f'{{"seen_at": 1{400 * "0"}}}', '{"seen_at": null}'),
        *('{"seen_at": true}', '{"seen_at": "now"}', '{"seen_at": [1]}'),
    ],
    ids=range(14),
)
def test_invalid_heartbeats_are_ignored(told: str) -> None:
    assert read(told) is None


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("worker", [None, 7, "", [], {}]),
        ("host", [None, 7, ["h"], {"a": 1}]),
        ("pid", [None, "x", -1, [], True, math.nan, math.inf]),
        ("concurrency", [None, "x", -1, [], True, math.nan, math.inf, MAX_SLOTS + 1, 10**400]),
        ("queues", [None, "celery", 7, {"a": 1}]),
        ("ahead", [0, "x", -1, [], True, math.nan]),
        ("received", [None, 7, [1], {}]),
        ("ordered", [None, 1, "true", []]),
        ("load", [None, 7, "x", [], {"load": "x", "cpu": -1, "memory": math.nan, "gpu": []}]),
    ],
)
def test_an_invalid_field_counts_as_missing(field: str, values: list[Any]) -> None:
    for value in values:
        assert read({"seen_at": 1000.5, field: value}) == UNTOLD, value


def test_numbers_as_other_languages_write_them() -> None:
    beat = read({"seen_at": "1000.5", "concurrency": "4", "load": {"cpu": "0.5", "gpu": 1}})
    assert beat == UNTOLD._replace(slots=4, load={"cpu": 0.5, "gpu": 1.0})


def test_names_can_be_encoded() -> None:
    odd = "a\udcff"
    beat = read({"seen_at": 1000.5, "worker": odd, "host": odd, "queues": [odd, 7]})
    assert beat == UNTOLD._replace(worker="a?", host="a?", queues=("a?",))


@pytest.mark.parametrize("received", ["no marks", "AAAA", "é"])
def test_invalid_marks_are_unknown(received: str) -> None:
    assert BEAT._replace(received=received).marks() is None
    assert BEAT._replace(received=None).marks() is None
    assert BEAT._replace(received="").marks() == frozenset()


def test_it_is_silent_after_a_while() -> None:
    lives, gone = 1000.5 + LOST_AFTER_S, 1001.0 + LOST_AFTER_S
    assert [BEAT.is_silent(now) for now in (0.0, 1000.5, lives, gone)] == [False] * 3 + [True]
    assert [BEAT.age_s(now) for now in (0.0, 1000.5, 1001.0)] == [0.0, 0.0, 0.5]


def test_it_consumes_its_queues_or_any() -> None:
    assert [BEAT.takes_from(queue) for queue in ("web", "video")] == [True, False]
    assert UNTOLD.takes_from("video")
    assert not BEAT._replace(queues=()).takes_from("web")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = [*json.loads(BEAT.to_json())]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.floats(0, 1e10))
def test_arbitrary_values_are_survived(told: dict[str, Any], seen_at: float) -> None:
    text = json.dumps({**told, "seen_at": seen_at}).encode()
    (beat,) = read_heartbeats([INSTANCE.encode(), text])
    assert beat.slots is None or 0 <= beat.slots <= MAX_SLOTS
    assert beat.ahead >= 0
    assert all(beat.load[name] >= 0 for name in FIGURES if name in beat.load)
    assert "".join([beat.worker, beat.host or "", *(beat.queues or ())]).encode()  # utf-8
    assert beat.marks() is None or isinstance(beat.marks(), frozenset)
    again = Heartbeat.from_json(INSTANCE, beat.to_json())
    assert again.to_json() == beat.to_json()
