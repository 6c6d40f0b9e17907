"""``rts watch`` of a fleet that no window has room for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from rts.cli.watch_data import WINDOWS as SHOWN
from rts.cli.watch_data import Snapshot
from rts.cli.watch_fitting import shares
from rts.cli.watch_panels import lines, lines_within
from rts.objectives import BURN_RULES, WINDOWS
from rts.settings import Settings
from rts.unfinished.heartbeat import Heartbeat
from rts.views.fleet_state import Vitals
from rts.views.queue_state import QueueState
from rts.views.report import row_of
from rts.views.slo import ObjectiveStatus, WindowStanding
from rts.views.status import LedgerState, RedisState, ServerState
from rts.views.tally import Tally


def picture(size: int) -> Snapshot:
    """Return one in which number 70 of everything is in trouble, and the budget of objective 60
    is used up.
    """

    def standing(number: int) -> ObjectiveStatus:
        windows = {
            name: WindowStanding(name, length, 10, 9, 0.9, 1.0)
            for name, length in {**WINDOWS, "budget": 1e6}.items()
        }
        burning = BURN_RULES[:1] if number == 70 else ()
        left = -0.5 if number == 60 else 1.0
        return ObjectiveStatus(f"objective{number:03}", 0.9, windows, left, burning)

    def row(number: int) -> Any:
        misses = Counter(late=3) if number == 70 else Counter[str]()
        return row_of(f"type{number:03}", Tally(verdicts=10, on_time=7, misses=misses))

    def worker(number: int) -> Heartbeat:
        load = {"load": 0.9 if number == 70 else 0.1}
        return Heartbeat(f"i{number}", 0.0, f"worker{number:03}", load, "h", 1, 1)

    numbers = range(size)
    return Snapshot(
        at=datetime(2030, 1, 1, tzinfo=timezone.utc),
        redis=RedisState(
            ServerState("redis", True), Vitals(workers=list(map(worker, numbers)))
        ),
        ledger=LedgerState(ServerState("mongo", True)),
        standings=list(map(standing, numbers)),
        types={window: {f"type{n:03}": row(n) for n in numbers} for window in SHOWN},
        queues=[QueueState(f"queue{n:03}", 5 * (n == 70), 0, 0, None) for n in numbers],
    )


@pytest.mark.parametrize("height", [30, 50, 200])
def test_of_a_large_fleet_what_is_in_trouble_is_shown(height: int) -> None:
    found = lines_within(picture(100), Settings(), 100, height)
    assert len(found) <= height
    text = "\n".join(found)
    for name in ("objective", "type", "queue", "worker"):
        assert f"{name}070" in text
        assert text.count(f"\n{name}0") >= 3
        left_out = re.search(rf"in less trouble: .*?(\d+) {name}s", found[-1])
        assert left_out, found[-1]
        assert text.count(f"\n{name}0") + int(left_out[1]) == 100
    assert "\nobjective060" in text
    assert found[-1].startswith("Not shown, in less trouble: ")
    assert len(found) >= height - 4, "the room is used"
    (queue,) = (row for row in found if row.startswith("queue070"))
    assert queue.split()[-1] == "100", "the slots of all workers"


def test_a_table_that_fits_is_not_said_to_be_cut() -> None:
    found = lines_within(replace(picture(100), queues=picture(2).queues), Settings(), 100, 50)
    assert "queue" not in found[-1]
    assert "worker" in found[-1]


def test_what_fits_is_shown_as_it_is() -> None:
    small = picture(3)
    assert lines_within(small, Settings(), 100, 50) == lines(small, Settings(), 100)


def test_a_problem_is_told_to_its_end_where_there_is_room() -> None:
    problem = f"MongoDB is not reachable ({'why ' * 30}). Check the server and rts_mongo_url"
    small = replace(picture(3), problems=[problem, problem])
    found = lines_within(small, Settings(), 80, 50)
    assert max(map(len, found)) <= 80
    assert " ".join(found).count("Check the server and rts_mongo_url") == 2
    tight = lines_within(small, Settings(), 80, len(found) - 1)
    assert len(tight) < len(found)
    assert sum(line.startswith("Problem: ") and line[-1] == "…" for line in tight) == 2
    assert lines(small, Settings(), None)[4] == f"Problem: {problem}"


def test_no_part_of_a_problem_is_cut_for_the_wide_characters_in_it() -> None:
    problem = f"messages wait in {'the queue 注文, and in ' * 10}others"
    found = lines_within(replace(picture(3), problems=[problem]), Settings(), 80, 50)
    assert f"Problem: {problem}" in " ".join(found)


def test_what_one_table_leaves_the_others_get() -> None:
    assert shares([2, 3, 100, 100], 45) == [2, 3, 20, 20]
    assert shares([0, 0, 5, 0], 10) == [0, 0, 5, 0]
    assert shares([9, 9, 9, 9], -5) == [1, 1, 1, 1]
