"""Charts as plain values: what rts.js draws, and what the table below it shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from rts.flower.history import NOTHING, Moment
from rts.views.histogram import percentile, value_of
from rts.views.lateness_causes import load_at_start, median, slowdown
from rts.views.report import ratio

Chart = dict[str, Any]

#: Bars of the distribution of lateness.
BINS = 24
#: Upper ends of the bands of load at start.
BANDS = (0.2, 0.4, 0.6, 0.8, 1.0, math.inf)


def chart(name: str, title: str, unit: str, x: Sequence[float], **more: Any) -> Chart:
    """Return a chart. *unit* of its values: ratio, seconds, count or factor."""
    return {"name": name, "title": title, "unit": unit, "x": list(x), **more}


def line(label: str, role: str, values: Sequence[float | None], kind: str = "line") -> Chart:
    """Return a series. *role* gives the colour, *kind*: line, dash, bars or points."""
    return {"label": label, "role": role, "kind": kind, "values": list(values)}


def _verdicts(history: Sequence[Moment], key: str | None) -> list[tuple[int, int, int]]:
    """Return the numbers of verdicts, met and good ones, of *key* or of all keys together."""
    found = []
    for moment in history:
        those = [f for k, f in moment.figures.items() if key in (None, k)]
        found.append(
            (
                sum(f.verdicts for f in those),
                sum(f.on_time for f in those),
                sum(f.good for f in those),
            )
        )
    return found


def on_time(history: Sequence[Moment], key: str | None, target: float | None) -> Chart:
    """Return the shares of deadlines met, and of goodput, over time."""
    counts = _verdicts(history, key)
    lines = [
        line("goodput", "second", [ratio(good, n) for n, _, good in counts]),
        line("on time", "met", [ratio(met, n) for n, met, _ in counts]),
    ]
    if target is not None:
        lines.append(line("objective", "target", [target] * len(counts), "dash"))
    return chart("on-time", "Deadlines met", "ratio", _starts(history), series=lines)


def verdicts(history: Sequence[Moment]) -> Chart:
    """Return the numbers of tasks that met and missed their deadlines, over time."""
    counts = _verdicts(history, None)
    return chart(
        "verdicts",
        "Tasks that ended",
        "count",
        _starts(history),
        series=[
            line("met", "met", [met for _, met, _ in counts], "bars"),
            line("missed", "missed", [n - met for n, met, _ in counts], "bars"),
        ],
        stacked=True,
    )


def runtimes(history: Sequence[Moment], key: str, runs: Iterable[Mapping[str, Any]]) -> Chart:
    """Return measured runtimes beside the tau that the deadlines were computed from.

    *runs*: a sample of those of *key*.
    """
    used: dict[float, list[float]] = {}
    width = history[0].width_s if history else 1
    for run in runs:
        tau, completed_at = run.get("tau"), run.get("completed_at")
        if tau and completed_at is not None:
            used.setdefault(completed_at.timestamp() // width * width, []).append(tau)
    starts = _starts(history)
    return chart(
        "runtimes",
        "Runtime and tau",
        "seconds",
        starts,
        series=[
            *_percentiles(history, key, "runtime"),
            line("tau", "tau", [fmean(used[at]) if at in used else None for at in starts]),
        ],
        band=True,
    )


def delays(history: Sequence[Moment], key: str) -> Chart:
    """Return the queueing delay over time."""
    return chart(
        "delays",
        "Queueing delay",
        "seconds",
        _starts(history),
        series=_percentiles(history, key, "delay"),
        band=True,
    )


def lateness(buckets: Mapping[int, int]) -> Chart:
    """Return the distribution of lateness; the outermost bars include what lies beyond them."""
    low, high = percentile(buckets, 0.01), percentile(buckets, 0.99)
    x: list[float] = []
    bars: list[int] = []
    if low is not None and high is not None:
        low, high = min(low, 0.0), max(high, 0.0)
        step = _nice((high - low) / BINS)
        # Even what is rare gets a bar on its own side of the deadline.
        first = min(math.floor(low / step), -1 if min(buckets) <= 0 else 0)
        last = max(math.ceil(high / step), 1 if max(buckets) > 0 else 0)
        bars = [0] * (last - first)
        for number, n in buckets.items():
            index = math.ceil(value_of(number) / step) - 1  # just in time is not late
            bars[min(max(index, first), last - 1) - first] += n
        x = [(first + i + 0.5) * step for i in range(len(bars))]
    pairs = list(zip(x, bars, strict=True))
    return chart(
        "lateness",
        "Lateness",
        "count",
        x,
        series=[
            line("on time", "met", [n if at < 0 else 0 for at, n in pairs], "bars"),
            line("late", "missed", [n if at > 0 else 0 for at, n in pairs], "bars"),
        ],
        stacked=True,
        x_unit="seconds",
    )


def slowdowns(runs: Iterable[Mapping[str, Any]]) -> Chart:
    """Return runtime over tau against load at start, of single runs."""
    dots = []
    for run in runs:
        load, factor, met = load_at_start(run), slowdown(run), run.get("sla_success")
        if load is not None and factor is not None and factor > 0 and met is not None:
            dots.append((load, factor, met))
    dots.sort()
    return chart(
        "slowdowns",
        "Slowdown vs. load at start",
        "factor",
        [load for load, _, _ in dots],
        series=[
            line("met", "met", [f if met else None for _, f, met in dots], "points"),
            line("missed", "missed", [None if met else f for _, f, met in dots], "points"),
        ],
        x_unit="ratio",
        log=True,
    )


def bands(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return slowdown and deadlines met by band of load at start, for a table."""
    found = []
    for low, high in pairwise((0.0, *BANDS)):
        inside = [
            run
            for run in runs
            if (load := load_at_start(run)) is not None and low <= load < high
        ]
        judged = [run["sla_success"] for run in inside if run.get("sla_success") is not None]
        found.append(
            {
                "from": low,
                "to": None if math.isinf(high) else high,
                "runs": len(inside),
                "slowdown_p50": median(slowdown(run) for run in inside),
                "on_time_ratio": ratio(sum(judged), len(judged)),
            }
        )
    return found


def _percentiles(history: Sequence[Moment], key: str, what: str) -> list[Chart]:
    pairs = [getattr(moment.figures.get(key, NOTHING), what) for moment in history]
    return [
        line(f"{what} p50", "middle", [p50 for p50, _ in pairs]),
        line(f"{what} p95", "upper", [p95 for _, p95 in pairs]),
    ]


def _starts(history: Sequence[Moment]) -> list[float]:
    return [moment.start for moment in history]


def _nice(step: float) -> float:
    """Round *step* up to the next of …, 0.5, 1, 2, 5, 10, ….

    >>> [_nice(s) for s in (0.3, 1.0, 7.0)]
    [0.5, 1.0, 10.0]
    """
    if step <= 0:
        return 0.1
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))
