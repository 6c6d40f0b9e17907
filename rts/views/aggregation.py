"""Counting record by record, on the server: what each question groups by and sums up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from pymongo.database import Database

from rts.keys import ASSIGNMENTS
from rts.validation import finite
from rts.views.histogram import expression
from rts.views.intervals import Window, in_window
from rts.views.tally import BUCKETS, CLASS, CLASSES, FIELDS, LATE, UNKNOWN, Tallies, Tally

#: Queries that are asked at once. The server works on each with one thread.
THREADS = 4

_EPOCH = datetime.fromtimestamp(0, timezone.utc)


def direct(
    database: Database[dict[str, Any]], collection: str, window: Window, by: str
) -> Tallies:
    """Count record by record, on the server."""
    found: Tallies = {}
    for row in _answers(database, collection, window, by, {}):
        _take(found.setdefault(_key_text(row["_id"]["key"]), Tally()), row)
    return found


def direct_by_interval(
    database: Database[dict[str, Any]], collection: str, window: Window, by: str, width: int
) -> dict[int, Tallies]:
    """Do the same for each *width* seconds; by the epoch second at which they begin."""
    ended = {"$ifNull": ["$verdict_at", "$completed_at"]}  # runs have no verdict_at
    at: Any = {"$subtract": [ended, _EPOCH]}  # milliseconds
    at = {"$subtract": [at, {"$mod": [at, width * 1000]}]}
    found: dict[int, Tallies] = {}
    for row in _answers(database, collection, window, by, {"at": at}):
        inside = found.setdefault(int(row["_id"]["at"]) // 1000, {})
        _take(inside.setdefault(_key_text(row["_id"]["key"]), Tally()), row)
    return found


def _answers(
    database: Database[dict[str, Any]],
    collection: str,
    window: Window,
    by: str,
    more: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the groups of all questions; *more*: what to group by besides."""
    key: Any = {"$literal": "all"}
    questions = _RUN_QUESTIONS if collection == ASSIGNMENTS else _TASK_QUESTIONS
    if by in FIELDS:
        key = {"$ifNull": [f"${FIELDS[by]}", UNKNOWN]}
    elif by == CLASSES:
        key = {name: {"$ifNull": [f"${name}", None]} for name in CLASS}
        questions = _CLASS_QUESTIONS
    for groups, sums in questions:
        group = {"_id": {"key": key, **more, **groups}, "n": {"$sum": 1}, **sums}
        stages = [{"$match": in_window(collection, window)}, {"$group": group}]
        yield from database[collection].aggregate(stages)


def _key_text(key: Any) -> str:
    """Return the key of a group; of a class all its parts, as JSON."""
    return json.dumps([key[name] for name in CLASS]) if isinstance(key, dict) else str(key)


def _if_success(value: Any) -> dict[str, Any]:
    return {"$sum": {"$cond": [{"$eq": ["$state", "SUCCESS"]}, value, 0]}}


#: Pairs of what to group by, besides the key, and what to sum up. Several small
#: questions are quicker than one whose groups are the product of all buckets.
_Question = tuple[dict[str, Any], dict[str, Any]]
_RUN_QUESTIONS: tuple[_Question, ...] = (
    (
        {"runtime": expression("runtime_s")},
        {
            "runtime_s": _if_success("$runtime_s"),
            "error_s": _if_success({"$abs": {"$subtract": ["$runtime_s", "$tau"]}}),
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
_TASK_QUESTIONS: tuple[_Question, ...] = (
    ({"lateness": expression("lateness_s", signed=True), **_VERDICT}, _COUNTED),
)
# Goodput is no part of an objective, and takes the server half of the time.
_CLASS_QUESTIONS: tuple[_Question, ...] = (
    ({name: _VERDICT[name] for name in ("on_time", "cause")}, _COUNTED),
)


def _take(counted: Tally, row: Mapping[str, Any]) -> None:
    """Take in one group of an answer."""
    groups, n = row["_id"], row["n"]
    for name in BUCKETS:
        number = finite(groups.get(name))  # other hands may have written an infinite one
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
            counted.misses[groups.get("cause") or LATE] += n
