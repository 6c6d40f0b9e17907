"""The state of the objectives: error budgets, burn rates, burning rules.

The command line, Flower, Prometheus and alerts all count this way. A task counts towards
exactly one objective, in the window in which its verdict fell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from rts.ledger.connection import LedgerDatabase
from rts.objectives import (
    ALL,
    BUDGET,
    WINDOWS,
    BurnRule,
    Count,
    budget_left,
    burn_rate,
    burning,
    objective_of,
)
from rts.settings import Settings
from rts.views.counts import slices
from rts.views.report import ratio
from rts.views.tally import CLASS, Tally, class_of, most_frequent_first


@dataclass(frozen=True)
class WindowStanding:
    """The verdicts of one objective in the window that ends now."""

    #: ``5m``, ``30m``, ``1h``, ``6h``, ``3d`` or ``budget``.
    window: str
    window_s: float
    #: Tasks that got a verdict, and how many of them were on time.
    valid: int
    good: int
    #: ``good / valid``; ``None`` without verdicts.
    on_time_ratio: float | None
    #: 1 uses up the error budget exactly; 0 without verdicts.
    burn_rate: float


@dataclass(frozen=True)
class ObjectiveStatus:
    """The state of one objective."""

    #: The key in ``rts_slo``: a task name, a queue, a task type, or ``*``.
    objective: str
    #: Share of tasks that are to be on time, 0.5 to 0.99999.
    target: float
    #: By the names of :class:`WindowStanding`, shortest first.
    windows: Mapping[str, WindowStanding]
    #: Share of the error budget that is left; below 0 it is overspent.
    budget_left_ratio: float
    #: The rules that fire now, most urgent first.
    burning: tuple[BurnRule, ...]
    #: Misses in the budget's window by cause, most frequent first.
    misses: Mapping[str, int] = field(default_factory=dict)


def standings(
    database: LedgerDatabase, settings: Settings, now: datetime, by: str | None = None
) -> list[ObjectiveStatus]:
    """Return the state of each objective of ``rts_slo`` at *now* (aware), sorted by key, ``*``
    last. *by*: the keys are values of this field, one of ``CLASS``; else they may be of any.
    """
    lengths = {**WINDOWS, BUDGET: settings.budget_window_s}
    slice_lengths = sorted(set(lengths.values()))
    objectives: dict[str, str | None] = {}
    #: By objective, then by the length of the shortest window that contains the verdicts.
    counted = {key: {length: Tally() for length in slice_lengths} for key in settings.slo}
    for shortest, (text, valid, on_time, misses) in slices(database, now, slice_lengths):
        if text not in objectives:
            objectives[text] = _objective(settings.slo, class_of(text), by)
        key = objectives[text]
        if key is not None:
            total = counted[key][shortest]
            total.verdicts += valid
            total.on_time += on_time
            if misses:
                total.misses.update(misses)
    return [
        _standing(key, settings, lengths, counted[key])
        for key in sorted(settings.slo, key=lambda key: (key == ALL, key))
    ]


def _objective(
    targets: Mapping[str, float], of: tuple[str, str, str | None], by: str | None
) -> str | None:
    """Return the key of *targets* that applies to a class; see :func:`standings`."""
    if by is None:
        return objective_of(targets, *of)
    value = of[CLASS.index(by)]
    return value if value in targets else None


def _standing(
    key: str, settings: Settings, lengths: Mapping[str, float], counted: Mapping[float, Tally]
) -> ObjectiveStatus:
    target = settings.slo[key]
    counts = {name: Count() for name in lengths}
    misses: Counter[str] = Counter()
    for shortest, tally in counted.items():
        for window, length in lengths.items():
            if shortest <= length:
                counts[window] += Count(tally.verdicts, tally.on_time)
        if shortest <= lengths[BUDGET]:
            misses += tally.misses
    return ObjectiveStatus(
        objective=key,
        target=target,
        windows={
            name: WindowStanding(
                name,
                lengths[name],
                count.valid,
                count.good,
                ratio(count.good, count.valid),
                burn_rate(target, count),
            )
            for name, count in counts.items()
        },
        budget_left_ratio=budget_left(target, counts[BUDGET]),
        burning=burning(target, counts, settings.slo_min_events),
        misses=most_frequent_first(misses),
    )
