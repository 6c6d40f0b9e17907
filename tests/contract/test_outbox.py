"""The promises of the outbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from rts.ledger.outbox import MAX_TAKEN, RedisOutbox
from rts.link.link import Link
from rts.link.scripts import READ_OUTBOX, Script
from rts.records import Learned
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from tests.records import run

#: Seconds, small, since Redis counts them by its own clock.
TAKEOVER_S = 0.2


class Place:
    """An outbox to write to and to read from as several drains."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self.link = Link(settings)
        self._settings = settings
        self._client = client
        self._key = settings.keys.outbox

    def add(self, record: str, learned: str = "") -> None:
        fields = {"r": record, "l": learned} if learned else {"r": record}
        self._client.xadd(self._key, fields)

    def drain(self, name: str) -> RedisOutbox:
        return RedisOutbox(self.link, self._settings, name, takeover_s=TAKEOVER_S)

    def left(self) -> int:
        return int(self._client.xlen(self._key))


@pytest.fixture
def place(settings: Settings, redis_client: redis.Redis) -> Iterator[Place]:
    made = Place(settings, redis_client)
    yield made
    made.link.close()


def until_read(outbox: RedisOutbox, n: int) -> list[str]:
    """Read until *n* entries came; they come when they are taken over."""
    found: list[str] = []

    def read() -> bool:
        entries = outbox.read(100).entries
        found.extend(e.execution.task_id for e in entries)
        outbox.done(e.entry_id for e in entries)
        return len(found) >= n

    wait_until(read, timeout=20)
    return found


def test_entries_come_once_in_order_and_go_when_done(place: Place) -> None:
    drain = place.drain("a")
    assert list(drain.read(10).entries) == []
    for i in range(5):
        place.add(run(str(i)).to_json())
    first = drain.read(3).entries
    assert [e.execution for e in first] == [run(str(i)) for i in range(3)]
    second = drain.read(3).entries
    assert [e.execution.task_id for e in second] == ["3", "4"]
    assert place.left() == 5
    drain.done(e.entry_id for e in first)
    drain.done([])
    assert place.left() == 2
    drain.done(e.entry_id for e in (*first, *second))
    assert place.left() == 0


def test_two_drains_share_the_work(place: Place) -> None:
    a, b = place.drain("a"), place.drain("b")
    for i in range(6):
        place.add(run(str(i)).to_json())
    ids = [e.execution.task_id for d in (a, b, a) for e in d.read(2).entries]
    assert ids == [str(i) for i in range(6)]


def test_what_a_dead_drain_left_is_taken_over(place: Place) -> None:
    for i in range(3):
        place.add(run(str(i)).to_json())
    dead = place.drain("dead")
    assert len(dead.read(3).entries) == 3
    place.add(run("3").to_json())
    assert sorted(until_read(place.drain("b"), 4)) == ["0", "1", "2", "3"]


def test_entries_that_were_not_done_are_redelivered_to_the_same_drain(place: Place) -> None:
    """Its answer may never have arrived."""
    place.add(run("0").to_json())
    drain = place.drain("a")
    assert len(drain.read(1).entries) == 1
    assert until_read(drain, 1) == ["0"]


def test_what_was_learned_is_read(place: Place) -> None:
    place.add(run("0").to_json(), "5 4.25 6 -")
    place.add(run("1").to_json(), "5 4.25 6 6.5")
    place.add(run("2").to_json(), "- - - -")
    assert [e.learned for e in place.drain("a").read(10).entries] == [
        Learned(5.0, 4.25, 6.0, None),
        Learned(5.0, 4.25, 6.0, 6.5),
        None,
    ]


@pytest.mark.parametrize(
    ("record", "learned"),
    [
        ("", ""),
        ("not json", ""),
        ("{}", ""),
        ("[]", ""),
        ('["too", "short"]', ""),
        ("[" * 100_000, ""),
        ('["a\nb\n\n\n", 1]\n', ""),
        (run("0").to_json(), "a b c d"),
        ('["\udcff"]', ""),
        (run("0").to_json() + "x", ""),
        ('"a text with as many letters as a record has fields"', ""),
    ],
    ids=[
        "empty",
        "text",
        "dict",
        "list",
        "short",
        "deep",
        "lines",
        "lesson",
        "surrogate",
        "more",
        "letters",
    ],
)
def test_unreadable_entries_are_reported_and_stop_nothing(
    place: Place, record: str, learned: str
) -> None:
    record = record.encode("utf-8", "replace").decode()
    place.add(run("before").to_json())
    place.add(record, learned)
    place.add(run("after").to_json())
    drain = place.drain("a")
    batch = drain.read(10)
    assert [e.execution.task_id for e in batch.entries] == ["before", "after"]
    ((entry_id, raw),) = batch.unreadable
    assert raw.split() == record.split()
    drain.done([entry_id, *(e.entry_id for e in batch.entries)])
    assert place.left() == 0


def test_line_ends_between_the_parts_of_a_record_do_not_matter(place: Place) -> None:
    place.add(run("0").to_json().replace(",", ",\n"), "1 2 3 4\n")
    (entry,) = place.drain("a").read(1).entries
    assert entry.execution == run("0")
    assert entry.learned == Learned(1.0, 2.0, 3.0, 4.0)


def test_fields_of_another_version_do_not_matter(place: Place) -> None:
    text = run("0").to_json()
    place.add(text[:-1] + ',"red"]')  # newer: a field more
    place.add(text[: text.rindex(",")] + "]")  # older: a field less
    assert [e.execution for e in place.drain("a").read(9).entries] == [run("0")] * 2


def test_more_than_one_script_may_hand_out(place: Place) -> None:
    for i in range(MAX_TAKEN + 10):
        place.add(run(str(i)).to_json())
    drain = place.drain("a")
    assert len(drain.read(MAX_TAKEN + 5).entries) == MAX_TAKEN + 5
    assert len(drain.read(1000).entries) == 5


def test_a_wiped_server_gets_its_group_back(
    settings: Settings, redis_client: redis.Redis
) -> None:
    key = settings.keys.outbox
    outbox = RedisOutbox(Link(settings), settings, "a")
    redis_client.xgroup_create(key, "of-somebody-else", mkstream=True)
    assert outbox.read(1).entries == []
    redis_client.delete(key)
    redis_client.xadd(key, {"r": run("0").to_json()})
    (entry,) = outbox.read(1).entries
    redis_client.delete(key)
    outbox.done([entry.entry_id])
    assert outbox.read(1).entries == []


def test_entries_that_were_trimmed_do_not_stay_pending(
    settings: Settings, redis_client: redis.Redis
) -> None:
    key = settings.keys.outbox
    for i in range(3):
        redis_client.xadd(key, {"r": run(str(i)).to_json()})
    link = Link(settings)
    assert len(RedisOutbox(link, settings, "dead").read(3).entries) == 3
    redis_client.xtrim(key, maxlen=1, approximate=False)
    heir = RedisOutbox(link, settings, "heir", takeover_s=0.0)
    (entry,) = heir.read(3).entries
    assert entry.execution.task_id == "2"
    assert redis_client.xpending(key, "rts")["pending"] == 1


def test_drains_that_are_gone_leave_the_group(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ten_minutes, at_once = b"GONE_MS = 600000", b"GONE_MS = 0"
    assert ten_minutes in READ_OUTBOX.text
    script = Script(READ_OUTBOX.text.replace(ten_minutes, at_once))
    monkeypatch.setattr("rts.ledger.outbox.READ_OUTBOX", script)
    keys, link = settings.keys, Link(settings)
    for name in ("in the middle", "gone"):
        redis_client.xadd(keys.outbox, {"r": run("0").to_json()})
        drain = RedisOutbox(link, settings, name)
        (entry,) = drain.read(1).entries
    drain.done([entry.entry_id])
    heir = RedisOutbox(link, settings, "heir")

    def left() -> bool:
        redis_client.delete(keys.takeover)  # it is time for a look
        heir.read(1)
        consumers = redis_client.xinfo_consumers(keys.outbox, "rts")
        return {each["name"] for each in consumers} == {"in the middle", "heir"}

    wait_until(left, message="only the one without pending entries is removed")
    assert redis_client.xpending(keys.outbox, "rts")["pending"] == 1
    link.close()


def test_a_fleet_of_drains_lets_records_gather(
    settings: Settings, redis_client: redis.Redis
) -> None:
    link = Link(settings)
    drains = [
        RedisOutbox(link, settings, f"drain{n}", takeover_s=60.0, gather_s=60.0)
        for n in range(20)
    ]

    def add(number: int) -> None:
        with redis_client.pipeline(transaction=False) as pipe:
            for _ in range(number):
                pipe.xadd(settings.keys.outbox, {"r": run("0").to_json()})
            pipe.execute()

    def taken() -> list[int]:
        return [len(drain.read(1000).entries) for drain in drains]

    assert taken() == [0] * 20
    add(1)
    assert len(drains[3].read(1000).entries) == 1, "the first one of a silence does not wait"
    redis_client.delete(settings.keys.taking)
    add(1)
    assert taken() == [1] + [0] * 19
    for _ in range(3):
        add(10)
        assert drains[1].read(1000).entries == []
        assert taken() == [10] + [0] * 19, "its turn lasts"
    redis_client.delete(settings.keys.taking)
    add(700)
    assert taken()[:2] == [700, 0]
    add(1500)
    assert sum(taken()) == 1500, "a backlog is for all"
    add(5)
    drains[7].hurry()
    assert len(drains[7].read(1000).entries) == 5
    redis_client.delete(settings.keys.outbox)


def test_turns_from_before_the_servers_clock_was_set_back_keep_no_drain_waiting(
    settings: Settings, redis_client: redis.Redis
) -> None:
    link, keys = Link(settings), settings.keys
    gone = RedisOutbox(link, settings, "gone", takeover_s=60.0, gather_s=0.4)
    heir = RedisOutbox(link, settings, "heir", takeover_s=0.001, gather_s=0.4)
    taken = redis_client.xadd(keys.outbox, {"r": run("0").to_json()})
    assert len(gone.read(1).entries) == 1
    new = redis_client.xadd(keys.outbox, {"r": run("1").to_json()})
    for turn in (keys.taking, keys.takeover):
        redis_client.set(turn, "gone", px=3_600_000)
    left = {taken, new}
    while left:  # the new one comes first if the other was taken less than a millisecond ago
        found = [entry.entry_id for entry in wait_until(lambda: heir.read(2).entries)]
        assert left.issuperset(found)
        left.difference_update(found)
        heir.done(found)
    link.close()


def test_one_drain_of_a_fleet_looks_for_what_dead_ones_left() -> None:
    with RedisServer() as own, redis.Redis(port=own.port) as client:
        settings = Settings(redis_url=own.url, timeout=5.0)
        link = Link(settings)
        for n in range(20):
            RedisOutbox(link, settings, f"d{n}", takeover_s=60.0, gather_s=0.4).read(1000)
        assert client.info("commandstats")["cmdstat_xpending"]["calls"] == 1
        # Where memory is used up, nobody can note that it looks, or takes: records go on.
        client.xadd(settings.keys.outbox, {"r": run("0").to_json()})
        client.delete(settings.keys.taking, settings.keys.takeover)
        client.config_set("maxmemory", 1)
        drain = RedisOutbox(link, settings, "d", takeover_s=60.0, gather_s=0.4)
        assert len(drain.read(1000).entries) == 1

        def asked() -> int:
            stats = client.info("commandstats").items()
            return sum(of["calls"] for name, of in stats if name.startswith("cmdstat_xinfo"))

        before = asked()
        drain.read(500)
        assert asked() - before == 1, "not for the whole fleet's consumers each time"
        link.close()
