"""Writes to a MongoDB collection into which several drains may write the same records.

A document is inserted. Only if its ``_id`` exists already does it take the slow path:
read, merge (:mod:`rts.ledger.merging`) and replace, with optimistic locking (``_rev``)
and retries. There is one short cut: the end of a task that was found overdue, of which a
backlog has many, replaces that verdict directly.

Every function here raises :class:`rts.errors.StoreUnavailable` if MongoDB is unavailable
or too many others write the same records, and passes on other errors of the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from bson.codec_options import CodecOptions
from bson.datetime_ms import DatetimeMS
from pymongo import ReplaceOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from rts.errors import StoreUnavailable
from rts.ledger.connection import raise_if_unavailable
from rts.ledger.documents import Document
from rts.ledger.rollups import LATE_S, invalidate
from rts.records import OVERDUE_AFTER_S, PENDING, STARTED

#: Rounds of read, merge and replace. A drain loses a round only to another one that wins it,
#: and no two drains have many records in common.
MAX_ROUNDS = 20

_DUPLICATE_KEY = 11000

_AWARE: CodecOptions[Document] = CodecOptions(tz_aware=True)

#: Stores documents; returns the ids of those that are still to be merged.
Write = Callable[[Collection[Document], Iterable[Document]], list[str]]


def store(
    collection: Collection[Document],
    new: dict[str, Document],
    merge: Callable[[Document, Document], Document],
    write: Write,
) -> dict[str, list[Document]]:
    """Write documents; merge those that exist already with what is stored. Return for each of
    these, by id, what was found stored in each round.
    """
    left = write(collection, new.values())
    _invalidate_old(collection, new.values())
    found: dict[str, list[Document]] = {}
    for _ in range(MAX_ROUNDS):
        if not left:
            return found
        new = {key: mergeable(new[key]) for key in left}
        stored = {d["_id"]: d for d in collection.find({"_id": {"$in": left}})}
        changes: list[tuple[Document, Document]] = []
        counted: list[Document] = []
        for key, before in stored.items():
            found.setdefault(key, []).append(before)
            after = merge(before, new[key])
            counted += (before, new[key], after)
            if after is not before:
                changes.append((before, after))
        overtaken = changes and not replace(collection, changes)
        # Whether changed or not: an earlier attempt may have died before this.
        invalidate_sums(collection, counted)
        # What has expired since it was found to exist is new again.
        left = insert(collection, [new[key] for key in left if key not in stored])
        if overtaken:
            left += [before["_id"] for before, _ in changes]
    raise StoreUnavailable("too many drains write the same records at once")


def mergeable(document: Document) -> Document:
    """Return a document with its instants as datetimes, like those that were read."""
    return {
        key: value.as_datetime(_AWARE) if isinstance(value, DatetimeMS) else value
        for key, value in document.items()
    }


def invalidate_sums(collection: Collection[Document], changed: Iterable[Document]) -> None:
    """Drop the sums that the reports store for the time of these ends and verdicts."""
    invalidate(collection.database, collection.name, _counted_at(changed))


def _invalidate_old(collection: Collection[Document], changed: Iterable[Document]) -> None:
    """The same for documents whose end or verdict was long ago."""
    late = time.time() - LATE_S
    instants = [at for at in _counted_at(changed) if at < late]
    invalidate(collection.database, collection.name, instants)


def _counted_at(found: Iterable[Document]) -> Iterator[float]:
    """Yield the epoch seconds under which the reports count documents, where they do."""
    for document in found:
        at = document.get("verdict_at") or document.get("completed_at")
        if at is not None:
            yield int(at) / 1000 if isinstance(at, DatetimeMS) else at.timestamp()


def insert(collection: Collection[Document], new: Iterable[Document]) -> list[str]:
    """Insert new documents; return the ids of those that exist already."""
    new = list(new)
    if not new:
        return []
    try:
        collection.insert_many(new, ordered=False)
    except BulkWriteError as exc:
        raise_if_unavailable(exc)
        errors = exc.details["writeErrors"]
        if not all(map(_exists_already, errors)):
            raise
        return [new[error["index"]]["_id"] for error in errors]
    return []


def replace_overdue_or_insert(
    collection: Collection[Document], tasks: Iterable[Document]
) -> list[str]:
    """Write tasks; an end replaces the verdict of a task that was found overdue, which is
    what :func:`merge_tasks` makes of the two. Return the ids of other existing tasks.
    """
    new = {task["_id"]: task for task in tasks}
    late = [key for key, task in new.items() if (task["lateness_s"] or 0.0) > OVERDUE_AFTER_S]
    left: list[str] = []
    if late:
        query = {"_id": {"$in": late}, "state": {"$in": [PENDING, STARTED]}, "_rev": None}
        overdue = list(collection.find(query, {"verdict_at": 1}))
        changes = [(old, {**new.pop(old["_id"]), "_overdue": True}) for old in overdue]
        if changes and not replace(collection, changes):
            # Another drain has changed one; merging the others again is harmless.
            left = [old["_id"] for old in overdue]
        invalidate_sums(collection, (document for pair in changes for document in pair))
    return left + insert(collection, new.values())


def _exists_already(error: Document) -> bool:
    """Return whether a document was not inserted because of its ``_id``, rather than of a
    unique index that somebody else has created.
    """
    return error["code"] == _DUPLICATE_KEY and set(error.get("keyPattern", ["_id"])) == {"_id"}


def replace(
    collection: Collection[Document], changes: Sequence[tuple[Document, Document]]
) -> bool:
    """Replace each first document by the second; return False if one had changed meanwhile.

    Drops the sums of the first ones if they are old: should this process die before it drops
    those of both, nobody knows any more where these were counted.
    """
    _invalidate_old(collection, (before for before, _ in changes))
    operations = []
    for before, after in changes:
        revision = before.get("_rev")
        after["_rev"] = (revision or 0) + 1
        # Without a ``_rev`` so far: ``None`` matches a missing field.
        operations.append(ReplaceOne({"_id": before["_id"], "_rev": revision}, after))
    result = collection.bulk_write(operations, ordered=False)
    return result.matched_count == len(operations)
