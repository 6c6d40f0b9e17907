"""One task on a timeline: positions in percent of its width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

#: Runs that are drawn, the last ones; the table has all of them.
MAX_RUNS = 20
#: Margin at either end, for labels, in percent.
MARGIN = 3.0


def timeline(
    task: Mapping[str, Any] | None, runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return what is drawn of a task: instants with their places, and a bar for each run.

    ``None`` if no two instants are known.
    """
    records = [*runs] if task is None else [task, *runs]
    first_record = records[0] if records else {}
    arrival, deadline = first_record.get("arrival"), first_record.get("deadline")
    if arrival is None:
        return None
    instants = [
        at
        for record in records
        for at in (record.get(n) for n in ("arrival", "deadline", "started_at", "completed_at"))
        if at is not None
    ]
    first, span = min(instants), max(instants) - min(instants)
    if span <= timedelta(0):
        return None

    def place(at: datetime) -> float:
        return round(MARGIN + (100 - 2 * MARGIN) * float((at - first) / span), 3)

    marks = [("arrival", arrival), ("deadline", deadline)]
    return {
        "bars": _bars(runs, arrival, deadline, place)[-MAX_RUNS:],
        "marks": [{"label": label, "at": place(at)} for label, at in marks if at is not None],
        "span_s": span.total_seconds(),
    }


def _bars(
    runs: Sequence[Mapping[str, Any]],
    arrival: datetime,
    deadline: datetime | None,
    place: Callable[[datetime], float],
) -> list[dict[str, Any]]:
    """Return a bar for each run that has started, with the wait before it."""
    bars = []
    waits_from = arrival
    for run in runs:
        started = run.get("started_at")
        if started is None:
            continue
        ended = run.get("completed_at") or started
        late = deadline is not None and ended > deadline
        bars.append(
            {
                "waits_at": place(min(waits_from, started)),
                "starts_at": place(started),
                "ends_at": place(ended),
                "missed": late or run.get("cause") is not None,
            }
        )
        waits_from = ended
    return bars
