"""Objectives: which one applies to a task, its budget, and what burns."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.alerting.conditions import burning_conditions
from rts.objectives import (
    BURN_RULES,
    MIN_MISSES,
    WINDOWS,
    Count,
    budget_left,
    burn_rate,
    burning,
    objective_of,
)
from rts.views.slo import ObjectiveStatus, WindowStanding
from rts.views.windows import parse

TARGETS = {"gpu": 0.9, "proj.add": 0.99, "mixed": 0.8, "*": 0.95}


@pytest.mark.parametrize(
    ("task_type", "name", "queue", "key"),
    [
        ("mixed", "proj.add", "gpu", "proj.add"),
        ("mixed", "proj.sub", "gpu", "gpu"),
        ("mixed", "proj.sub", "cpu", "mixed"),
        ("mixed", "proj.sub", None, "mixed"),
        ("cpu-light", "proj.sub", "cpu", "*"),
        ("gpu", "proj.sub", None, "gpu"),
    ],
)
def test_a_name_takes_precedence_over_a_queue_and_that_over_a_type(
    task_type: str, name: str, queue: str | None, key: str
) -> None:
    assert objective_of(TARGETS, task_type, name, queue) == key


def test_without_a_star_the_others_have_no_objective() -> None:
    assert objective_of({"mixed": 0.9}, "cpu-light", "proj.add", "q") is None


@given(
    st.floats(0.5, 0.99999),
    st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
)
def test_rate_and_budget_follow_their_formulas(target: float, count: tuple[int, int]) -> None:
    valid, good = count
    counted = Count(valid, good)
    bad = valid - good
    assert counted.bad == bad
    assert burn_rate(target, counted) == pytest.approx((bad / valid) / (1 - target))
    assert budget_left(target, counted) == pytest.approx(1 - bad / ((1 - target) * valid))


def test_without_verdicts_nothing_burns() -> None:
    assert burn_rate(0.9, Count()) == 0.0
    assert budget_left(0.9, Count()) == 1.0


def counts(**windows: Count) -> dict[str, Count]:
    return {name: windows.get(f"w{name}", Count()) for name in WINDOWS}


def severities(found: tuple[object, ...]) -> list[float]:
    return [rule.factor for rule in BURN_RULES if rule in found]


def test_both_windows_must_burn() -> None:
    bad, well = Count(1000, 800), Count(1000, 1000)
    all_bad = counts(w5m=bad, w30m=bad, w1h=bad, w6h=bad, w3d=bad)
    assert severities(burning(0.99, all_bad, 10)) == [14.4, 6.0, 1.0]
    over = {**all_bad, "5m": well, "30m": well}
    assert severities(burning(0.99, over, 10)) == [1.0]
    assert severities(burning(0.99, {**over, "6h": well}, 10)) == []
    little = Count(1000, 995)
    begun = counts(w5m=bad, w30m=bad, w1h=bad, w6h=little, w3d=little)
    assert severities(burning(0.99, begun, 10)) == [14.4]


def test_a_rule_fires_from_its_factor_on() -> None:
    for rule in BURN_RULES:
        n = 100_000
        target = 0.9 if rule.factor < 10 else 0.95
        least = round(rule.factor * (1 - target) * n)
        for bad, fires in ((least + 1, True), (least - 1, False)):
            found = {**counts(), rule.long: Count(n, n - bad), rule.short: Count(n, n - bad)}
            assert (rule in burning(target, found, 10)) is fires
    # Reached is reached: in floats 0.05 / (1 - 0.95) is less than 1.
    for target in (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999, 0.99999):
        bad = round(3_000_000 * (1 - target))
        exactly = Count(3_000_000, 3_000_000 - bad)
        assert burn_rate(target, exactly) == 1.0
        assert budget_left(target, exactly) == 0.0
        assert severities(burning(target, dict.fromkeys(WINDOWS, exactly), 10)) == [1.0]
    assert severities(burning(0.95, dict.fromkeys(WINDOWS, Count(100, 28)), 10)) == [14.4, 6, 1]


def test_windows_are_as_long_as_they_are_called() -> None:
    assert {name: parse(name) for name in WINDOWS} == {
        name: timedelta(seconds=seconds) for name, seconds in WINDOWS.items()
    }


def test_a_quiet_night_pages_nobody() -> None:
    one_miss = Count(500, 499)
    same = dict.fromkeys(WINDOWS, one_miss)
    assert burn_rate(0.99999, one_miss) > 14.4
    assert burning(0.99999, same, 10) == ()
    few = dict.fromkeys(WINDOWS, Count(9, 0))
    assert burning(0.9, few, 10) == ()
    assert burning(0.9, few, 9) != ()
    assert MIN_MISSES == 2
    assert burning(0.99999, dict.fromkeys(WINDOWS, Count(500, 498)), 10) == BURN_RULES


def test_an_alert_of_few_misses_among_many_does_not_say_that_all_are_in_time() -> None:
    windows = {
        name: WindowStanding(name, seconds, 10_000, 9_996, 0.9996, 4.0)
        for name, seconds in WINDOWS.items()
    }
    standing = ObjectiveStatus("*", 0.9999, windows, -3.0, (BURN_RULES[-1],))
    (condition,) = burning_conditions([standing])
    assert condition.summary.startswith("all tasks: 99.9 % on time over 3d (10000 tasks)")
    # A page covers it also where that has not ended, though it does not burn right now.
    assert condition.covered_by == "slo_burning/*/page"


def test_a_burning_objective_is_told_by_its_most_urgent_rule() -> None:
    windows = {
        name: WindowStanding(name, seconds, 1000, 750, 0.75, 25.0)
        for name, seconds in WINDOWS.items()
    }
    burning_one = ObjectiveStatus("gpu", 0.99, windows, -2.5, BURN_RULES)
    ticket, page = burning_conditions([burning_one])
    assert (page.key, ticket.key) == ("slo_burning/gpu/page", "slo_burning/gpu/ticket")
    assert page.summary == (
        "gpu: 75.0 % on time over 1h (1000 tasks), objective 99 %. The error budget burns 25.0 "
        "times too fast"
    )
    assert page.labels == {"objective": "gpu", "window": "1h"}
    assert page.values == {
        "target": 0.99,
        "burn_rate": 25.0,
        "threshold": 14.4,
        "tasks": 1000,
        "budget_left_ratio": -2.5,
    }
    assert (page.covered_by, ticket.covered_by) == (None, page.key)
    others = ObjectiveStatus("*", 0.9, windows, 0.5, (BURN_RULES[-1],))
    assert burning_conditions([burning_one, others])[-1].summary.startswith("all other tasks: ")
