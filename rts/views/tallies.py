"""Counts and buckets of the ledger over a window of time, made by the server.

A window is cut into whole days, hours, tens of minutes, and what is left at its ends.
Where it holds many records, the sums of whole stretches are kept in a private
collection, so that the next question costs little. They are used only while
the number of records in them agrees with the ledger's, and forgotten when one of
those records is replaced (:mod:`rts.ledger.rollups`): the answer is that of a
direct count.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from pymongo import ReturnDocument
from pymongo.database import Database
from pymongo.errors import PyMongoError

from rts.keys import ASSIGNMENTS, ROLLUPS, TASKS
from rts.ledger.rollups import DAY, HOUR
from rts.views import columns
from rts.views.histogram import expression
from rts.views.seal import Seal, seal_of
from rts.views.stretches import Stretch, Window, count, cut, in_window

#: Records up to which a window is read at once: that takes a fraction of a second.
DIRECT = 50_000
#: Questions that are asked at once. The server works on each with one thread.
THREADS = 4
#: Bytes of sums that are kept in one document; a document holds 16 MB at most.
MAX_KEPT_BYTES = 8 << 20

#: Name of the key of runs or tasks that have none.
UNKNOWN = "unknown"
#: A miss of a task that ran to its end: it just came too late.
LATE = "late"

_EPOCH = datetime.fromtimestamp(0, timezone.utc)
_FIELDS = {"type": "task_type", "name": "name", "worker": "worker", "queue": "queue"}

#: What groups a report: ``type``, ``name``, ``worker``, ``queue``, or ``all`` for one row.
GROUPS = (*_FIELDS, "all")

#: Groups verdicts alone, by type, name and queue at once: what objectives need.
CLASSES = "classes"


@dataclass
class Tally:
    """What was counted of one key. Tallies of disjoint windows can be added."""

    runs: int = 0
    #: Sum of the runtimes of successful runs, and of |runtime − tau| of those.
    success_runtime_s: float = 0.0
    success_error_s: float = 0.0
    verdicts: int = 0
    on_time: int = 0
    #: On time and SUCCESS.
    good: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    runtime: Counter[int] = field(default_factory=Counter)
    queueing_delay: Counter[int] = field(default_factory=Counter)
    lateness: Counter[int] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Take in what *other* counted."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("misses", *_BUCKETS):
            getattr(self, name).update(getattr(other, name))


_NUMBERS = ("runs", "success_runtime_s", "success_error_s", "verdicts", "on_time", "good")
_BUCKETS = ("runtime", "queueing_delay", "lateness")

Tallies = dict[str, Tally]


def class_of(key: str) -> tuple[str, str, str | None]:
    """Return type, name and queue of a key of ``CLASSES``."""
    task_type, name, queue = json.loads(key)
    return task_type or UNKNOWN, name or UNKNOWN, queue


def tally(database: Database[dict[str, Any]], window: Window, by: str) -> Tallies:
    """Count the runs that ended in *window* and the verdicts that fell in it, by *by* (of
    ``GROUPS``, or ``CLASSES``).

    Raises:
        PyMongoError: the server did not answer.
    """
    total: Tallies = {}
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = []
        for collection in _collections(by):
            stretches, rest = cut(collection, window)
            if count(database, collection, window, DIRECT + 1) <= DIRECT:
                stretches, rest = [], [window]
            kept = kept_sums(database, stretches, by)
            jobs += [pool.submit(direct, database, collection, w, by) for w in rest]
            for stretch in stretches:
                if stretch.id in kept:
                    add_all(total, kept[stretch.id])
                else:
                    jobs.append(pool.submit(sum_up, database, stretch, by))
        for job in jobs:
            add_all(total, job.result())
    return total


def keep(
    database: Database[dict[str, Any]],
    until: datetime,
    by: str = "type",
    seconds: float = 86400.0,
) -> int:
    """Sum up the whole days and hours of the *seconds* before *until* that a report
    would find slow, one after the other.

    For a process that has the time, every few minutes: then even the first report
    on a very busy day answers at once. Returns the number of stretches summed up.

    Raises:
        PyMongoError: the server did not answer.
    """
    summed = 0
    for collection in _collections(by):
        window = until - timedelta(seconds=seconds), until
        if count(database, collection, window, DIRECT + 1) <= DIRECT:
            continue
        stretches, _ = cut(collection, window, (DAY, HOUR))
        kept = kept_packed(database, stretches, by)
        for stretch in stretches:
            if stretch.id not in kept:
                sum_up(database, stretch, by)
                summed += 1
    return summed


def _collections(by: str) -> tuple[str, ...]:
    return (TASKS,) if by == CLASSES else (ASSIGNMENTS, TASKS)


def add_all(total: Tallies, more: Mapping[str, Tally]) -> None:
    """Take *more*, of another window, into *total*."""
    for key, counted in more.items():
        total.setdefault(key, Tally()).add(counted)


def direct(
    database: Database[dict[str, Any]], collection: str, window: Window, by: str
) -> Tallies:
    """Count record by record, on the server."""
    found: Tallies = {}
    for row in _answers(database, collection, window, by, {}):
        _take(found.setdefault(_key_text(row["_id"]["key"]), Tally()), row)
    return found


def direct_by_stretch(
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
    if by in _FIELDS:
        key = {"$ifNull": [f"${_FIELDS[by]}", UNKNOWN]}
    elif by == CLASSES:
        key = {name: {"$ifNull": [f"${name}", None]} for name in _CLASS}
        questions = _CLASS_QUESTIONS
    for groups, sums in questions:
        group = {"_id": {"key": key, **more, **groups}, "n": {"$sum": 1}, **sums}
        stages = [{"$match": in_window(collection, window)}, {"$group": group}]
        yield from database[collection].aggregate(stages)


def _key_text(key: Any) -> str:
    """Return the key of a group; of a class all its parts, as JSON."""
    return json.dumps([key[name] for name in _CLASS]) if isinstance(key, dict) else str(key)


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
#: The fields of a class, in the order of its key.
_CLASS = ("task_type", "name", "queue")
# Goodput is no part of an objective, and takes the server half of the time.
_CLASS_QUESTIONS: tuple[_Question, ...] = (
    ({name: _VERDICT[name] for name in ("on_time", "cause")}, _COUNTED),
)


def _take(counted: Tally, row: Mapping[str, Any]) -> None:
    """Take in one group of an answer."""
    groups, n = row["_id"], row["n"]
    for name in _BUCKETS:
        if groups.get(name) is not None:
            getattr(counted, name)[int(groups[name])] += n
    if "error_s" in row:
        counted.runs += n
        counted.success_runtime_s += row["runtime_s"]
        counted.success_error_s += row["error_s"]
    elif "verdicts" in row:
        counted.verdicts += n
        if groups.get("on_time"):
            counted.on_time += n
            counted.good += n if groups.get("success") else 0
        else:
            counted.misses[groups.get("cause") or LATE] += n


def sum_up(database: Database[dict[str, Any]], stretch: Stretch, by: str) -> Tallies:
    """Count a whole stretch and keep the sums, unless a record changes meanwhile."""
    rollups = database[ROLLUPS]
    writes = None
    try:
        head = rollups.find_one_and_update(
            {"_id": stretch.id},
            {"$setOnInsert": {"writes": 0, "start": stretch.window[0]}},
            upsert=True,
            projection={"writes": 1},
            return_document=ReturnDocument.AFTER,
        )
        writes = None if head is None else head["writes"]
    except PyMongoError:  # one who may only read gets the answer all the same
        pass
    counted = _counted(database, stretch, by)
    if writes is not None:
        packed, size_bytes = _pack(counted, by)
        if size_bytes <= MAX_KEPT_BYTES:
            n = sum(t.runs + t.verdicts for t in counted.values())
            try:
                rollups.update_one(
                    {"_id": stretch.id, "writes": writes},
                    {"$set": {f"tallies.{by}": {"n": n, "keys": packed}}},
                )
            except PyMongoError:  # the sums are only kept to save time
                pass
    return counted


def _counted(database: Database[dict[str, Any]], stretch: Stretch, by: str) -> Tallies:
    """Count a stretch: a busy day hour by hour, so that nothing takes long, and what was
    done is kept whatever happens next.
    """
    narrower = stretch.width == DAY and (
        count(database, stretch.collection, stretch.window, DIRECT + 1) > DIRECT
    )
    if not narrower:
        return direct(database, stretch.collection, stretch.window, by)
    hours, _ = cut(stretch.collection, stretch.window, (HOUR,))
    kept = kept_sums(database, hours, by)
    total: Tallies = {}
    for hour in hours:
        add_all(total, kept[hour.id] if hour.id in kept else sum_up(database, hour, by))
    return total


def kept_sums(
    database: Database[dict[str, Any]], stretches: Sequence[Stretch], by: str
) -> dict[str, Tallies]:
    """Return the sums of *stretches* that were kept and still agree with the ledger."""
    return {
        i: _unpack(packed, by) for i, packed in kept_packed(database, stretches, by).items()
    }


def kept_packed(
    database: Database[dict[str, Any]], stretches: Sequence[Stretch], by: str
) -> dict[str, Any]:
    """Return them as they are kept: those of ``CLASSES`` for :mod:`rts.views.columns`.

    *stretches* are of one collection and do not overlap.
    """
    wanted = {stretch.id: stretch for stretch in stretches}
    found: dict[str, dict[str, Any]] = {}
    if wanted:
        query, fields = {"_id": {"$in": list(wanted)}}, {f"tallies.{by}": 1}
        for document in database[ROLLUPS].find(query, fields):
            sums = document.get("tallies", {}).get(by)
            if sums is not None:
                found[document["_id"]] = sums
    if not found:
        return {}
    seal = seal_of(database, stretches[0].collection)
    sealed = {i for i, sums in found.items() if _is_sealed(sums, wanted[i], seal)}
    doubtful = sorted((wanted[i] for i in found.keys() - sealed), key=lambda s: s.start)
    agreeing: set[str] = set()
    for neighbours in _neighbours(doubtful):
        window = neighbours[0].window[0], neighbours[-1].window[1]
        expected = sum(found[s.id]["n"] for s in neighbours)
        agrees = count(database, neighbours[0].collection, window) == expected
        # One count for all; where it is off, one for each tells which it was.
        agreeing |= {
            s.id
            for s in neighbours
            if agrees or count(database, s.collection, s.window) == found[s.id]["n"]
        }
    if seal is not None:
        _set_seal(database, [i for i in agreeing if seal.covers(wanted[i].window)], by, seal)
    return {i: found[i]["keys"] for i in sealed | agreeing}


def _is_sealed(sums: Mapping[str, Any], stretch: Stretch, seal: Seal | None) -> bool:
    return seal is not None and sums.get("seal") == seal.id and seal.covers(stretch.window)


def _set_seal(
    database: Database[dict[str, Any]], ids: Sequence[str], by: str, seal: Seal
) -> None:
    """Note that these sums were seen to agree since the seal was made."""
    if ids:
        query = {"_id": {"$in": list(ids)}, f"tallies.{by}": {"$exists": True}}
        try:
            database[ROLLUPS].update_many(query, {"$set": {f"tallies.{by}.seal": seal.id}})
        except PyMongoError:  # they are counted again next time
            pass


def _neighbours(stretches: Iterable[Stretch]) -> list[list[Stretch]]:
    """Return stretches that follow each other without a gap as one list."""
    groups: list[list[Stretch]] = []
    for stretch in stretches:
        if groups and groups[-1][-1].start + groups[-1][-1].width == stretch.start:
            groups[-1].append(stretch)
        else:
            groups.append([stretch])
    return groups


def _pack(tallies: Tallies, by: str) -> tuple[Any, int]:
    """Return what is kept, and the bytes that it takes for the most part."""
    if by == CLASSES:
        rows = [(key, t.verdicts, t.on_time, t.misses) for key, t in tallies.items()]
        return columns.pack(rows), sum(len(key) + 16 for key, *_ in rows)
    packed: list[dict[str, Any]] = [
        {
            "key": key,
            "numbers": [getattr(t, name) for name in _NUMBERS],
            "misses": [list(item) for item in t.misses.items()],
            "buckets": [_pack_buckets(getattr(t, name)) for name in _BUCKETS],
        }
        for key, t in tallies.items()
    ]
    return packed, sum(len(part) for p in packed for part in p["buckets"])


def _unpack(packed: Any, by: str) -> Tallies:
    if by == CLASSES:
        return {
            key: Tally(verdicts=valid, on_time=good, misses=Counter(misses))
            for key, valid, good, misses in columns.unpack(packed)
        }
    tallies: Tallies = {}
    for p in packed:
        counted = tallies[p["key"]] = Tally(misses=Counter(dict(p["misses"])))
        for name, value in zip(_NUMBERS, p["numbers"], strict=True):
            setattr(counted, name, value)
        for name, part in zip(_BUCKETS, p["buckets"], strict=True):
            setattr(counted, name, _unpack_buckets(part))
    return tallies


def _pack_buckets(buckets: Mapping[int, int]) -> bytes:
    """Return numbers and counts as pairs of 32 bit, least byte first."""
    flat = [n for item in buckets.items() for n in item]
    return struct.pack(f"<{len(flat)}i", *flat)


def _unpack_buckets(packed: bytes) -> Counter[int]:
    flat = struct.unpack(f"<{len(packed) // 4}i", packed)
    return Counter(dict(zip(flat[::2], flat[1::2], strict=True)))
