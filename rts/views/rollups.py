"""The stored sums of whole intervals, and whether they can still be trusted.

They are used only while their number of records agrees with the ledger's, and deleted when one
of those records is replaced (:mod:`rts.ledger.rollups`), so the answer is that of a direct
count. What is sealed (:mod:`rts.views.seal`) is not even counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import bson
from pymongo import ReadPreference, ReturnDocument
from pymongo.errors import PyMongoError

from rts.keys import ROLLUPS
from rts.ledger.connection import LedgerDatabase
from rts.ledger.rollups import DAY, HOUR, sums_to_keep
from rts.views.aggregation import direct
from rts.views.intervals import Interval, count, cut, is_busy
from rts.views.packing import pack, unpack
from rts.views.seal import Seal, seal_of
from rts.views.tally import Tallies, add_all

#: Bytes of sums that are stored: a document has 16 MiB at most, of all groupings together.
MAX_STORED_BYTES = 15 << 20


def sum_up(database: LedgerDatabase, interval: Interval, by: str) -> Tallies:
    """Count a whole interval and store the sums, unless a record changes meanwhile."""
    rollups = sums_to_keep(database)
    try:
        head: Any = rollups.find_one_and_update(
            {"_id": interval.id},
            {"$setOnInsert": {"writes": 0, "start": interval.window[0]}},
            upsert=True,
            projection={"writes": 1},
            return_document=ReturnDocument.AFTER,
        )
    except PyMongoError:  # a read-only user still gets the answer
        return _counted(database, interval, by)
    # A secondary may still hold what was replaced before this began.
    primary = database.with_options(read_preference=ReadPreference.PRIMARY)
    counted = _counted(primary, interval, by)
    n = sum(t.runs + t.verdicts for t in counted.values())
    sums = {"n": n, "keys": pack(counted, by)}
    if len(bson.encode(sums)) <= MAX_STORED_BYTES:
        try:
            rollups.update_one(
                {"_id": interval.id, "writes": head["writes"]},
                {"$set": {f"tallies.{by}": sums}},
            )
        except PyMongoError:  # the sums are only kept to save time
            pass
    return counted


def _counted(database: LedgerDatabase, interval: Interval, by: str) -> Tallies:
    """Count an interval: a busy day hour by hour, so that no query takes long and each hour is
    stored even if the next one fails.
    """
    if interval.width != DAY or not is_busy(database, interval.collection, interval.window):
        return direct(database, interval.collection, interval.window, by)
    hours, _ = cut(interval.collection, interval.window, (HOUR,))
    stored = stored_packed(database, hours, by)
    total: Tallies = {}
    for hour in hours:
        kept = stored.get(hour.id)
        add_all(total, sum_up(database, hour, by) if kept is None else unpack(kept, by))
    return total


def stored_packed(
    database: LedgerDatabase,
    intervals: Sequence[Interval],
    by: str,
    find_seal: Callable[[LedgerDatabase, str], Seal | None] = seal_of,
) -> dict[str, Any]:
    """Return the stored sums of *intervals* that still agree with the ledger, packed
    (:mod:`rts.views.packing`).

    *intervals* are of one collection and do not overlap. *find_seal* may remember its answer,
    which takes several queries.
    """
    wanted = {interval.id: interval for interval in intervals}
    found: dict[str, dict[str, Any]] = {}
    if wanted:
        query, fields = {"_id": {"$in": list(wanted)}}, {f"tallies.{by}": 1}
        for document in database[ROLLUPS].find(query, fields):
            sums = document.get("tallies", {}).get(by)
            if sums is not None:
                found[document["_id"]] = sums
    if not found:
        return {}
    seal = find_seal(database, intervals[0].collection)
    covered = {i for i in found if seal and seal.covers(wanted[i].window)}
    sealed = {i for i in covered if seal and found[i].get("seal") == seal.id}
    doubtful = sorted((wanted[i] for i in found.keys() - sealed), key=lambda s: s.start)
    agreeing = _agreeing(database, doubtful, {i: sums["n"] for i, sums in found.items()})
    if seal:
        _set_seal(database, sorted(agreeing & covered), by, seal)
    return {i: found[i]["keys"] for i in sealed | agreeing}


def _agreeing(
    database: LedgerDatabase, intervals: Iterable[Interval], expected: Mapping[str, int]
) -> set[str]:
    """Return the ids of the *intervals* that hold as many records as *expected* (by id).
    *intervals* are in order of time.
    """
    found: set[str] = set()
    for neighbours in _neighbours(intervals):
        window = neighbours[0].window[0], neighbours[-1].window[1]
        together = sum(expected[each.id] for each in neighbours)
        agree = count(database, neighbours[0].collection, window) == together
        # One count for all of them; if it is off, one for each tells which it was.
        found |= {
            each.id
            for each in neighbours
            if agree or count(database, each.collection, each.window) == expected[each.id]
        }
    return found


def _set_seal(database: LedgerDatabase, ids: Sequence[str], by: str, seal: Seal) -> None:
    """Note that these sums have agreed with the ledger since the seal was made."""
    if ids:
        query = {"_id": {"$in": list(ids)}, f"tallies.{by}": {"$exists": True}}
        try:
            sums_to_keep(database).update_many(query, {"$set": {f"tallies.{by}.seal": seal.id}})
        except PyMongoError:  # they are counted again next time
            pass


def _neighbours(intervals: Iterable[Interval]) -> list[list[Interval]]:
    """Group intervals that follow each other without a gap."""
    groups: list[list[Interval]] = []
    for interval in intervals:
        if groups and groups[-1][-1].start + groups[-1][-1].width == interval.start:
            groups[-1].append(interval)
        else:
            groups.append([interval])
    return groups
