"""Single tasks and runs of the ledger: one task, the latest misses, a sample of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo import DESCENDING

from rts.fields import text
from rts.keys import ASSIGNMENTS, TASKS
from rts.ledger.connection import LedgerDatabase
from rts.views.aggregation import threads
from rts.views.intervals import EPOCH, Window, in_window, parts

#: Runs of one task that are read: one that polls by retrying may have hundreds of thousands.
MAX_RUNS = 1000
#: A sample is drawn from the newest ``SCANNED`` runs of each of ``INTERVALS`` parts of the
#: window, so that a million runs cost as much as ten thousand.
INTERVALS, SCANNED = 24, 1000
#: Runs that are taken from each interval.
SAMPLED = 60
#: Types whose misses are queried together.
MERGED = 100
#: Time limit of one query, in milliseconds. With the index on misses none takes as long.
MAX_MS = 3000

_RUN = (
    *("task_id", "name", "task_type", "worker", "started_at", "completed_at", "state", "cause"),
    *("runtime_s", "queueing_delay_s", "lateness_s", "sla_success", "tau", "load_at_start"),
    *("arrival", "deadline", "retries"),
)
_MISS = (
    *("name", "task_type", "queue", "worker", "arrival", "deadline", "started_at", "state"),
    *("verdict_at", "completed_at", "runtime_s", "lateness_s", "cause", "tau"),
)
#: The types of those that are computed with.
_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("runtime_s", "queueing_delay_s", "lateness_s", "cpu_s"), int | float),
    **dict.fromkeys(("tau", "k"), int | float),
    **dict.fromkeys(("arrival", "deadline", "started_at"), datetime),
    **dict.fromkeys(("completed_at", "verdict_at"), datetime),
    **dict.fromkeys(("name", "task_type"), str),
    "sla_success": bool,
}


@dataclass(frozen=True)
class OneTask:
    """What the ledger holds of one task id."""

    #: Its document in ``tasks``; ``None`` if there is no verdict yet.
    task: Mapping[str, Any] | None
    #: Those in ``assignments``, the latest ``MAX_RUNS``, in the order in which they ran.
    runs: Sequence[Mapping[str, Any]]


def one_task(database: LedgerDatabase, task_id: str) -> OneTask | None:
    """Return what the ledger knows about a task; ``None`` if that is nothing."""
    wanted = text(task_id)
    task = next(iter(_sound(database[TASKS].find({"_id": wanted}))), None)
    found = database[ASSIGNMENTS].find({"task_id": wanted})
    latest_first = [(field, DESCENDING) for field in ("retries", "started_at", "_id")]
    runs = _sound(found.sort(latest_first).limit(MAX_RUNS))[::-1]
    # Not by their retries: what has replaced a task begins at none again.
    runs.sort(key=lambda run: run.get("started_at") or run.get("completed_at") or EPOCH)
    return OneTask(task, runs) if task is not None or runs else None


def visible(document: Mapping[str, Any], id_name: str) -> dict[str, Any]:
    """Return a document of either collection without the private fields of the drain; its
    ``_id`` becomes *id_name*.
    """
    shown = {key: value for key, value in document.items() if not key.startswith("_")}
    return {id_name: document["_id"], **shown}


def latest_misses(
    database: LedgerDatabase,
    window: Window,
    types: Sequence[str],
    *,
    name: str | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return the tasks of *types* whose deadline was missed in *window*, newest first.

    One query per ``MERGED`` types: the index is by type and verdict, and the server merges
    that many of its ranges in order.
    """
    named = {} if name is None else {"name": name}
    found: list[dict[str, Any]] = []
    for start in range(0, len(types), MERGED):
        of_types = {"$in": types[start : start + MERGED]}
        for instant, part in parts(TASKS, window).items():
            wanted = {"sla_success": False, "task_type": of_types, **part, **named}
            cursor = database[TASKS].find(wanted, _MISS, max_time_ms=MAX_MS)
            found += _sound(cursor.sort(instant, DESCENDING).limit(limit))
    found.sort(
        key=lambda task: task.get("verdict_at") or task.get("completed_at") or EPOCH,
        reverse=True,
    )
    return found[:limit]


def late_runs(
    database: LedgerDatabase, window: Window, task_type: str, limit: int
) -> list[dict[str, Any]]:
    """Return the latest runs of a type in *window* that completed, but too late."""
    wanted = {
        "sla_success": False,
        "task_type": task_type,
        "cause": None,
        **in_window(ASSIGNMENTS, window),
    }
    cursor = database[ASSIGNMENTS].find(wanted, _RUN, max_time_ms=MAX_MS)
    return _sound(cursor.sort("completed_at", DESCENDING).limit(limit))


def sample(
    database: LedgerDatabase,
    window: Window,
    *,
    task_type: str | None = None,
    name: str | None = None,
    worker: str | None = None,
) -> list[dict[str, Any]]:
    """Return a sample of the runs that ended in *window*, spread over it, in order of their
    end.

    The window is cut into ``INTERVALS``; the newest ``SCANNED`` runs of each are scanned, and
    up to ``SAMPLED`` of those asked for are taken. Where many runs end, a rare type may be
    missing.
    """
    fields = {"task_type": task_type, "name": name, "worker": worker}
    wanted = {field: value for field, value in fields.items() if value is not None}
    step = (window[1] - window[0]) / INTERVALS

    def ask(number: int) -> list[dict[str, Any]]:
        part = window[0] + number * step, window[0] + (number + 1) * step
        return _sound(
            database[ASSIGNMENTS].aggregate(
                [
                    {"$match": in_window(ASSIGNMENTS, part)},
                    {"$sort": {"completed_at": -1}},
                    {"$limit": SCANNED},
                    {"$match": wanted},
                    {"$limit": SAMPLED},
                    {"$project": dict.fromkeys(_RUN, 1)},
                ],
                maxTimeMS=MAX_MS,
            )
        )

    with threads() as pool:
        found = [run for part in pool.map(ask, range(INTERVALS)) for run in part]
    return sorted(found, key=lambda run: run["completed_at"] or EPOCH)


def _sound(documents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return *documents*, which anybody may have written, with ``None`` for each value that is
    not of its field's type.
    """
    return [
        {
            field: value if isinstance(value, _TYPES.get(field, object)) else None
            for field, value in document.items()
        }
        for document in documents
    ]
