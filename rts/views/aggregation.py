"""Server-side aggregation of single records: what each query groups by and sums up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from rts.keys import ASSIGNMENTS
from rts.ledger.connection import LedgerDatabase
from rts.validation import finite
from rts.views.histogram import expression, if_number
from rts.views.intervals import Window, in_window
from rts.views.tally import BUCKETS, CLASS, CLASSES, FIELDS, LATE, UNKNOWN, Tallies, Tally

#: Concurrent queries. The server runs each in one thread.
THREADS = 4


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool for concurrent queries. After an error those that have not begun are
    cancelled: each of them would wait for a server that is gone.
    """
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def direct(database: LedgerDatabase, collection: str, window: Window, by: str) -> Tallies:
    """Aggregate the records of *window*."""
    found: Tallies = {}
    for row in _groups(database, collection, window, by, {}):
        _add_group(found.setdefault(_key_text(row["_id"]["key"], by), Tally()), row)
    return found


def direct_by_interval(
    database: LedgerDatabase, collection: str, window: Window, by: str, width: int
) -> dict[int, Tallies]:
    """Aggregate the records of *window* by intervals of *width* seconds, whose keys are the
    epoch seconds at which they begin.
    """
    ended = {"$ifNull": ["$verdict_at", "$completed_at"]}  # runs have no verdict_at
    # Milliseconds; null of a list of instants, which a window may match.
    at: Any = {"$convert": {"input": ended, "to": "long", "onError": None}}
    at = {"$subtract": [at, {"$mod": [at, width * 1000]}]}
    found: dict[int, Tallies] = {}
    for row in _groups(database, collection, window, by, {"at": at}):
        inside = found.setdefault((row["_id"]["at"] or 0) // 1000, {})
        _add_group(inside.setdefault(_key_text(row["_id"]["key"], by), Tally()), row)
    return found


def _groups(
    database: LedgerDatabase, collection: str, window: Window, by: str, more: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the groups of all queries; *more*: further keys to group by."""
    if by == CLASSES:
        key: Any = {name: {"$ifNull": [f"${name}", None]} for name in CLASS}
        queries = _CLASS_QUERIES
    else:
        key = {"$ifNull": [f"${FIELDS[by]}", UNKNOWN]}
        queries = _RUN_QUERIES if collection == ASSIGNMENTS else _TASK_QUERIES
    for groups, sums in queries:
        group = {"_id": {"key": key, **more, **groups}, "n": {"$sum": 1}, **sums}
        stages = [{"$match": in_window(collection, window)}, {"$group": group}]
        yield from database[collection].aggregate(stages)


def _key_text(key: Any, by: str) -> str:
    """Return the key of a group as text; the parts of a class as a JSON list."""
    if by == CLASSES:
        return json.dumps([None if key[name] is None else str(key[name]) for name in CLASS])
    return str(key) or UNKNOWN  # a task that waits has an empty worker


def _if_success(value: Any) -> dict[str, Any]:
    return {"$sum": {"$cond": [{"$eq": ["$state", "SUCCESS"]}, value, 0]}}


#: What to group by, besides the key, and what to sum up. Several small queries are faster than
#: one whose groups are the product of all buckets.
_Query = tuple[dict[str, Any], dict[str, Any]]
_ERROR = {"$abs": {"$subtract": ["$runtime_s", "$tau"]}}
_RUN_QUERIES: tuple[_Query, ...] = (
    (
        {"runtime": expression("runtime_s")},
        {
            "runtime_s": _if_success("$runtime_s"),
            "error_s": _if_success(if_number("$tau", if_number("$runtime_s", _ERROR))),
        },
    ),
    ({"queueing_delay": expression("queueing_delay_s")}, {}),
)
_COUNTED = {"verdicts": {"$sum": 1}}
_VERDICT = {
    "on_time": "$sla_success",
    "success": {"$eq": ["$state", "SUCCESS"]},
    "cause": "$cause",
}
_TASK_QUERIES: tuple[_Query, ...] = (
    ({"lateness": expression("lateness_s", signed=True), **_VERDICT}, _COUNTED),
)
# Objectives do not need goodput, which takes half of the server's time.
_CLASS_QUERIES: tuple[_Query, ...] = (
    ({name: _VERDICT[name] for name in ("on_time", "cause")}, _COUNTED),
)


def _add_group(counted: Tally, row: Mapping[str, Any]) -> None:
    """Add one group to a tally."""
    groups, n = row["_id"], row["n"]
    for name in BUCKETS:
        number = finite(groups.get(name))  # a foreign record may hold an infinite one
        if number is not None:
            getattr(counted, name)[int(number)] += n
    if "error_s" in row:
        counted.runs += n
        runtime_s, error_s = finite(row["runtime_s"]), finite(row["error_s"])
        if runtime_s is not None and error_s is not None:
            counted.success_runtime_s += runtime_s
            counted.success_error_s += error_s
    elif "verdicts" in row:
        counted.verdicts += n
        if groups.get("on_time"):
            counted.on_time += n
            counted.good += n if groups.get("success") else 0
        else:
            counted.misses[str(groups.get("cause") or LATE)] += n
