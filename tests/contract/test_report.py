"""Reports over a real MongoDB, against a direct count in Python."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from rts.cli.report import report_tables
from rts.cli.show import fields_text, runs_table
from rts.flower import charts
from rts.flower.timeline import timeline
from rts.ledger.connection import connect
from rts.ledger.mongo import MongoLedger
from rts.records import Execution, OutboxEntry
from rts.settings import Settings
from rts.views import counts, intervals, rollups
from rts.views import runs as runs_module
from rts.views.counts import precompute
from rts.views.histogram import ZERO_S, bucket, expression, percentile
from rts.views.intervals import cut
from rts.views.lateness_causes import why
from rts.views.report import Percentiles, report
from rts.views.runs import (
    INTERVALS,
    MERGED,
    late_runs,
    latest_misses,
    one_task,
    sample,
    visible,
)
from rts.views.series import series
from rts.views.slo import standings
from rts.views.tally import FIELDS
from tests.records import run as run_of

#: On a whole hour.
T = 1_900_000_800.0
UTC = timezone.utc
TYPES, NAMES, WORKERS = ("cpu-light", "mixed"), ("a.x", "b.$y"), ("w@1", "w@2", "w@3")


def at(second: float) -> datetime:
    return datetime.fromtimestamp(T + second, UTC)


def runs_between(n: int, begin: float, end: float, rng: random.Random) -> list[Execution]:
    """Return *n* tasks that end between two seconds after T; some in other ways."""
    found = []
    for number in range(n):
        completed = T + rng.uniform(begin, end)
        runtime = rng.lognormvariate(0, 1.5)
        delay = rng.choice([0.0, rng.random()])
        arrival = completed - runtime - delay
        kind = rng.choice(["SUCCESS"] * 6 + ["FAILURE", "RETRY", "expired", "killed"])
        task_id = f"{begin:.0f}-{number}"
        run = run_of(task_id)._replace(
            name=rng.choice(NAMES),
            task_type=rng.choice(TYPES),
            tau=2.0,
            arrival=arrival,
            deadline=arrival + 4,
            queue=rng.choice(["q1", "q2"]),
            worker=rng.choice(WORKERS),
            started_at=completed - runtime,
            completed_at=completed,
            runtime_s=runtime,
            state=kind if kind.isupper() else "FAILURE",
        )
        if kind == "expired":
            run = run._replace(ran=False, started_at=None, runtime_s=None, cause="expired")
        elif kind == "killed":
            run = run._replace(runtime_s=None, cause="killed")
        found.append(run)
    return found


def write(ledger: MongoLedger, runs: list[Execution]) -> None:
    ledger.write([OutboxEntry(str(n), run) for n, run in enumerate(runs)])


def near(found: float, values: list[float], q: float) -> bool:
    """Return whether *found* is the value of that rank, to within 1 %."""
    exact = sorted(values)[max(1, math.ceil(q * len(values) - 1e-9)) - 1]
    return abs(found - exact) <= 0.01 * abs(exact) * (1 + 1e-9) + 1e-6


def check(
    database: Database[dict[str, Any]], since: datetime, until: datetime, by: str = "type"
) -> int:
    """Compare a report with a count of all documents; return the number of runs."""
    window = {"$gte": since, "$lt": until}
    assignments = list(database.assignments.find({"completed_at": window}))
    tasks = list(database.tasks.find({"verdict_at": window}))
    rows, total = report(database, since, until, by)
    assert (total.runs, total.tasks) == (len(assignments), len(tasks)) if total else not rows
    assert [row.key for row in rows] == sorted({d[FIELDS[by]] for d in assignments + tasks})
    for row in rows:
        mine = [d for d in assignments if d[FIELDS[by]] == row.key]
        verdicts = [d for d in tasks if d[FIELDS[by]] == row.key]
        assert (row.runs, row.tasks) == (len(mine), len(verdicts))
        on_time = [d for d in verdicts if d["sla_success"]]
        good = [d for d in on_time if d["state"] == "SUCCESS"]
        missed = Counter(d["cause"] or "late" for d in verdicts if not d["sla_success"])
        assert row.misses == missed
        if verdicts:
            assert row.on_time_ratio == len(on_time) / len(verdicts)
            assert row.goodput_ratio == len(good) / len(verdicts)
        for found, documents, name in (
            (row.runtime, mine, "runtime_s"),
            (row.queueing_delay, mine, "queueing_delay_s"),
            (row.lateness, verdicts, "lateness_s"),
        ):
            values = [d[name] for d in documents if d[name] is not None]
            if not values:
                assert found is None
                continue
            assert near(found.p50_s, values, 0.50)
            assert near(found.p95_s, values, 0.95)
            assert near(found.p99_s, values, 0.99)
        success = [d for d in mine if d["state"] == "SUCCESS"]
        if success:
            error = sum(abs(d["runtime_s"] - d["tau"]) for d in success)
            assert row.tau_error_ratio == pytest.approx(
                error / sum(d["runtime_s"] for d in success)
            )
    return sum(row.runs for row in rows)


@pytest.mark.parametrize("by", FIELDS)
def test_a_report_is_a_direct_count(ledger: MongoLedger, by: str) -> None:
    write(ledger, runs_between(600, -5000, 5000, random.Random(1)))
    assert check(ledger.database, at(-5001), at(5001), by) > 400
    assert 0 < check(ledger.database, at(-100), at(777), by) < 400
    assert report(ledger.database, at(9000), at(9999), by) == ([], None)


@pytest.mark.parametrize("by", ["type", "worker"])
def test_stored_sums_agree_with_a_direct_count(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Whatever is added, replaced or removed after sums were stored is seen."""
    monkeypatch.setattr(intervals, "DIRECT", 0)
    rng = random.Random(2)
    database, begin, end = ledger.database, at(-4000), at(12345)
    first = runs_between(400, -4000, 12345, rng)
    write(ledger, first)
    check(database, begin, end, by)
    kept = database.rollups.count_documents({f"tallies.{by}": {"$exists": True}})
    assert kept == 2 * (4 + 2)  # hours and tens of minutes, runs and tasks
    check(database, begin, end, by)
    # late records of an hour long gone
    write(ledger, runs_between(50, 100, 3000, rng))
    check(database, begin, end, by)
    # a run that was thought lost, in one hour, has ended in another
    lost = first[0]._replace(
        task_id="l",
        run_id="l",
        state="LOST",
        cause="lost",
        completed_at=T + 50.0,
        runtime_s=None,
    )
    write(ledger, [lost])
    check(database, begin, end, by)
    write(ledger, [first[0]._replace(task_id="l", run_id="l", completed_at=T + 7500.0)])
    check(database, begin, end, by)
    # a task is overdue, and ends an hour later: its verdict stays where it was
    late = first[1]._replace(task_id="o", run_id="o", deadline=T + 40.0, arrival=T)
    late = late._replace(state="PENDING", cause="overdue", completed_at=None, ran=False)
    write(ledger, [late])
    check(database, begin, end, by)
    ended = {"state": "SUCCESS", "cause": None, "completed_at": T + 3700.0, "ran": True}
    write(ledger, [late._replace(**ended)])
    check(database, begin, end, by)
    # the same hour: the number of records stays
    same = lost._replace(task_id="m", run_id="m", completed_at=T + 60.0)
    write(ledger, [same])
    check(database, begin, end, by)
    write(ledger, [first[0]._replace(task_id="m", run_id="m", completed_at=T + 70.0)])
    check(database, begin, end, by)
    # somebody removes old documents by hand
    database.assignments.delete_many({"completed_at": {"$lt": at(2000)}})
    check(database, begin, end, by)
    check(database, begin, end, by)


def test_a_window_of_decades_is_trimmed_to_its_records(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = ledger.database
    early, late = (datetime(year, 1, 1, tzinfo=timezone.utc) for year in (2020, 2040))
    # Busy though it is empty: its records have expired since they were counted.
    monkeypatch.setattr(intervals, "DIRECT", -1)
    assert report(database, early, late).rows == []
    monkeypatch.setattr(intervals, "DIRECT", 0)
    write(ledger, runs_between(300, 0, 3 * 86400, random.Random(8)))
    own = runs_between(1, 86400, 86401, random.Random(9))[0]
    write(ledger, [own._replace(task_id="last", run_id="last", completed_at=T + 7 * 86400)])
    check(database, early, late)
    # by another program, without a verdict's instant, before all others
    database.tasks.insert_one({"_id": "x", "completed_at": at(-5 * 86400), "sla_success": True})
    assert {row.key: row.tasks for row in report(database, early, late).rows}["unknown"] == 1
    assert 0 < database.rollups.count_documents({}) < 500


def test_sums_that_a_write_overtook_are_not_stored(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record is replaced while the sums of its hour are computed."""
    monkeypatch.setattr(intervals, "DIRECT", 0)
    run = runs_between(1, 1000, 1001, random.Random(3))[0]
    run = run._replace(run_id="r", task_id="t", state="SUCCESS", cause=None, ran=True)
    run = run._replace(runtime_s=1.0, started_at=T + 999.0)
    lost = run._replace(state="LOST", cause="lost", runtime_s=None)
    write(ledger, [lost])
    count = rollups.direct

    def slow(*arguments: Any) -> Any:
        counted = count(*arguments)
        write(ledger, [run])
        return counted

    with monkeypatch.context() as patch:
        patch.setattr(rollups, "direct", slow)
        report(ledger.database, at(0), at(3600))
    check(ledger.database, at(0), at(3600))


def test_sums_of_a_busy_day_are_precomputed(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ledger, runs_between(300, 0, 86400, random.Random(6)))
    assert precompute(ledger.database, at(86400)) == 0  # not so busy
    monkeypatch.setattr(intervals, "DIRECT", 100)
    assert precompute(ledger.database, at(86400)) == 48
    assert precompute(ledger.database, at(86400)) == 0
    write(ledger, runs_between(1, 5000, 5001, random.Random(7)))
    assert precompute(ledger.database, at(86400)) == 2, "one hour of runs, and of tasks"
    check(ledger.database, at(0), at(86400))


@pytest.mark.parametrize("most_bytes", [0, 10_000])
def test_sums_too_large_are_not_stored(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    """Such as those of an app with a queue of each user."""
    monkeypatch.setattr(intervals, "DIRECT", 0)
    monkeypatch.setattr(rollups, "MAX_STORED_BYTES", most_bytes)
    runs = runs_between(200, 0, 3600, random.Random(4))
    write(ledger, [run._replace(queue=f"q{n}") for n, run in enumerate(runs)])
    check(ledger.database, at(0), at(3600), "queue")
    assert ledger.database.rollups.find_one({"tallies": {"$exists": True}}) is None


def test_a_record_of_a_strangers_message_breaks_no_report(ledger: MongoLedger) -> None:
    queues: list[Any] = [{}, [], 0, ""]
    ends = {"state": "SUCCESS", "ran": True, "cause": None}
    runs = runs_between(len(queues), 0, 100, random.Random(6))
    strange = zip(runs, queues, strict=True)
    write(ledger, [run._replace(**ends, queue=queue) for run, queue in strange])
    rows = report(ledger.database, at(-1000), at(100), "queue").rows
    assert {row.key: row.tasks for row in rows} == {"{}": 1, "[]": 1, "0": 1, "unknown": 1}
    settings = Settings(slo={"q": 0.9, "*": 0.95})
    (_, standing) = standings(ledger.database, settings, at(100))
    assert standing.windows["1h"].valid == len(queues)


def test_documents_with_the_pinned_fields_only(ledger: MongoLedger) -> None:
    ledger.database.assignments.insert_one(
        {"_id": "a", "completed_at": at(1), "runtime_s": 2.0, "state": "SUCCESS"}
    )
    (row,) = report(ledger.database, at(0), at(2), "name").rows
    assert (row.key, row.runs, row.tasks, row.on_time_ratio) == ("unknown", 1, 0, None)
    assert row.lateness is None


def test_tasks_that_never_had_a_worker_are_one_row(ledger: MongoLedger) -> None:
    """One waits past its deadline, the other has the pinned fields only."""
    never = {"state": "PENDING", "cause": "overdue", "completed_at": None, "ran": False}
    run = runs_between(1, 0, 1, random.Random(1))[0]._replace(worker="", deadline=T, **never)
    write(ledger, [run._replace(arrival=T - 1)])
    ledger.database.tasks.insert_one({"_id": "a", "completed_at": at(0), "sla_success": False})
    (row,) = report(ledger.database, at(0), at(1), "worker").rows
    assert (row.key, row.tasks, row.misses) == ("unknown", 2, {"overdue": 1, "late": 1})


def test_invalid_numbers_count_as_unknown(ledger: MongoLedger) -> None:
    write(ledger, runs_between(20, 0, 100, random.Random(1)))
    before = report(ledger.database, at(0), at(200), "queue").rows[0]
    odd = [math.inf, -math.inf, math.nan, None]
    for n, value in enumerate(odd):
        own = {"state": "SUCCESS", "sla_success": True, "completed_at": at(101), "queue": "q1"}
        own |= {
            "runtime_s": value,
            "lateness_s": value,
            "queueing_delay_s": value,
            "tau": value,
        }
        ledger.database.assignments.insert_one({"_id": f"a{n}", **own})
        ledger.database.tasks.insert_one({"_id": f"t{n}", **own})
    row = report(ledger.database, at(0), at(200), "queue").rows[0]
    assert row.key == before.key == "q1"
    assert (row.runs, row.tasks) == (before.runs + 4, before.tasks + 4)
    assert (row.runtime, row.lateness) == (before.runtime, before.lateness)
    assert row.tau_error_ratio == pytest.approx(before.tau_error_ratio)


def test_a_document_that_others_wrote_breaks_no_view(ledger: MongoLedger) -> None:
    """Each has one field that holds what cannot be computed with, or be a key."""
    end = {"state": "SUCCESS", "cause": None, "ran": True, "completed_at": T + 9.0}
    end["load_at_start"] = {"load": 0.5}
    run = runs_between(1, 0, 9, random.Random(1))[0]._replace(deadline=T, runtime_s=2.0, **end)
    write(ledger, [run])
    database, window, foreign = ledger.database, (at(0), at(10)), 0
    before = {by: report(database, *window, by).total for by in FIELDS}
    assert None not in before.values()
    values: list[Any] = ["2 s", [], {"a": 1}, True, 5, b"x", at(1)]
    for collection in (database.tasks, database.assignments):
        (sound,) = collection.find()
        fields = sound.keys() - {"_id", "completed_at", "verdict_at"}
        odd = [{field: value} for field in sorted(fields) for value in values]
        collection.insert_many({**sound, "_id": f"{n}", **it} for n, it in enumerate(odd))
        foreign = len(odd)
    for by, total in before.items():
        row = report(database, *window, by).total
        assert row.runs == 1 + foreign
        assert (row.runtime, row.lateness) == (total.runtime, total.lateness)
        assert report_tables([row], by, 80)
    settings = Settings(slo={"q1": 0.9, "*": 0.95})
    valid = sum(each.windows["1h"].valid for each in standings(database, settings, at(10)))
    assert valid == database.tasks.count_documents({})
    assert [point for point in series(database, window) if point.tallies]
    assert why(late_runs(database, window, run.task_type, foreign)).runs > foreign / 2
    assert len(latest_misses(database, window, [run.task_type], limit=9)) == 9
    runs = sample(database, window)
    assert charts.bands(runs) != charts.bands([])
    assert charts.slowdowns(runs)
    assert len(one_task(database, run.task_id).runs) > foreign / 2
    for n in range(database.tasks.count_documents({}) - 1):
        found = one_task(database, str(n))
        assert fields_text(visible(found.task, "task_id"))
        assert runs_table([visible(each, "run_id") for each in found.runs], 80)
        timeline(found.task, found.runs)


def test_a_list_of_instants_breaks_no_view(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window matches one of which any lies in it."""
    write(ledger, runs_between(9, 0, 9, random.Random(1)))
    database, window = ledger.database, (at(0), at(20))
    before = sum(t.runs for p in series(database, window) for t in p.tallies.values())
    for name, field in (("tasks", "verdict_at"), ("assignments", "completed_at")):
        odd: Any = {**(database[name].find_one() or {}), field: [at(1)]}
        database[name].insert_many({**odd, "_id": f"{n}"} for n in range(3))
    after = sum(t.runs for p in series(database, window) for t in p.tallies.values())
    assert after == before > 0
    assert len(sample(database, window)) > 9
    # as the only instant of a miss, and at both edges of a busy window
    odd = {"verdict_at": [at(0)], "sla_success": False, "task_type": "mixed"}
    database.tasks.insert_many(
        [{**odd, "_id": "f"}, {**odd, "_id": "l", "verdict_at": [at(19)]}]
    )
    misses = latest_misses(database, window, ["mixed"], limit=100)
    assert {miss["_id"] for miss in misses[-2:]} == {"f", "l"}
    total = report(database, *window).total
    monkeypatch.setattr(intervals, "DIRECT", 0)
    assert report(database, *window).total == total


def test_foreign_verdicts_count_at_their_end(ledger: MongoLedger) -> None:
    """A task with the pinned fields only."""
    ledger.database.tasks.insert_one(
        {"_id": "a", "completed_at": at(1), "sla_success": True, "state": "SUCCESS"}
    )
    (row,) = report(ledger.database, at(0), at(2), "name").rows
    assert (row.key, row.tasks, row.on_time_ratio) == ("unknown", 1, 1.0)
    assert report(ledger.database, at(1.5), at(2)).rows == []


def test_nothing_more_is_asked_of_a_server_that_went_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It went between the first question and the sums of many hours."""
    asked = []

    def count(*arguments: Any) -> Any:
        asked.append(arguments)
        return rollups.sum_up(*arguments)

    hours = cut("tasks", (at(0), at(100 * 3600)), (3600,))
    monkeypatch.setattr(counts, "is_busy", lambda *_: True)
    monkeypatch.setattr(counts, "trimmed", lambda *_: None)
    monkeypatch.setattr(counts, "cut", lambda *_: hours)
    monkeypatch.setattr(counts, "stored_packed", lambda *_: {})
    monkeypatch.setattr(counts, "sum_up", count)
    database = connect("mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=50")
    with database.client, pytest.raises(PyMongoError):
        report(database, at(0), at(1))
    assert len(asked) < len(hours[0])


def test_a_window_is_cut_without_gap_or_overlap() -> None:
    for begin, end in [(0, 3600), (-1, 86400.5), (100, 200), (599, 1201), (3000, 4300), (5, 5)]:
        intervals, rest = cut("tasks", (at(begin), at(end)))
        parts = sorted([s.window for s in intervals] + [w for w in rest if w[0] < w[1]])
        for (_, one), (next_one, _) in pairwise(parts):
            assert one == next_one
        if begin < end:
            assert (parts[0][0], parts[-1][1]) == (at(begin), at(end))
    day = cut("tasks", (at(1234), at(1234 + 86400)))[0]
    assert Counter(s.width for s in day) == {3600: 23, 600: 5}


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50), st.sampled_from([0.5, 0.95]))
@example([0.0004, 0.005, 0.06], 0.5)
def test_percentiles_keep_their_bound(values: list[float], q: float) -> None:
    found = percentile(Counter(map(bucket, values)), q)
    assert near(found, values, q)


def test_the_server_fills_the_same_buckets(ledger: MongoLedger) -> None:
    rng = random.Random(5)
    values = [0.0, ZERO_S, -ZERO_S, 1e9, -1e9, *(rng.gauss(0, 100) for _ in range(500))]
    numbers = ledger.database.numbers
    numbers.insert_many([{"x": x} for x in [*values, None, math.nan]])
    stages = [{"$group": {"_id": expression("x", signed=True), "n": {"$sum": 1}}}]
    found = {row["_id"]: row["n"] for row in numbers.aggregate(stages)}
    assert found.pop(None) == 2
    assert found == Counter(map(bucket, values))
    assert Percentiles.of({}) is None


class Finds(CommandListener):
    """Counts questions."""

    number = 0

    def started(self, event: CommandStartedEvent) -> None:
        self.number += event.command_name == "find"

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Nothing."""


def test_the_latest_misses_of_many_types_take_few_questions(
    ledger: MongoLedger, rts_mongo_url: str
) -> None:
    types = tuple(f"t{n}" for n in range(250))
    late = []
    for n, each in enumerate(runs_between(500, 0, 1000, random.Random(1))):
        end = {"state": "SUCCESS", "deadline": each.arrival, "cause": None}
        late.append(each._replace(task_type=types[n % 250], **end))
    write(ledger, late)
    expected = ledger.database.tasks.find().sort("verdict_at", -1).limit(100)
    finds = Finds()
    with MongoClient(rts_mongo_url, event_listeners=[finds], tz_aware=True) as client:
        database = client.get_default_database()
        found = latest_misses(database, (at(-100), at(1100)), types, limit=100)
        assert [task["_id"] for task in found] == [task["_id"] for task in expected]
        assert finds.number == 6
        plan = database.tasks.find(
            {
                "sla_success": False,
                "task_type": {"$in": types[:MERGED]},
                "verdict_at": {"$gte": at(-100), "$lt": at(1100)},
            }
        )
        stages = str(plan.sort("verdict_at", -1).limit(100).explain()["queryPlanner"])
        assert "SORT_MERGE" in stages, "they are not all read and sorted"


def test_a_sample_is_of_the_newest_runs_of_each_part_of_the_window(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "SCANNED", 4)
    monkeypatch.setattr(runs_module, "SAMPLED", 3)
    write(ledger, runs_between(200, 0, 100.0 * INTERVALS, random.Random(4)))
    window = at(0), at(100.0 * INTERVALS)
    newest: dict[float, list[Any]] = {}
    for run in ledger.database.assignments.find().sort("completed_at", -1):
        part = (run["completed_at"] - window[0]).total_seconds() // 100
        newest.setdefault(part, []).append(run["task_id"])
    expected = {task_id for found in newest.values() for task_id in found[:3]}
    assert {run["task_id"] for run in sample(ledger.database, window)} == expected


def test_of_a_task_that_retries_for_ever_the_latest_runs_are_read(
    ledger: MongoLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It polls something."""
    monkeypatch.setattr(runs_module, "MAX_RUNS", 3)
    polls = runs_between(5, 0, 100, random.Random(1))
    ran = {"task_id": "poll", "ran": True, "state": "RETRY", "cause": None}
    write(
        ledger,
        [run._replace(**ran, retries=n, started_at=T + n) for n, run in enumerate(polls)],
    )
    found = one_task(ledger.database, "poll")
    assert [run["retries"] for run in found.runs] == [2, 3, 4]


def test_runs_are_in_the_order_in_which_they_ran_though_their_task_was_replaced(
    ledger: MongoLedger,
) -> None:
    """What replaces a task that was retried begins without retries."""
    run = runs_between(1, 0, 10, random.Random(1))[0]._replace(
        task_id="t", ran=True, cause=None
    )
    ran = [
        ("RETRY", 0, T + 1),
        ("REPLACED", 1, T + 3),
        ("RETRY", 0, T + 6),
        ("SUCCESS", 1, T + 8),
    ]
    for state, retries, started_at in ran:
        ended = {"started_at": started_at, "completed_at": started_at + 1, "run_id": state}
        own = {"run_id": f"{started_at}", "arrival": T + 5 if started_at > T + 4 else T}
        write(ledger, [run._replace(state=state, retries=retries, **{**ended, **own})])
    killed = {"started_at": None, "completed_at": T + 5, "cause": "killed", "state": "FAILURE"}
    write(ledger, [run._replace(**killed, retries=2, run_id="killed", instance="another")])
    found = one_task(ledger.database, "t")
    states = [run["state"] for run in found.runs]
    assert states == ["RETRY", "REPLACED", "FAILURE", "RETRY", "SUCCESS"]


def test_late_runs_are_those_that_ran_to_their_end(ledger: MongoLedger) -> None:
    write(ledger, runs_between(200, 0, 100, random.Random(5)))
    wanted = {"sla_success": False, "task_type": "mixed", "cause": None}
    late = list(ledger.database.assignments.find(wanted).sort("completed_at", -1))
    others = ledger.database.assignments.count_documents({**wanted, "cause": {"$ne": None}})
    assert min(len(late), others) > 5
    found = late_runs(ledger.database, (at(0), at(101)), "mixed", 5)
    assert [run["task_id"] for run in found] == [run["task_id"] for run in late[:5]]
