"""How the deadlines were met: by type, task name, worker or queue, in a window of time.

Runs are those of ``assignments`` that *ended* in the window, retried ones included. Verdicts
are those of ``tasks``, one per task, that *fell* in it: at the task's end, but no later than
its deadline. A task that never ran (expired, revoked, lost in transit) is among them as a miss.

The error of tau is Σ|runtime − τ| / Σ runtime over successful runs, with the τ that the
deadline was computed from: 0.2 means that forecasts were off by a fifth of the time spent (the
weighted absolute percentage error, which tiny runtimes do not inflate).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from rts.ledger.connection import LedgerDatabase
from rts.views.counts import tally
from rts.views.histogram import percentile
from rts.views.tally import Tallies, Tally, most_frequent_first, total_of


@dataclass(frozen=True)
class Percentiles:
    """In seconds, each within 1 % of the value of that rank."""

    p50_s: float
    p95_s: float
    p99_s: float

    @classmethod
    def of(cls, buckets: Mapping[int, int]) -> Percentiles | None:
        """Return the percentiles of *buckets*; ``None`` if they are empty."""
        p50, p95, p99 = (percentile(buckets, q) for q in (0.50, 0.95, 0.99))
        return None if p50 is None or p95 is None or p99 is None else cls(p50, p95, p99)


@dataclass(frozen=True)
class ReportRow:
    """One type, task name, worker or queue. ``None`` stands for no data."""

    key: str
    #: Runs that ended in the window.
    runs: int
    #: Tasks whose verdict fell in the window.
    tasks: int
    #: Share of those that were on time, 0 to 1.
    on_time_ratio: float | None
    #: Share of those that were on time and SUCCESS, 0 to 1.
    goodput_ratio: float | None
    #: Service time of runs, where it was measured.
    runtime: Percentiles | None
    #: Arrival to start, of runs whose start is known.
    queueing_delay: Percentiles | None
    #: End minus deadline, of verdicts on tasks that have ended; negative is early.
    lateness: Percentiles | None
    #: Σ|runtime − τ| / Σ runtime over successful runs.
    tau_error_ratio: float | None
    #: Misses by cause (``late``, or what ended the task), most frequent first.
    misses: Mapping[str, int]

    @property
    def missed(self) -> int:
        """Tasks that missed their deadline."""
        return sum(self.misses.values())


class Report(NamedTuple):
    """What the commands and Flower show of a window."""

    #: One for each key, sorted by it.
    rows: list[ReportRow]
    #: All keys together; ``None`` if nothing ended.
    total: ReportRow | None


def report(
    database: LedgerDatabase, since: datetime, until: datetime, by: str = "type"
) -> Report:
    """Count the runs and verdicts of a window. *since* and *until* (exclusive) are aware, *by*
    is ``type``, ``name``, ``worker`` or ``queue``.
    """
    tallies = tally(database, (since, until), by)
    total = row_of("total", total_of(tallies.values())) if tallies else None
    return Report(rows_of(tallies), total)


def rows_of(tallies: Tallies) -> list[ReportRow]:
    """Return one row per key, sorted by key."""
    return [row_of(key, tallies[key]) for key in sorted(tallies)]


def row_of(key: str, counted: Tally) -> ReportRow:
    """Return a tally as a row."""
    return ReportRow(
        key=key,
        runs=counted.runs,
        tasks=counted.verdicts,
        on_time_ratio=ratio(counted.on_time, counted.verdicts),
        goodput_ratio=ratio(counted.good, counted.verdicts),
        runtime=Percentiles.of(counted.runtime),
        queueing_delay=Percentiles.of(counted.queueing_delay),
        lateness=Percentiles.of(counted.lateness),
        tau_error_ratio=ratio(counted.success_error_s, counted.success_runtime_s),
        misses=most_frequent_first(counted.misses),
    )


def ratio(part: float, whole: float) -> float | None:
    """Return a share; ``None`` of nothing."""
    return part / whole if whole else None
