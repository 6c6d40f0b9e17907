"""Objectives: the share of tasks that should be on time, and the burn of their budget.

With T the target, *valid* the tasks that got a verdict in a window, and *bad* those
of them that missed their deadline::

    error budget = 1 − T
    burn rate    = (bad / valid) / (1 − T)
    budget left  = 1 − bad / ((1 − T) · valid)

A burn rate of 1 uses up the budget exactly by the end of its window. Alerts watch
several windows and burn rates at once (Beyer et al., *The Site Reliability
Workbook*, 2018, chapter 5): the long window shows that it matters, the short one
that it is still going on.

Pure functions, the same for the command line, Flower, Prometheus and alerts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

#: Allowed range of a target, both ends included.
MIN_TARGET, MAX_TARGET = 0.5, 0.99999

#: The objective of every task that no other one applies to.
ALL = "*"

#: Misses in the long window from which a rule can fire: one is no trend, whatever the
#: target.
MIN_MISSES = 2

#: The windows that are counted, by name, in seconds.
WINDOWS: Mapping[str, float] = {
    "5m": 300.0,
    "30m": 1800.0,
    "1h": 3600.0,
    "6h": 6 * 3600.0,
    "3d": 3 * 86400.0,
}

#: Name of the window of the error budget (``rts_slo_window`` seconds).
BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class BurnRule:
    """Fires while the burn rate is at least *factor* in both windows."""

    #: ``page`` (act now) or ``ticket`` (act within days).
    severity: str
    factor: float
    #: Names among ``WINDOWS``.
    long: str
    short: str


#: 14.4 uses up 2 % of a budget of 30 days in an hour, 6 uses up 5 % in six hours, and
#: 1 uses up 10 % in three days.
BURN_RULES = (
    BurnRule("page", 14.4, "1h", "5m"),
    BurnRule("page", 6.0, "6h", "30m"),
    BurnRule("ticket", 1.0, "3d", "6h"),
)


@dataclass(frozen=True, slots=True)
class Count:
    """The verdicts of a window: how many there are, and how many were on time."""

    valid: int = 0
    good: int = 0

    @property
    def bad(self) -> int:
        """How many missed their deadline."""
        return self.valid - self.good

    def __add__(self, other: Count) -> Count:
        return Count(self.valid + other.valid, self.good + other.good)


def objective_of(
    targets: Mapping[str, float], task_type: str, name: str, queue: str | None
) -> str | None:
    """Return the key of *targets* that applies to a task; ``None`` where none does.

    At most one does: the task's name takes precedence over its queue, that over its type,
    and ``*`` is for all others.

    >>> objective_of({"cpu-light": 0.99, "*": 0.95}, "cpu-light", "proj.add", None)
    'cpu-light'
    """
    for key in (name, queue, task_type, ALL):
        if key in targets:
            return key
    return None


def burn_rate(target: float, count: Count) -> float:
    """Return how many times faster than allowed the budget burns; 0 without verdicts.

    Exact, since rules compare it: in floats, 1 − 0.95 is more than 0.05.

    >>> burn_rate(0.95, Count(valid=40, good=38))
    1.0
    """
    if not count.valid:
        return 0.0
    allowed = _allowed(target)
    return count.bad * allowed.denominator / (count.valid * allowed.numerator)


@lru_cache
def _allowed(target: float) -> Fraction:
    return 1 - Fraction(str(target))


def budget_left(target: float, count: Count) -> float:
    """Return the share of the error budget that is left: 1 is all of it, negative is
    overspent.

    >>> budget_left(0.99, Count(valid=1000, good=995))
    0.5
    """
    return 1 - burn_rate(target, count)


def burning(
    target: float, counts: Mapping[str, Count], min_events: int
) -> tuple[BurnRule, ...]:
    """Return the rules that fire, most urgent first.

    *counts* are the verdicts in each window, by its name. A rule needs *min_events*
    of them in its long window, and ``MIN_MISSES`` misses: one miss in a quiet night
    wakes nobody.
    """
    return tuple(
        rule
        for rule in BURN_RULES
        if counts[rule.long].valid >= min_events
        and counts[rule.long].bad >= MIN_MISSES
        and burn_rate(target, counts[rule.long]) >= rule.factor
        and burn_rate(target, counts[rule.short]) >= rule.factor
    )
