"""The drain's rules, between a real outbox and a ledger that fails as it is told to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pytest
import redis

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.drain import BATCH, MAX_BACKOFF_S, MIN_BACKOFF_S, Drain
from rts.ledger.outbox import RedisOutbox
from rts.ledger.refused import MANY
from rts.link.link import Link
from rts.records import Execution, OutboxEntry
from rts.settings import Settings
from tests.clock import Clock
from tests.memory_ledger import MemoryLedger
from tests.records import run, success


class FaultyLedger(MemoryLedger):
    """Is away, or refuses records whose task id begins with *poison*.

    A driver's refusal of a single document cannot be had from a twin in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.poison = "poison"
        self.writes = 0

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        if self.away:
            raise StoreUnavailable("MongoDB does not answer (on purpose)")
        self.writes += 1
        if any(e.execution.task_id.startswith(self.poison) for e in entries):
            raise ValueError("cannot encode this")
        return super().write(entries)

    def refuse(self, raw: object, reason: str = "") -> None:
        if self.away:
            raise StoreUnavailable("MongoDB does not answer (on purpose)")
        super().refuse(raw, reason)


class Stream:
    """The stream of the outbox, in Redis."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client = client
        self._key = key

    def add(self, *records: str) -> list[str]:
        """Append records; return the ids of their entries."""
        with self._client.pipeline(transaction=False) as pipe:
            for record in records:
                pipe.xadd(self._key, {"r": record})
            ids: list[str] = pipe.execute()
        return ids

    def __len__(self) -> int:
        return int(self._client.xlen(self._key))


class Deaf(RedisOutbox):
    """Acknowledges nothing while it is *away*."""

    away = False
    not_verdicts: Collection[str] = ()

    def done(
        self,
        entry_ids: Iterable[str],
        not_verdicts: Collection[str] = (),
        not_ends: Collection[str] = (),
    ) -> None:
        if self.away:
            raise StoreUnavailable("Redis does not answer (on purpose)")
        self.not_verdicts = not_verdicts
        super().done(entry_ids, not_verdicts, not_ends)


@pytest.fixture
def outbox(rts_redis_url: str, rts_key_prefix: str) -> Iterator[Deaf]:
    settings = Settings(redis_url=rts_redis_url, key_prefix=rts_key_prefix, timeout=5.0)
    link = Link(settings)
    yield Deaf(link, settings, "a")
    link.close()


@pytest.fixture
def stream(redis_client: redis.Redis, rts_key_prefix: str) -> Stream:
    return Stream(redis_client, Settings(key_prefix=rts_key_prefix).keys.outbox)


@pytest.fixture
def ledger() -> FaultyLedger:
    return FaultyLedger()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drain(outbox: Deaf, ledger: FaultyLedger, clock: Clock) -> Drain:
    return Drain(outbox, ledger, clock)


def fill(stream: Stream, *task_ids: str) -> None:
    stream.add(*(run(task_id).to_json() for task_id in task_ids))


def test_records_leave_the_outbox_when_they_are_in_the_ledger(
    stream: Stream, ledger: FaultyLedger, drain: Drain
) -> None:
    fill(stream, *(str(i) for i in range(BATCH + 5)))
    assert drain.step() == BATCH
    assert drain.step() == 5
    assert drain.step() == 0
    assert drain.moved == BATCH + 5 == len(ledger.tasks)
    assert not stream


def test_nothing_is_lost_and_retries_back_off_while_the_ledger_is_unavailable(
    stream: Stream,
    ledger: FaultyLedger,
    drain: Drain,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(stream, "a", "b")
    ledger.away = True
    tries = 0
    for _ in range(2000):  # of 0.1 s
        before = drain._retry_at
        assert drain.step() == 0
        tries += drain._retry_at != before
        clock.at += 0.1
    assert 200 / MAX_BACKOFF_S <= tries < 200 / MAX_BACKOFF_S + 6
    assert len(stream) == 2
    assert not drain.caught_up
    assert caplog.text.count("rts_mongo_url") == 1
    ledger.away = False
    clock.at += MAX_BACKOFF_S
    assert drain.step() == 2
    assert drain.caught_up
    assert sorted(ledger.tasks) == ["a", "b"]
    assert caplog.text.count("draining goes on") == 1
    ledger.away = True
    fill(stream, "c")
    assert drain.step() == 0
    assert drain._retry_at == clock.at + MIN_BACKOFF_S
    assert caplog.text.count("rts_mongo_url") == 2


def test_a_ledger_that_alternates_does_not_fill_the_log(
    stream: Stream,
    ledger: FaultyLedger,
    drain: Drain,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for i in range(360):  # an hour
        fill(stream, str(i))
        for ledger.away in (True, False):
            drain.step()
            clock.at += 5
    assert len(ledger.tasks) == 360
    told = caplog.text.count("rts_mongo_url")
    assert 2 <= told <= 10, "seldomer and seldomer"
    assert caplog.text.count("draining goes on") == told


@pytest.mark.parametrize("bad", [1, 3, 15])
def test_poison_is_set_aside_and_the_rest_is_stored(
    stream: Stream, ledger: FaultyLedger, drain: Drain, bad: int
) -> None:
    fill(stream, *(str(i) for i in range(100)), *(f"poison{i}" for i in range(bad)), "z")
    assert drain.step() == 101 + bad
    assert len(ledger.tasks) == 101
    refused = [Execution.from_json(str(raw)).task_id for raw, _ in ledger.refused]
    assert refused == [f"poison{i}" for i in range(bad)]
    assert "cannot encode this" in ledger.refused[0][1]
    assert not stream
    assert health.take_counts()["records_refused"] == bad


def test_no_record_is_lost_beside_many_that_are_set_aside(
    stream: Stream, ledger: FaultyLedger, drain: Drain
) -> None:
    good = [str(i) for i in range(2 * MANY)]
    fill(stream, *good, *(t for i in good for t in (f"poison{i}", f"beside{i}")))
    assert drain.step() == 3 * len(good)
    assert ledger.tasks.keys() == {*good, *(f"beside{i}" for i in good)}
    assert len(ledger.refused) == len(good)
    assert not stream


def test_records_behind_many_bad_ones_are_stored(
    stream: Stream, ledger: FaultyLedger, drain: Drain
) -> None:
    good = {str(i) for i in range(70)}
    fill(stream, *(f"poison{i}" for i in range(MANY + 10)), *good)
    assert drain.step() == MANY + 80
    assert ledger.tasks.keys() == good
    assert len(ledger.refused) == MANY + 10


def test_records_among_many_bad_ones_are_stored_in_the_end(
    stream: Stream, ledger: FaultyLedger, drain: Drain, clock: Clock
) -> None:
    good = {str(i) for i in range(BATCH // 4)}
    fill(stream, *(f"poison{i}" for i in range(BATCH // 4)))
    fill(stream, *(t for i in good for t in (f"poison-{i}", i, f"poison+{i}")))
    for _ in range(100):
        drain.step()
        clock.at += MAX_BACKOFF_S
    assert ledger.tasks.keys() == good
    assert len(ledger.refused) == 3 * len(good)
    assert not stream


def test_a_record_that_is_bad_and_alone_is_set_aside(
    stream: Stream, ledger: FaultyLedger, drain: Drain
) -> None:
    fill(stream, "poison")
    assert drain.step() == 1
    assert len(ledger.refused) == 1
    assert not stream


def test_an_entry_that_is_no_record_is_set_aside(
    stream: Stream, ledger: FaultyLedger, drain: Drain
) -> None:
    stream.add("rubbish")
    assert drain.step() == 1
    stream.add("rubbish")
    fill(stream, "a")
    assert drain.step() == 2
    assert list(ledger.tasks) == ["a"]
    assert [raw for raw, _ in ledger.refused] == ["rubbish", "rubbish"]
    assert not stream


def test_values_of_other_types_hold_up_no_record(stream: Stream, outbox: Deaf) -> None:
    """Anybody may write to the outbox."""
    ledger = MemoryLedger()
    drain = Drain(outbox, ledger)
    values: list[Any] = [[], {}, 1, "x"]
    for name in Execution._fields:
        for n, value in enumerate(values):
            record = success(f"{name}{n}")._replace(**{name: value})
            stream.add(record.to_json())
    assert drain.step() == len(values) * len(Execution._fields)
    assert not stream
    assert not ledger.refused


def test_a_record_counts_as_refused_once_it_is_set_aside(
    stream: Stream, ledger: FaultyLedger, drain: Drain, clock: Clock
) -> None:
    """Not again each time that an unavailable ledger is tried."""
    stream.add("rubbish")
    ledger.away = True
    for _ in range(3):
        assert drain.step() == 0
        clock.at += MAX_BACKOFF_S
    ledger.away = False
    assert drain.step() == 1
    assert health.take_counts() == {"records_refused": 1}


def test_a_ledger_that_refuses_everything_counts_as_unavailable(
    stream: Stream, ledger: FaultyLedger, drain: Drain, clock: Clock
) -> None:
    ledger.poison = ""
    fill(stream, *(str(i) for i in range(500)))
    assert drain.step() == 0
    assert ledger.writes < 3 * MANY
    assert len(stream) == 500
    assert not ledger.refused
    ledger.poison = "poison"
    clock.at += MAX_BACKOFF_S
    assert drain.step() == 500
    assert len(ledger.tasks) == 500


def test_an_acknowledgement_that_failed_is_repeated_but_not_what_came_before(
    stream: Stream, outbox: Deaf, ledger: FaultyLedger, drain: Drain
) -> None:
    fill(stream, "a", "poison")
    stream.add("rubbish")
    outbox.away = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            drain.step()
    outbox.away = False
    assert drain.step() == 3
    assert not stream
    assert list(ledger.tasks) == ["a"]
    assert len(ledger.refused) == health.take_counts()["records_refused"] == 2


@pytest.mark.parametrize("ends", [(1.0, 2.0), (2.0, 1.0)])
@pytest.mark.parametrize("together", [True, False])
def test_of_two_ends_of_a_task_one_is_counted_although_an_acknowledgement_failed(
    stream: Stream,
    outbox: Deaf,
    drain: Drain,
    ends: tuple[float, float],
    together: bool,
) -> None:
    def ended(runtime_s: float) -> str:
        run_id = f"run-{runtime_s}"
        end = success("a", runtime_s)._replace(run_id=run_id, instance=f"w@h/{run_id}")
        (entry_id,) = stream.add(end.to_json())
        return entry_id

    ended(ends[0])
    if not together:
        drain.step()
    second = ended(ends[1])
    outbox.away = True
    with pytest.raises(StoreUnavailable):
        drain.step()
    outbox.away = False
    drain.step()
    assert not stream
    assert set(outbox.not_verdicts) == {second}
