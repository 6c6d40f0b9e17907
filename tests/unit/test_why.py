"""Why runs were late, and how that is put into words."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from rts.flower.reasons import LABELS, advice, finding
from rts.records import OVERDUE
from rts.views.lateness_causes import (
    BUSY,
    DEADLINE,
    LOAD,
    QUEUEING,
    REASONS,
    RETRIES,
    TAU,
    Why,
    reason_of,
    slowdown,
    why,
)

ARRIVAL = datetime(2030, 1, 1, tzinfo=timezone.utc)


def late(runtime_s: float | None, load: float | None = 0.1, **changes: Any) -> dict[str, Any]:
    """Return a late run that had 6 s until its deadline."""
    return {
        "runtime_s": runtime_s,
        "tau": 3.0,
        "arrival": ARRIVAL,
        "deadline": ARRIVAL + timedelta(seconds=6),
        "queueing_delay_s": 5.0,
        "load_at_start": None if load is None else {"load": load},
        **changes,
    }


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (late(2.0), QUEUEING),
        (late(6.0, load=2.0), QUEUEING),
        (late(2.0, retries=0), QUEUEING),
        (late(2.0, retries=1), RETRIES),
        (late(6.1, retries=1), TAU),
        (late(6.1), TAU),
        (late(6.1, load=None), TAU),
        (late(6.1, load=BUSY), LOAD),
        (late(15.0, load=BUSY), LOAD),
        (late(15.1, load=BUSY), TAU),
        (late(30.0, load=2.0), LOAD),
        (late(30.1, load=2.0), TAU),
        (late(30.1, load=2.0, tau=None), LOAD),
        (late(6.1, tau=6.0), TAU),
        (late(6.1, tau=6.1), DEADLINE),
        (late(6.1, tau=6.1, load=BUSY), DEADLINE),
        (late(6.0, tau=6.1), QUEUEING),
        (late(6.1, tau=None), TAU),
        (late(None), None),
        (late(2.0, deadline=None), None),
        (late(2.0, arrival=None), None),
        (late(6.1, load_at_start={"load": "high"}), TAU),
    ],
)
def test_the_reason_of_one_run(run: dict[str, Any], reason: str | None) -> None:
    assert reason_of(run) == reason


def test_the_most_frequent_reason_wins() -> None:
    found = why([late(3.0), late(3.0), late(9.0), late(None, queueing_delay_s=None)])
    assert (found.runs, found.reason) == (3, QUEUEING)
    assert found.shares == {
        **dict.fromkeys(REASONS, 0.0),
        QUEUEING: 2 / 3,
        TAU: 1 / 3,
    }
    assert (found.queueing_delay_s, found.span_s, found.slowdown, found.load) == (
        5,
        6,
        1.0,
        0.1,
    )


def test_the_figures_are_those_of_the_runs_with_the_reason() -> None:
    slow = [late(9.0, queueing_delay_s=0.1), late(9.0, load=0.9, queueing_delay_s=0.1)]
    found = why([late(3.0), late(3.0), late(3.0, load=None, tau=None), *slow, *slow])
    assert (found.reason, found.shares[QUEUEING]) == (QUEUEING, 3 / 7)
    assert (found.queueing_delay_s, found.slowdown, found.load) == (5.0, 1.0, 0.1)


def test_nothing_is_no_reason() -> None:
    assert why([]) == why([late(None)]) == Why(0, None, {})
    assert slowdown(late(None)) is None
    assert finding({}, why([])) is None
    assert finding({"late": 3}, None) is None
    assert finding({"late": 3}, why([late(None)])) is None


@pytest.mark.parametrize(
    ("by_cause", "run", "reason", "told"),
    [
        ({"late": 3}, late(2.0), QUEUEING, "waited 5.00\u00a0s with 6.00\u00a0s"),
        ({"late": 3}, late(2.0, retries=2), RETRIES, "began 5.00\u00a0s after the arrival"),
        ({"late": 3}, late(9.0, tau=9.0), DEADLINE, "had 6.00\u00a0s from arrival to deadline"),
        ({"late": 3}, late(9.0, load=1.5), LOAD, "(load 1.50) and took 3.00\u00a0× their tau"),
        ({"late": 3}, late(9.0, load=None), TAU, "(load –)"),
        ({"late": 2, "killed": 2}, late(2.0), QUEUEING, "100\u00a0% of the late tasks"),
        (
            {"late": 1, "killed": 3},
            late(2.0),
            "ended",
            "75\u00a0% of the misses did not run to",
        ),
        (
            {"late": 1, "overdue": 3},
            late(2.0),
            OVERDUE,
            "75\u00a0% of the misses have not ended",
        ),
    ],
)
def test_a_finding_says_its_reason_with_its_figures(
    by_cause: dict[str, int], run: dict[str, Any], reason: str, told: str
) -> None:
    found = finding(by_cause, why([run]))
    assert found["reason"] == reason
    assert told in found["text"]
    assert found["label"] == LABELS.get(reason, "ended: killed")
    assert reason not in LABELS or advice(reason, None)


def test_deadline_order_is_advised_only_where_it_is_not_used() -> None:
    assert "edf" in advice(QUEUEING, None)
    assert advice(QUEUEING, "edf") == advice(QUEUEING, "priority") == "more slots"
