"""The output of ``rts replay``: as text, and as a JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from statistics import fmean
from typing import Any, NamedTuple

from rts.cli.table import Column, percent, render, seconds
from rts.cli.workloads import Workload
from rts.simulation.statistics import Tally, percentiles
from rts.simulation.traces import Job
from rts.views.plurals import counted
from rts.views.selection import foremost

#: Rows of the table; past that, those with the fewest tasks are left out.
MAX_ROWS = 30
#: Percentiles that are shown.
RANKS = (50, 95, 99)

#: What rows can be grouped by, and the key of a job.
KEYS: Mapping[str, Callable[[Job], str]] = {
    "type": lambda job: job.task_type,
    "name": lambda job: job.name,
}

TOTAL, MET = "total", "deadlines met %"


class Row(NamedTuple):
    """A type or a task name, or all of them."""

    key: str
    tasks: int
    #: Share of deadlines met as recorded, 0 to 1; ``None`` for a trace.
    recorded: float | None
    #: The same as simulated, by order.
    simulated: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """A workload, and its outcome in each order, simulated once or several times."""

    workload: Workload
    slots: int
    #: Offered load; ``None`` if all tasks arrive at once.
    rho: float | None
    #: Among ``KEYS``.
    by: str
    #: By order.
    tallies: Mapping[str, Sequence[Tally]]

    def rows(self) -> list[Row]:
        """Return a row for each key, sorted, and the total as the last."""
        jobs, met, key_of = self.workload.jobs, self.workload.met, KEYS[self.by]
        tasks = Counter(map(key_of, jobs))
        good = Counter(map(key_of, compress(jobs, met or ())))
        rows = [
            Row(
                key,
                number,
                None if met is None else good[key] / number,
                {o: fmean(t.share_of(key) for t in of) for o, of in self.tallies.items()},
            )
            for key, number in sorted(tasks.items())
        ]
        shares = {o: fmean(t.share for t in of) for o, of in self.tallies.items()}
        whole = None if met is None else good.total() / tasks.total()
        return [*rows, Row(TOTAL, tasks.total(), whole, shares)]

    def as_document(self) -> dict[str, Any]:
        """Return it for JSON."""
        *rows, total = (row._asdict() for row in self.rows())
        since, until = self.workload.window or (None, None)
        return {
            "since": since,
            "until": until,
            "slots": self.slots,
            "slots_recorded": self.workload.slots,
            "rho": self.rho,
            **self.workload.conditions_json(),
            "by": self.by,
            "rows": rows,
            "total": total,
            "orders": {order: _summary(of) for order, of in self.tallies.items()},
        }

    def as_text(self, width: int | None) -> str:
        """Return it for a terminal of *width*."""
        same = self.slots == self.workload.slots
        given = " (the peak in the ledger)" if same else ""
        slots = counted(self.slots, "slot")
        load = "all arrive at once" if self.rho is None else f"load {self.rho:.2f}"
        return (
            f"{self.workload.description}\n{slots}{given}, {load}\n\n"
            f"{self._shares(width)}\n\n{self._waits(width)}"
        )

    def _shares(self, width: int | None) -> str:
        *rows, total = self.rows()
        kept = [*foremost(rows, MAX_ROWS, lambda row: row.tasks), total]
        past = self.workload.met is not None
        columns = [Column(self.by, number=False), Column("tasks")]
        columns += [Column("recorded", group=MET)] if past else []
        columns += [Column(order, group=MET) for order in self.tallies]
        cells = [
            (
                row.key,
                str(row.tasks),
                *([percent(row.recorded)] if past else []),
                *(percent(share) for share in row.simulated.values()),
            )
            for row in kept
        ]
        left_out = len(rows) + 1 - len(kept)
        note = f"\n({left_out} rows with fewer tasks left out)" if left_out else ""
        return render(columns, cells, width) + note

    def _waits(self, width: int | None) -> str:
        groups = ("queueing delay s", "lateness s")
        columns = [Column("order", number=False), Column("met %")]
        columns += [Column(f"p{rank}", group=of) for of in groups for rank in RANKS]
        columns.append(Column("dropped %"))
        rows = []
        for order, of in self.tallies.items():
            summary = _summary(of)
            low, high = (percent(summary[name]) for name in ("share_low", "share_high"))
            waits = (summary["queueing_delay"], summary["lateness"])
            rows.append(
                (
                    order,
                    low if low == high else f"{low} to {high}",
                    *(seconds(value) for named in waits for value in named.values()),
                    percent(summary["dropped_ratio"]),
                )
            )
        return render(columns, rows, width)


def _summary(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Return the outcome in one order, over all repeats."""
    shares = [one.share for one in tallies]
    tasks = sum(one.tasks.total() for one in tallies)
    return {
        "share": fmean(shares),
        "share_low": min(shares),
        "share_high": max(shares),
        "repeats": len(shares),
        "dropped_ratio": sum(one.dropped for one in tallies) / tasks,
        "queueing_delay": _named(one.delays for one in tallies),
        "lateness": _named(one.lateness for one in tallies),
    }


def _named(values: Iterable[Iterable[float]]) -> dict[str, float | None]:
    """Return the percentiles of all *values* together, by name."""
    found = percentiles(chain.from_iterable(values), [rank / 100 for rank in RANKS])
    return {f"p{rank}_s": value for rank, value in zip(RANKS, found, strict=True)}
