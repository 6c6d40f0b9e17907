"""Sums of the past are trusted without counting all of it, and still agree with a count."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from rts.ledger import writes
from rts.ledger.mongo import MongoLedger
from rts.records import Execution, OutboxEntry
from rts.settings import Settings
from rts.views import intervals
from rts.views.report import report
from rts.views.seal import LONGEST, MARGIN, MOVE_AFTER, seal_of
from rts.views.slo import standings
from tests.records import run

#: Long ago, so that nothing of it is still being written.
NOW = datetime(2025, 3, 4, 5, 6, 7, 890000, timezone.utc)
DAY = 86400.0
TASKS = 400


@pytest.fixture
def settings(rts_mongo_url: str) -> Settings:
    return Settings(mongo_url=rts_mongo_url, ledger_ttl=0, slo={"*": 0.95})


@pytest.fixture
def ledger(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[MongoLedger]:
    monkeypatch.setattr(intervals, "DIRECT", 100)
    made = MongoLedger(settings)
    made.write([OutboxEntry(str(n), ended(str(n))) for n in range(TASKS)])
    yield made
    made.close()


def ended(task_id: str, ago_s: float | None = None, **other: Any) -> Execution:
    """Return a task that ended within five days before NOW, a third of them late."""
    at = NOW.timestamp() - (5 * DAY * random.random() if ago_s is None else ago_s)
    return run(task_id)._replace(
        name=random.choice(["a.x", "b.$y"]),
        task_type=random.choice(["cpu-light", "mixed"]),
        arrival=at - 10,
        deadline=at + random.choice([-1, 1, 1]),
        started_at=at - 5,
        completed_at=at,
        runtime_s=5.0,
        state="SUCCESS",
        **other,
    )


def check(ledger: MongoLedger, settings: Settings) -> None:
    """Compare standings and a report with a count of the documents."""
    (standing,) = standings(ledger.database, settings, NOW)
    since = NOW - timedelta(seconds=settings.budget_window_s)
    found = [
        task
        for task in ledger.database.tasks.find()
        if since <= (task.get("verdict_at") or task["completed_at"]) < NOW
    ]
    budget = standing.windows["budget"]
    assert budget.valid == len(found)
    assert budget.good == sum(task["sla_success"] for task in found)
    missed = Counter(task.get("cause") or "late" for task in found if not task["sla_success"])
    assert standing.misses == missed
    days = NOW - timedelta(days=3), NOW
    rows = report(ledger.database, *days, by="type").rows
    runs = ledger.database.assignments.find({"completed_at": {"$gte": days[0], "$lt": days[1]}})
    assert sum(row.runs for row in rows) == len(list(runs))


def die(*_: Any) -> None:
    """Stand in for what a drain that is killed does no more."""
    raise KeyboardInterrupt


def seals(
    ledger: MongoLedger, by: str = "classes", collection: str = "tasks"
) -> Counter[str | None]:
    """Count the sums that are kept, by the seal that they bear."""
    query = {f"tallies.{by}": {"$exists": True}, "_id": {"$regex": f"^{collection}:"}}
    kept = ledger.database.rollups.find(query)
    return Counter(sums["tallies"][by].get("seal") for sums in kept)


def sealed(ledger: MongoLedger, collection: str) -> Any:
    return seal_of(ledger.database, collection)


def test_sealed_days_are_trusted_without_a_count(
    ledger: MongoLedger, settings: Settings
) -> None:
    for _ in range(2):  # made first, then seen to agree
        check(ledger, settings)
    kept = ledger.database.rollups.distinct("_id")
    assert sum(str(i).startswith("tasks:86400:") for i in kept) >= 25
    for by, collection in (("classes", "tasks"), ("type", "assignments")):
        (seal,) = seals(ledger, by, collection).keys() - {None}
        assert seal == sealed(ledger, collection).id
    assert None not in seals(ledger)
    # Nothing has changed, as far as anybody can tell who does not count: it is trusted.
    day = {"_id": {"$regex": "^tasks:86400:"}, "tallies.classes.n": {"$gt": 0}}
    ledger.database.rollups.update_many(day, {"$inc": {"tallies.classes.n": 1}})
    check(ledger, settings)
    assert set(seals(ledger)) == {sealed(ledger, "tasks").id}


def test_a_busy_day_is_summed_up_hour_by_hour(ledger: MongoLedger, settings: Settings) -> None:
    noon = NOW.timestamp() - NOW.replace(hour=12).timestamp() + DAY
    ledger.write(
        [
            OutboxEntry(f"b{n}", ended(f"b{n}", noon + random.random() * 9000))
            for n in range(200)
        ]
    )
    check(ledger, settings)
    begin = datetime(2025, 3, 3, tzinfo=timezone.utc).timestamp()
    hours = [f"tasks:3600:{begin + 3600 * hour:.0f}" for hour in range(24)]
    assert ledger.database.rollups.count_documents({"_id": {"$in": hours}}) == 24
    check(ledger, settings)


def test_foreign_changes_are_seen_at_once(ledger: MongoLedger, settings: Settings) -> None:
    tasks = ledger.database.tasks
    for _ in range(2):
        check(ledger, settings)
    before = sealed(ledger, "tasks").id
    late = {"sla_success": False, "state": "SUCCESS"}
    tasks.insert_one({"_id": "x", "verdict_at": NOW - timedelta(days=3, hours=2), **late})
    check(ledger, settings)
    assert sealed(ledger, "tasks").id != before
    # the pinned fields only
    tasks.insert_one({"_id": "y", "completed_at": NOW - timedelta(days=2, hours=1), **late})
    for _ in range(2):
        check(ledger, settings)
    tasks.delete_many({"verdict_at": {"$lt": NOW - timedelta(days=2)}})
    for _ in range(2):
        check(ledger, settings)
    ledger.database.assignments.delete_many({"completed_at": {"$lt": NOW - timedelta(days=1)}})
    check(ledger, settings)


def test_late_and_replaced_records_invalidate_sums(
    ledger: MongoLedger, settings: Settings
) -> None:
    for _ in range(2):
        check(ledger, settings)
    kept = seals(ledger).total()
    ledger.write([OutboxEntry("l", ended("late", 3 * DAY + 7000))])
    # Told of by the one who wrote it: day and hour are forgotten without a count.
    assert seals(ledger).total() < kept
    check(ledger, settings)
    lost = ended("0", 2 * DAY)._replace(state="LOST", cause="lost", task_id="m", run_id="m")
    ledger.write([OutboxEntry("m", lost)])
    for _ in range(2):
        check(ledger, settings)
    ledger.write([OutboxEntry("n", lost._replace(state="SUCCESS", cause=None))])
    check(ledger, settings)
    for number in range(5):
        ledger.write([OutboxEntry(str(number), ended(f"again-{number}"))])
        check(ledger, settings)


def test_a_verdict_that_moves_invalidates_both_sums(
    ledger: MongoLedger, settings: Settings
) -> None:
    """A task was found overdue; what took its place, with a later deadline, has not ended."""
    arrival = NOW.timestamp() - 3 * DAY
    never = {"completed_at": None, "runtime_s": None, "cause": None}
    task = ended("r")._replace(**never, state="REPLACED", arrival=arrival, deadline=arrival + 9)
    overdue = task._replace(state="PENDING", cause="overdue", ran=False, started_at=None)
    ledger.write([OutboxEntry("o", overdue)])
    for _ in range(2):
        check(ledger, settings)
    later = {"arrival": arrival + 0.6 * DAY, "deadline": arrival + DAY, "state": "RETRY"}
    ledger.write([OutboxEntry("r", task._replace(**later, completed_at=arrival + 0.7 * DAY))])
    (found,) = ledger.database.tasks.find({"_id": "r"})
    assert found["verdict_at"].timestamp() == arrival + DAY
    check(ledger, settings)


def test_a_drain_that_dies_before_it_invalidates_sums_leaves_no_stale_ones(
    ledger: MongoLedger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ended("lost", 2 * DAY)._replace(state="LOST", cause="lost", ran=False)
    ledger.write([OutboxEntry("a", lost)])
    for _ in range(2):
        check(ledger, settings)
    seal = sealed(ledger, "tasks").id
    own = lost._replace(completed_at=NOW.timestamp() - 4 * DAY, state="FAILURE", cause=None)
    with monkeypatch.context() as patch:
        patch.setattr(writes, "invalidate_sums", die)
        with pytest.raises(KeyboardInterrupt):
            ledger.write([OutboxEntry("b", own)])
    ledger.write([OutboxEntry("b", own)])  # another drain has taken it over
    check(ledger, settings)
    assert sealed(ledger, "tasks").id == seal


def test_new_records_break_no_seal(ledger: MongoLedger) -> None:
    before = sealed(ledger, "tasks")
    now = datetime.now(timezone.utc).timestamp()
    ledger.write([OutboxEntry("n", ended("new", NOW.timestamp() - now))])
    begun = ended("begun")._replace(state="RETRY", completed_at=None)
    ledger.write([OutboxEntry("b", begun)])
    assert sealed(ledger, "tasks") == before


def test_a_seal_moves_forward_and_expires(ledger: MongoLedger) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    first = seal_of(ledger.database, "tasks", now)
    assert first.span[1] == now - MARGIN
    later = now + MOVE_AFTER + timedelta(seconds=1)
    moved = seal_of(ledger.database, "tasks", later)
    assert (moved.id, moved.span[1]) == (first.id, later - MARGIN)
    much_later = later + LONGEST + timedelta(seconds=1)
    other = seal_of(ledger.database, "tasks", much_later)
    assert other.id != first.id


@pytest.mark.parametrize("off", [(-1, 1), (-1, 0), (0, 1)])
def test_a_seal_that_was_counted_amid_arrivals_is_not_moved(
    ledger: MongoLedger, off: tuple[int, int]
) -> None:
    """It would forget how many records may have come or gone unseen."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    first = seal_of(ledger.database, "tasks", now)
    inside = [TASKS + n for n in off]
    ledger.database.rollups.update_one({"_id": "tasks:seal"}, {"$set": {"inside": inside}})
    later = now + MOVE_AFTER + timedelta(seconds=1)
    assert seal_of(ledger.database, "tasks", later) == first


def test_what_waited_for_hours_breaks_no_seal_when_it_expires(rts_mongo_url: str) -> None:
    """Tasks expire by their arrival: long before the others that ended when they did."""
    now = datetime.now(timezone.utc)
    made = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=2 * DAY))
    for number in range(20):
        task = ended(str(number), NOW.timestamp() - now.timestamp() + DAY)
        arrival = now.timestamp() - 2 * DAY + (300 if number < 5 else 3600)
        entry = OutboxEntry(str(number), task._replace(arrival=arrival))
        if number == 3:  # a retry that has not come
            entry = entry._replace(
                execution=entry.execution._replace(state="RETRY", completed_at=None)
            )
        made.write([entry])
    before = sealed(made, "tasks")
    tasks = made.database.tasks
    assert (
        tasks.delete_many({"arrival": {"$lt": now - timedelta(days=2) + MARGIN}}).deleted_count
        == 5
    )
    assert sealed(made, "tasks") == before
    tasks.delete_one({})
    assert sealed(made, "tasks").id != before.id
    made.close()


def test_a_seal_excludes_records_about_to_expire(rts_mongo_url: str) -> None:
    made = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=2 * DAY))
    made.prepare()
    now = datetime.now(timezone.utc).replace(microsecond=0)
    for collection in ("tasks", "assignments"):
        seal = seal_of(made.database, collection, now)
        assert seal.span == (now - timedelta(days=2) + MARGIN, now - MARGIN)
        assert seal.covers((now - timedelta(days=1), now - timedelta(hours=1)))
        assert not seal.covers((now - timedelta(days=2), now - timedelta(hours=1)))
        assert not seal.covers((now - timedelta(days=1), now))
    made.close()


def test_there_is_no_seal_while_the_server_is_behind_with_expiring_records(
    rts_mongo_url: str,
) -> None:
    """Each look would count all of them."""
    now = datetime.now(timezone.utc)
    made = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=2 * DAY))
    old = ended("old", NOW.timestamp() - now.timestamp() + 2 * DAY - 600)
    made.write([OutboxEntry("1", old)])
    for collection in ("tasks", "assignments"):
        assert seal_of(made.database, collection, now) is not None
        behind = now + MARGIN + timedelta(seconds=700)
        assert seal_of(made.database, collection, behind) is None
        made.database.rollups.delete_many({})  # nor a first one
        assert seal_of(made.database, collection, behind) is None
        made.database[collection].delete_one({})
        assert seal_of(made.database, collection, behind) is not None
    made.close()
