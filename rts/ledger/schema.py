"""Indexes and collections of the ledger."""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import CollectionInvalid, OperationFailure

from rts.keys import ASSIGNMENTS, REFUSED, ROLLUPS, TASKS
from rts.ledger.documents import Document

#: Bytes of refused entries that are kept; the oldest go first.
REFUSED_BYTES = 16 << 20
_INDEX_OPTIONS_CONFLICT, _INDEX_KEYS_CONFLICT = 85, 86
_NAMESPACE_EXISTS = 48
_UNAUTHORIZED = 13


def prepare(database: Database[dict[str, Any]], ttl_s: float, *, again: bool) -> None:
    """Make indexes and collections that are not there; safe to repeat and to race.

    *again*: leave a time to live that somebody has changed since, another drain with other
    settings it may be.
    """
    try:
        database.create_collection(REFUSED, capped=True, size=REFUSED_BYTES)
    except (CollectionInvalid, OperationFailure) as exc:
        if isinstance(exc, OperationFailure) and exc.code != _NAMESPACE_EXISTS:
            raise
    assignments = database[ASSIGNMENTS]
    _indexed(assignments, [("task_id", ASCENDING), ("retries", ASCENDING)])
    # Few runs end without a known start: this index is nearly always empty.
    _indexed(
        assignments,
        [("task_id", ASCENDING)],
        name="nostart",
        partialFilterExpression={"_nostart": True},
    )
    # Misses are rare, and what people look at: the last ones of a type.
    for collection, instant in ((assignments, "completed_at"), (database[TASKS], "verdict_at")):
        _indexed(
            collection,
            [("task_type", ASCENDING), (instant, DESCENDING)],
            name="misses",
            partialFilterExpression={"sla_success": False},
        )
    # The reports read by completed_at; so does the removal of what is too old.
    _expiring(assignments, "completed_at", ttl_s, again=again)
    # Verdicts are read by verdict_at; what other hands wrote has completed_at only.
    _indexed(database[TASKS], [("verdict_at", ASCENDING), ("completed_at", ASCENDING)])
    # A task that never ends has no completed_at, and must go as well.
    _expiring(database[TASKS], "arrival", ttl_s, again=again)
    _expiring(database[ROLLUPS], "start", ttl_s, again=again)


def _indexed(
    collection: Collection[Document], keys: list[tuple[str, int]], **options: Any
) -> None:
    """Index *keys*, unless somebody has done so under another name."""
    try:
        collection.create_index(keys, **options)
    except OperationFailure as exc:
        if exc.code != _INDEX_OPTIONS_CONFLICT:
            raise


def _expiring(
    collection: Collection[Document], field: str, ttl_s: float, *, again: bool
) -> None:
    """Index *field*, so that a document goes *ttl_s* seconds after it (0: stays)."""
    name = f"{field}_1"
    options: dict[str, Any] = (
        {"expireAfterSeconds": max(1, int(min(ttl_s, 2**31 - 1)))} if ttl_s else {}
    )
    try:
        collection.create_index([(field, ASCENDING)], name=name, **options)
    except OperationFailure as exc:
        if exc.code not in (_INDEX_OPTIONS_CONFLICT, _INDEX_KEYS_CONFLICT):
            raise
        if again:
            return
        # By its keys: somebody may have made it under another name.
        keys, command = {field: ASCENDING}, collection.database.command
        if options:
            try:
                command("collMod", collection.name, index={"keyPattern": keys, **options})
                return
            except OperationFailure as denied:
                if denied.code != _UNAUTHORIZED:  # more than the right to read and write
                    raise
        # Also since collMod can change a time to live, but not take it away.
        command("dropIndexes", collection.name, index=keys)
        collection.create_index([(field, ASCENDING)], name=name, **options)
