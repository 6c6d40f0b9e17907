"""Why tasks of a type are late: they waited, were retried, had too little time, met a busy
worker, or tau is wrong.

A late run had the span D = deadline − arrival. Without any waiting it would have taken just its
runtime, so:

- ``queueing``: runtime ≤ D. Only the waiting made it late.
- ``retries``: runtime ≤ D, but it was retried: the attempts before it, and the waits between
  them, took the time.
- ``deadline``: runtime > D, and tau > D: a header, or its parent, gave it less time than such
  a task usually takes.
- ``load``: runtime > D ≥ tau, and it started on a worker whose load was at least ``BUSY``. This
  explains up to ``BY_LOAD`` times tau, and above a load of 1 up to ``BY_LOAD`` · tau · load.
- ``tau``: runtime > D ≥ tau, and load does not explain it. The deadline, which is computed from
  tau, was too optimistic.

Tasks that did not complete (killed, expired, …) are reported by their cause.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Load at start from which a worker counts as busy: cores are shared, or memory swaps.
BUSY = 0.8
#: On cores that n times as many share as there is room for, a run takes about n times as long.
#: Not just once: the load is a mean over resources, and may have risen since the start.
BY_LOAD = 5.0

REASONS = ("queueing", "retries", "deadline", "load", "tau")
QUEUEING, RETRIES, DEADLINE, LOAD, TAU = REASONS


@dataclass(frozen=True)
class Why:
    """What late runs have in common. Shares are from 0 to 1."""

    #: Runs that were examined.
    runs: int
    #: The most frequent reason; ``None`` without runs.
    reason: str | None
    #: Share of each reason.
    shares: Mapping[str, float]
    #: Medians of the runs with that reason: seconds from arrival to start, seconds from arrival
    #: to deadline, runtime over tau, load at start. ``None`` if not known.
    queueing_delay_s: float | None = None
    span_s: float | None = None
    slowdown: float | None = None
    load: float | None = None


def reason_of(run: Mapping[str, Any]) -> str | None:
    """Return why one late run was late; ``None`` if its record does not say.

    >>> from datetime import datetime, timedelta
    >>> arrival = datetime(2030, 1, 1)
    >>> reason_of({"runtime_s": 3, "arrival": arrival,
    ...            "deadline": arrival + timedelta(seconds=5)})
    'queueing'
    """
    runtime_s, span_s = run.get("runtime_s"), _span_s(run)
    if runtime_s is None or span_s is None:
        return None
    if runtime_s <= span_s:
        return RETRIES if run.get("retries") else QUEUEING
    if (run.get("tau") or 0.0) > span_s:
        return DEADLINE
    return LOAD if is_explained(slowdown(run), load_at_start(run)) else TAU


def is_explained(slowdown: float | None, load: float | None) -> bool:
    """Return whether the load at the start of a run explains its slowdown.

    >>> is_explained(3.0, 0.9), is_explained(3.0, 0.5), is_explained(130.0, 1.3)
    (True, False, False)
    """
    if load is None or load < BUSY:
        return False
    return slowdown is None or slowdown <= BY_LOAD * max(1.0, load)


def why(late_runs: Sequence[Mapping[str, Any]]) -> Why:
    """Return why *late_runs*, which completed too late, were late."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {reason: [] for reason in REASONS}
    for run in late_runs:
        reason = reason_of(run)
        if reason is not None:
            by_reason[reason].append(run)
    n = sum(map(len, by_reason.values()))
    if not n:
        return Why(0, None, {})
    most = max(by_reason, key=lambda reason: len(by_reason[reason]))
    those = by_reason[most]
    return Why(
        runs=n,
        reason=most,
        shares={reason: len(runs) / n for reason, runs in by_reason.items()},
        queueing_delay_s=median(run.get("queueing_delay_s") for run in those),
        span_s=median(_span_s(run) for run in those),
        slowdown=median(slowdown(run) for run in those),
        load=median(load_at_start(run) for run in those),
    )


def slowdown(run: Mapping[str, Any]) -> float | None:
    """Return runtime over tau; ``None`` if one is not known."""
    runtime_s, tau = run.get("runtime_s"), run.get("tau")
    return runtime_s / tau if runtime_s is not None and tau else None


def _span_s(run: Mapping[str, Any]) -> float | None:
    arrival, deadline = run.get("arrival"), run.get("deadline")
    if arrival is None or deadline is None:
        return None
    return float((deadline - arrival).total_seconds())


def load_at_start(run: Mapping[str, Any]) -> float | None:
    """Return the load at the start of a run, a fraction; ``None`` if not known."""
    load = run.get("load_at_start")
    value = load.get("load") if isinstance(load, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the known *values*; ``None`` if there are none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
