"""The state of the objectives, against a direct count of the documents."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from rts.ledger.mongo import MongoLedger
from rts.objectives import WINDOWS, objective_of
from rts.records import OutboxEntry
from rts.settings import Settings
from rts.views import intervals
from rts.views.counts import precompute
from rts.views.slo import ObjectiveStatus, standings
from rts.views.tally import CLASSES
from tests.records import run

NOW = datetime(2030, 3, 4, 5, 6, 7, 890000, timezone.utc)
DAY = 86400.0


@pytest.fixture
def settings() -> Settings:
    slo = {"cpu-light": 0.99, "q2": 0.9, "a.x": 0.5, "*": 0.95, "nobody": 0.8}
    return Settings(ledger_ttl=0, slo=slo)


def fill(ledger: MongoLedger, n: int, seed: int = 1) -> None:
    """Write tasks that ended up to 40 days ago, most of them lately."""
    rng = random.Random(seed)
    entries = []
    for number in range(n):
        ended = NOW.timestamp() - 40 * DAY * rng.random() ** 8 + rng.choice([0, 0, 0, 60])
        state = rng.choice(["SUCCESS"] * 5 + ["FAILURE", "RETRY", "REVOKED"])
        made = run(f"{seed}-{number}")._replace(
            name=rng.choice(["a.x", "b.$y", '"c"\x00\n']),
            task_type=rng.choice(["cpu-light", "mixed"]),
            queue=rng.choice(["q1", "q2", None]),
            arrival=ended - 10,
            deadline=ended + rng.choice([-1, 1, 1]),
            started_at=ended - 5,
            completed_at=ended,
            runtime_s=5.0,
            state=state,
            cause="revoked" if state == "REVOKED" else None,
        )
        entries.append(OutboxEntry(str(number), made))
    ledger.write(entries)


def check(
    ledger: MongoLedger, settings: Settings, now: datetime = NOW
) -> list[ObjectiveStatus]:
    found = standings(ledger.database, settings, now)
    assert [s.objective for s in found] == ["a.x", "cpu-light", "nobody", "q2", "*"]
    lengths = {**WINDOWS, "budget": settings.budget_window_s}
    for standing in found:
        assert list(standing.windows) == list(lengths)
        for name, seconds in lengths.items():
            window = {"$gte": now - timedelta(seconds=seconds), "$lt": now}
            mine = [
                d
                for d in ledger.database.tasks.find({"verdict_at": window})
                if objective_of(settings.slo, d["task_type"], d["name"], d["queue"])
                == standing.objective
            ]
            good = sum(d["sla_success"] for d in mine)
            seen = standing.windows[name]
            assert (seen.window, seen.window_s) == (name, seconds)
            assert (seen.valid, seen.good) == (len(mine), good)
            if mine:
                assert seen.on_time_ratio == good / len(mine)
                bad_ratio = 1 - good / len(mine)
                assert seen.burn_rate == pytest.approx(bad_ratio / (1 - standing.target))
            else:
                assert (seen.on_time_ratio, seen.burn_rate) == (None, 0.0)
        # The last one is the budget's.
        assert standing.misses == Counter(
            d["cause"] or "late" for d in mine if not d["sla_success"]
        )
        in_order = sorted(standing.misses.items(), key=lambda miss: (-miss[1], miss[0]))
        assert list(standing.misses.items()) == in_order
        spent = (len(mine) - good) / ((1 - standing.target) * len(mine)) if mine else 0.0
        assert standing.budget_left_ratio == pytest.approx(1 - spent)
    return found


def test_standings_are_a_direct_count(ledger: MongoLedger, settings: Settings) -> None:
    fill(ledger, 1500)
    found = {s.objective: s for s in check(ledger, settings)}
    assert all(found[key].windows["5m"].valid > 3 for key in ("a.x", "cpu-light", "q2", "*"))
    # A third is late everywhere, and more than one verdict in a hundred may not be.
    assert [rule.factor for rule in found["cpu-light"].burning] == [14.4, 6.0, 1.0]
    assert found["nobody"].burning == ()
    assert found["cpu-light"].budget_left_ratio < 0
    # Where there is no objective for all others, they count towards none.
    (alone,) = standings(ledger.database, replace(settings, slo={"q2": 0.9}), NOW)
    since = NOW - timedelta(seconds=WINDOWS["3d"])
    of_queue = {"queue": "q2", "verdict_at": {"$gte": since, "$lt": NOW}}
    assert alone.windows["3d"].valid == ledger.database.tasks.count_documents(of_queue)


def test_stored_sums_and_a_shorter_budget_agree_too(
    ledger: MongoLedger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "DIRECT", 0)
    settings = replace(settings, slo_window=2 * DAY)
    fill(ledger, 800)
    # A whole day, and the hours of those that are cut.
    assert precompute(ledger.database, NOW, CLASSES, settings.budget_window_s) == 1 + 23
    check(ledger, settings)
    check(ledger, settings)
    fill(ledger, 100, seed=2)
    check(ledger, settings)
    # Days later that day is whole, and some of its hours are stored.
    check(ledger, replace(settings, slo_window=5 * DAY), NOW + timedelta(days=4))
    # A month's budget of a ledger that keeps two days is one of two days.
    assert replace(settings, slo_window=30 * DAY, ledger_ttl=2 * DAY).budget_window_s == 2 * DAY
