"""The tallies over time add up to those of the report, however they were counted."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from rts.flower.source import Source
from rts.ledger.mongo import MongoLedger
from rts.records import OutboxEntry
from rts.settings import Settings
from rts.views import series as module
from rts.views.aggregation import direct_by_interval
from rts.views.counts import tally
from rts.views.intervals import Window
from rts.views.series import LENGTHS_S, MAX_POINTS, length_for, series
from rts.views.tally import Tally, add_all
from tests.records import run

#: An instant that is the beginning of no interval.
UNTIL = datetime(2030, 1, 2, 3, 4, 5, 678000, timezone.utc)


def fill(ledger: MongoLedger, n: int, span_s: float) -> None:
    entries = []
    for i in range(n):
        completed_at = UNTIL.timestamp() - random.random() * span_s
        entries.append(
            OutboxEntry(
                str(i),
                run(f"task-{i}")._replace(
                    state="SUCCESS",
                    task_type=random.choice(("cpu-light", "mixed")),
                    arrival=completed_at - 5,
                    deadline=completed_at + random.uniform(-3, 3),
                    started_at=completed_at - 2,
                    completed_at=completed_at,
                    runtime_s=random.uniform(0.1, 9),
                ),
            )
        )
    ledger.write(entries)


@pytest.mark.parametrize("busy", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("hours", [1, 24, 24 * 14])
def test_a_series_adds_up_to_the_report(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch, busy: bool, hours: int
) -> None:
    monkeypatch.setattr(module, "is_busy", lambda *_: busy)  # for the series alone
    fill(ledger, 300, hours * 3600 * 1.2)
    window = UNTIL - timedelta(hours=hours), UNTIL
    for _ in range(2):  # the second time the sums are there
        points = series(ledger.database, window)
        total: dict[str, Tally] = {}
        for point in points:
            add_all(total, point.tallies)
        expected = tally(ledger.database, window, "type")
        assert total.keys() == expected.keys()
        for key, counted in expected.items():
            same = total[key]
            assert same.success_runtime_s == pytest.approx(counted.success_runtime_s)
            assert same.success_error_s == pytest.approx(counted.success_error_s)
            same.success_runtime_s, same.success_error_s = (
                counted.success_runtime_s,
                counted.success_error_s,
            )
            assert same == counted


def test_each_point_is_a_direct_count(ledger: MongoLedger) -> None:
    fill(ledger, 200, 3600)
    points = list(series(ledger.database, (UNTIL - timedelta(hours=1), UNTIL), "queue"))
    found = {p.start: p.tallies["unknown"].verdicts for p in points if p.tallies}
    width = points[0].width_s
    counted = Counter(
        datetime.fromtimestamp(d["verdict_at"].timestamp() // width * width, timezone.utc)
        for d in ledger.database.tasks.find({})
    )
    assert found == counted
    assert {(b.start - a.start).total_seconds() for a, b in pairwise(points)} == {width}


def test_every_window_has_a_bounded_number_of_points() -> None:
    for seconds in (10, 900, 3600, 86400, 7 * 86400, 30 * 86400):
        length = length_for((UNTIL - timedelta(seconds=seconds), UNTIL))
        assert length in LENGTHS_S
        assert seconds / length <= MAX_POINTS


def test_a_course_of_many_keys_is_never_in_memory_as_a_whole(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_busy", lambda *_: True)
    fill(ledger, 300, 86400)
    window = UNTIL - timedelta(hours=24), UNTIL
    for _ in range(2):  # the second time the sums are there
        known: list[weakref.ref[Tally]] = []
        most = 0
        for point in series(ledger.database, window):
            known += [weakref.ref(tally) for tally in point.tallies.values()]
            points = {id(ref()) for ref in known if ref() is not None}
            most = max(most, len(points))
        assert most <= 4, "two types, of this point and the one before"


def test_days_before_the_ledger_are_not_summed_up(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sums would expire at once, and be computed for each page."""
    monkeypatch.setattr(module, "is_busy", lambda *_: True)
    fill(ledger, 100, 3600)
    points = list(series(ledger.database, (UNTIL - timedelta(days=30), UNTIL), "queue"))
    assert (len(points), sum(p.tallies["unknown"].runs for p in points if p.tallies)) == (
        181,
        100,
    )
    assert ledger.database.rollups.count_documents({"start": {"$exists": True}}) <= 2 * 24


@pytest.mark.parametrize("days", [1, 7, 30, 60])
def test_only_the_ends_of_a_busy_window_are_read_record_by_record(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """The rest is in sums, of which those of the last day are shorter than a point."""
    monkeypatch.setattr(module, "is_busy", lambda *_: True)
    fill(ledger, 100, days * 86400)
    direct: list[timedelta] = []

    def spied(database: Any, collection: str, window: Window, *rest: Any) -> Any:
        direct.append(window[1] - window[0])
        return direct_by_interval(database, collection, window, *rest)

    monkeypatch.setattr(module, "direct_by_interval", spied)
    points = series(ledger.database, (UNTIL - timedelta(days=days), UNTIL))
    assert sum(t.runs for p in points for t in p.tallies.values()) == 100
    assert max(direct) < timedelta(minutes=10)


def test_a_window_of_flower_has_as_many_points_as_there_may_be(rts_mongo_url: str) -> None:
    source = Source(None, Settings(mongo_url=rts_mongo_url))
    for since in (timedelta(minutes=30), timedelta(hours=3), timedelta(days=30)):
        points = len(source.counted(since, "type").history)
        assert points in (MAX_POINTS, MAX_POINTS + 1), since  # the window need not begin one
    source.close()


def test_a_course_of_one_key(ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_busy", lambda *_: True)
    fill(ledger, 300, 86400)
    window = UNTIL - timedelta(hours=24), UNTIL
    for _ in range(2):
        whole = [p.tallies.get("mixed") for p in series(ledger.database, window)]
        points = list(series(ledger.database, window, key="mixed"))
        assert [p.tallies.get("mixed") for p in points] == whole
        assert {key for p in points for key in p.tallies} == {"mixed"}
