"""Indexes and collections of the ledger."""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.collection import Collection
from pymongo.errors import CollectionInvalid, OperationFailure

from rts.keys import ASSIGNMENTS, REFUSED, ROLLUPS, TASKS
from rts.ledger.connection import LedgerDatabase
from rts.ledger.documents import Document

#: Bytes of refused entries that are kept; the oldest go first.
REFUSED_BYTES = 16 << 20
#: Seconds, 50 years: the longest time to live. MongoDB 4.4 takes no more than have passed since
#: 1970, and refuses the index instead.
MAX_TTL_S = 50 * 365 * 86400
#: Name of an index that both ``tasks`` and ``assignments`` have.
_MISSES = "misses"
#: Collections whose documents expire, and fields of which each document of rts has at least
#: one.
_FIELDS = {
    TASKS: {"task_type", "sla_success"},
    ASSIGNMENTS: {"task_type", "sla_success"},
    ROLLUPS: {"writes", "seal"},
}
_INDEX_OPTIONS_CONFLICT, _INDEX_KEYS_CONFLICT = 85, 86
_NAMESPACE_EXISTS = 48


def prepare(database: LedgerDatabase, ttl_s: float, *, again: bool) -> None:
    """Create missing indexes and collections; idempotent and safe to race.

    *again*: leave a time to live that was changed since, perhaps by another drain with
    other settings.

    Raises:
        OperationFailure: MongoDB refuses, or a collection is somebody else's.
    """
    for name, fields in _FIELDS.items():
        _ensure_ours(database[name], fields)
    try:
        database.create_collection(REFUSED, capped=True, size=REFUSED_BYTES)
    except (CollectionInvalid, OperationFailure) as exc:
        if isinstance(exc, OperationFailure) and exc.code != _NAMESPACE_EXISTS:
            raise
    assignments = database[ASSIGNMENTS]
    _ensure_index(assignments, [("task_id", ASCENDING), ("retries", ASCENDING)])
    # Misses are rare, and the latest ones of a type are what people look at.
    for collection, instant in ((assignments, "completed_at"), (database[TASKS], "verdict_at")):
        _ensure_index(
            collection,
            [("task_type", ASCENDING), (instant, DESCENDING)],
            name=_MISSES,
            partialFilterExpression={"sla_success": False},
        )
    # The reports read by completed_at, as expiry does.
    _ensure_ttl_index(assignments, "completed_at", ttl_s, again=again)
    # Verdicts are read by verdict_at; those not written by rts have completed_at only.
    _ensure_index(database[TASKS], [("verdict_at", ASCENDING), ("completed_at", ASCENDING)])
    # A task that never ends has no completed_at, and must expire as well.
    _ensure_ttl_index(database[TASKS], "arrival", ttl_s, again=again)
    _ensure_ttl_index(database[ROLLUPS], "start", ttl_s, again=again)


def _ensure_ours(collection: Collection[Document], fields: set[str]) -> None:
    """Raise :class:`OperationFailure` if *collection* holds the documents of another app,
    which MongoDB would delete once they had a time to live.
    """
    first = collection.find_one({}, dict.fromkeys(fields, 1))
    if first is None or fields & first.keys():
        return
    if _MISSES not in collection.index_information():  # else somebody added that one
        raise OperationFailure(
            f"{collection.name} holds documents that are not of rts, such as one with the _id "
            f"{str(first['_id'])[:80]}. Name a database of its own in rts_mongo_url"
        )


def _ensure_index(
    collection: Collection[Document], keys: list[tuple[str, int]], **options: Any
) -> None:
    """Index *keys*, unless somebody has done so under another name."""
    try:
        collection.create_index(keys, **options)
    except OperationFailure as exc:
        if exc.code != _INDEX_OPTIONS_CONFLICT:
            raise


def _ensure_ttl_index(
    collection: Collection[Document], field: str, ttl_s: float, *, again: bool
) -> None:
    """Index *field* so that documents expire *ttl_s* seconds after it (0: never)."""
    name = f"{field}_1"
    options: dict[str, Any] = (
        {"expireAfterSeconds": max(1, int(min(ttl_s, MAX_TTL_S)))} if ttl_s else {}
    )
    try:
        collection.create_index([(field, ASCENDING)], name=name, **options)
    except OperationFailure as exc:
        if exc.code not in (_INDEX_OPTIONS_CONFLICT, _INDEX_KEYS_CONFLICT):
            raise
        if again:
            return
        # By its keys: it may exist under another name.
        keys, command = {field: ASCENDING}, collection.database.command
        if options:
            try:
                command("collMod", collection.name, index={"keyPattern": keys, **options})
                return
            except OperationFailure:
                pass  # readWrite does not include it, and before MongoDB 5.1 it cannot add one
        # Also since collMod can change a time to live, but not remove it.
        command("dropIndexes", collection.name, index=keys)
        collection.create_index([(field, ASCENDING)], name=name, **options)
