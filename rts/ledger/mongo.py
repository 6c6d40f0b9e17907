"""The ledger in MongoDB: ``tasks``, ``assignments``, the tau snapshot and refusals.

Used by the process that drains, never by one that runs tasks: it imports pymongo.

A record is inserted; only one whose ``_id`` is there already goes the slow way:
read, merge (:mod:`rts.ledger.merging`), and replace if nobody else did in the
meantime (``_rev``), else again. The end of a task that was found overdue, of which a
backlog has many, takes the place of that verdict at once. Several drains may write the
same records at once. Assignments are written before tasks, so that who sees a verdict
can see the run that it is about.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as SomeIds
from datetime import datetime, timezone
from typing import Any

from bson.codec_options import CodecOptions
from bson.datetime_ms import DatetimeMS
from pymongo import MongoClient, ReplaceOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, OperationFailure

from rts.errors import StoreUnavailable
from rts.keys import ASSIGNMENTS, REFUSED, TASKS, TAU_SNAPSHOT
from rts.ledger.connection import AWAY, connect, database_of, unavailable
from rts.ledger.documents import Document, documents, milliseconds
from rts.ledger.merging import ends_again, merge_assignments, merge_tasks, settle, triple
from rts.ledger.rollups import LATE_S, forget
from rts.ledger.schema import prepare
from rts.ledger.storable import text
from rts.ports import TauEntry
from rts.records import GIVEN, LOST, OVERDUE_AFTER_S, PENDING, STARTED, OutboxEntry
from rts.settings import Settings

#: Characters of a refused entry that are kept.
REFUSED_TEXT = 16384

#: Rounds of read, merge and replace. Each is lost only to a drain that won its
#: own, and no two drains have many records in common.
MAX_ROUNDS = 20

_DUPLICATE_KEY = 11000

_AWARE: CodecOptions[Document] = CodecOptions(tz_aware=True)


class MongoLedger:
    """Implements :class:`rts.ports.Ledger` on a MongoDB server or replica set.

    *client* is made from ``settings.mongo_url`` unless given. The first call that
    reaches the server makes the indexes. Safe to share between threads, not
    across a fork.
    """

    def __init__(
        self, settings: Settings, client: MongoClient[dict[str, Any]] | None = None
    ) -> None:
        self._ttl_s = settings.ledger_ttl
        self._client = connect(settings.mongo_url) if client is None else client
        self._own_client = client is None
        self.database = database_of(self._client)
        self._tasks: Collection[Document] = self.database[TASKS]
        self._assignments: Collection[Document] = self.database[ASSIGNMENTS]
        self._prepared = False
        self._lock = threading.Lock()

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        """Store the entries' verdicts; writing one twice changes nothing. Returns the ids of
        the entries that end a task once more, which another run has ended by itself.

        Raises:
            StoreUnavailable: the server is away; nothing may be acknowledged.
            Exception: another error of the driver is about one of the entries;
                some of the others may have been stored, which does no harm.
        """
        again: set[str] = set()
        if not entries:
            return again
        tasks: dict[str, Document] = {}
        assignments: dict[str, Document] = {}
        for entry in entries:
            task, assignment = documents(entry, _at)
            key = task["_id"]
            if key in tasks:
                before, new = _mergeable(tasks[key]), _mergeable(task)
                if ends_again(before, new):
                    again.add(entry.entry_id)
                task = merge_tasks(before, new)
            tasks[key] = task
            if assignment is not None:
                key = assignment["_id"]
                if key in assignments:
                    assignment = merge_assignments(
                        _mergeable(assignments[key]), _mergeable(assignment)
                    )
                assignments[key] = assignment
        with unavailable():
            self.prepare()
            if assignments:
                _store(self._assignments, assignments, merge_assignments, _insert)
                self._settle(list({a["task_id"] for a in assignments.values()}))
            stored = _store(self._tasks, tasks, merge_tasks, _end_late)
        if stored:
            for entry in entries:
                for before in stored.get(text(entry.execution.task_id), ()):
                    if ends_again(before, _mergeable(documents(entry, _at)[0])):
                        again.add(entry.entry_id)
        return again

    def ended(self, task_ids: SomeIds[str]) -> set[str]:
        """Return those of the tasks that have ended.

        Raises:
            StoreUnavailable: the server is away.
        """
        query = {"_id": {"$in": list(task_ids)}, "completed_at": {"$ne": None}}
        with unavailable():
            return {task["_id"] for task in self._tasks.find(query, {"_id": 1})}

    def given(self, task_ids: SomeIds[str]) -> set[str]:
        """Return those of the tasks whose verdict was given for them: lost, killed, ….

        Raises:
            StoreUnavailable: the server is away.
        """
        query = {
            "_id": {"$in": list(task_ids)},
            "completed_at": {"$ne": None},
            "$or": [{"state": LOST}, {"cause": {"$in": sorted(GIVEN)}}],
        }
        with unavailable():
            return {task["_id"] for task in self._tasks.find(query, {"_id": 1})}

    def self_ended(self, run_ids: SomeIds[str]) -> set[str]:
        """Return those of the runs that have ended by themselves.

        Raises:
            StoreUnavailable: the server is away.
        """
        query = {
            "_id": {"$in": list(run_ids)},
            "completed_at": {"$ne": None},
            "state": {"$ne": LOST},
            "cause": {"$nin": sorted(GIVEN)},
        }
        with unavailable():
            return {run["_id"] for run in self._assignments.find(query, {"_id": 1})}

    def _settle(self, task_ids: list[str]) -> None:
        """Join ends without a start to their runs, among these tasks.

        Whoever writes the second of the two, run or end, sees both here.
        """
        ends = self._assignments.find({"_nostart": True, "task_id": {"$in": task_ids}})
        for same in {triple(end) for end in ends}:
            names = ("task_id", "retries", "instance")
            for _ in range(MAX_ROUNDS):
                group = list(self._assignments.find(dict(zip(names, same, strict=True))))
                replacement, removed = settle(group)
                if replacement is None:
                    break
                stored = next(d for d in group if d["_id"] == replacement["_id"])
                if _replace(self._assignments, [(stored, replacement)]):
                    break
            else:
                raise StoreUnavailable("the same run is written by too many at once")
            if removed:
                self._assignments.delete_many({"_id": {"$in": removed}})
                _forget(self._assignments, group)

    def refuse(self, raw: object, reason: str = "") -> None:
        """Keep an entry that could not be understood, for a person to look at.

        Raises:
            StoreUnavailable: the server is away.
        """
        with unavailable():
            self.prepare()
            self.database[REFUSED].insert_one(
                {
                    "refused_at": datetime.now(timezone.utc),
                    "reason": text(reason),
                    "raw": text(raw, REFUSED_TEXT),
                }
            )

    def save_taus(self, entries: Mapping[str, TauEntry]) -> None:
        """Keep a snapshot of the taus, replacing the one before.

        Fields that are gone are removed after the others were written: a reader
        in between sees too many, never too few.

        Raises:
            StoreUnavailable: the server is away.
        """
        with unavailable():
            self.prepare()
            snapshot: Collection[Document] = self.database[TAU_SNAPSHOT]
            if entries:
                snapshot.bulk_write(
                    [
                        ReplaceOne(
                            {"_id": field},
                            {"tau": e.tau, "count": e.count, "deviation": e.deviation},
                            upsert=True,
                        )
                        for field, e in entries.items()
                    ],
                    ordered=False,
                )
            snapshot.delete_many({"_id": {"$nin": list(entries)}})

    def load_taus(self) -> Mapping[str, TauEntry]:
        """Return the last snapshot, empty where there is none.

        Raises:
            StoreUnavailable: the server is away.
        """
        found = {}
        with unavailable():
            for d in self.database[TAU_SNAPSHOT].find():
                try:
                    entry = TauEntry(float(d["tau"]), int(d["count"]), float(d["deviation"]))
                except (TypeError, ValueError, KeyError, OverflowError):
                    continue  # by other hands: the others are not lost for it
                if isinstance(d["_id"], str):
                    found[d["_id"]] = entry
        return found

    def prepare(self) -> None:
        """Make the indexes and the capped collection, once per object.

        Building an index does not block readers or writers (MongoDB ≥ 4.2).

        Raises:
            StoreUnavailable: the server is away, or what somebody else has made there is in
                the way.
        """
        with self._lock:
            if self._prepared:
                return
            with unavailable():
                try:
                    prepare(self.database, self._ttl_s)
                except OperationFailure as exc:
                    if exc.code in AWAY:
                        raise
                    # No record is at fault.
                    raise StoreUnavailable(
                        "collections and indexes cannot be made in the database "
                        f"{self.database.name}: {str(exc).partition(', full error')[0][:500]}"
                    ) from exc
            self._prepared = True

    def close(self) -> None:
        """Close the connections, unless the client was given."""
        if self._own_client:
            self._client.close()


#: Stores documents; returns the ids of those that it leaves to be merged.
_Write = Callable[[Collection[Document], Iterable[Document]], list[str]]


def _store(
    collection: Collection[Document],
    new: dict[str, Document],
    merge: Callable[[Document, Document], Document],
    write: _Write,
) -> dict[str, list[Document]]:
    """Write documents; merge those into what is stored that are there already. Returns
    what was there, by id, as it was found in each round.
    """
    left = write(collection, new.values())
    _forget_late(collection, new.values())
    found: dict[str, list[Document]] = {}
    for _ in range(MAX_ROUNDS):
        if not left:
            return found
        new = {**new, **{key: _mergeable(new[key]) for key in left}}
        stored = {d["_id"]: d for d in collection.find({"_id": {"$in": left}})}
        changes = []
        for key, before in stored.items():
            found.setdefault(key, []).append(before)
            after = merge(before, new[key])
            if after is not before:
                changes.append((before, after))
        again = changes and not _replace(collection, changes)
        # Whether it changed or not: an attempt before may have died in between.
        pairs = [(stored[key], new[key]) for key in stored]
        _forget(collection, (document for pair in pairs for document in pair))
        # Expired between our insert and our look: new again.
        left = _insert(collection, [new[key] for key in left if key not in stored])
        if again:
            left += [before["_id"] for before, _ in changes]
    raise StoreUnavailable("the same records are written by too many at once")


def _at(at: float | None) -> DatetimeMS | None:
    """Return an instant as the driver writes it at a third of a datetime's cost."""
    ms = milliseconds(at)
    return None if ms is None else DatetimeMS(ms)


def _mergeable(document: Document) -> Document:
    """Return a document with its instants as those are that were read."""
    return {
        key: value.as_datetime(_AWARE) if isinstance(value, DatetimeMS) else value
        for key, value in document.items()
    }


def _forget(collection: Collection[Document], changed: Iterable[Document]) -> None:
    """Forget the sums that the reports keep of the time of these ends and verdicts."""
    instants = map(_told_at, changed)
    seconds = [_milliseconds(at) / 1000 for at in instants if at is not None]
    forget(collection.database, collection.name, seconds)


def _forget_late(collection: Collection[Document], added: Iterable[Document]) -> None:
    """Do so for those that were added long after their end or verdict."""
    limit_ms = (time.time() - LATE_S) * 1000
    late = []
    for document in added:
        at = _told_at(document)
        if at is not None and _milliseconds(at) < limit_ms:
            late.append(document)
    if late:
        _forget(collection, late)


def _told_at(document: Document) -> Any:
    """Return the instant under which the reports count a document."""
    return document.get("verdict_at") or document.get("completed_at")


def _milliseconds(at: DatetimeMS | datetime) -> float:
    return int(at) if isinstance(at, DatetimeMS) else at.timestamp() * 1000


def _insert(collection: Collection[Document], new: Iterable[Document]) -> list[str]:
    """Insert what is not there; return the ids of what is."""
    new = list(new)
    if not new:
        return []
    try:
        collection.insert_many(new, ordered=False)
    except BulkWriteError as exc:
        errors = exc.details["writeErrors"]
        _raise_unless_duplicates(exc)
        return [new[error["index"]]["_id"] for error in errors]
    return []


def _end_late(collection: Collection[Document], tasks: Iterable[Document]) -> list[str]:
    """Write tasks; an end that comes after the task was found overdue goes in the place
    of that verdict. Returns the ids of what else is there.

    That is what :func:`merge_tasks` makes of the two.
    """
    new = {task["_id"]: task for task in tasks}
    late = [key for key, task in new.items() if (task["lateness_s"] or 0.0) > OVERDUE_AFTER_S]
    left: list[str] = []
    if late:
        query = {"_id": {"$in": late}, "state": {"$in": [PENDING, STARTED]}, "_rev": None}
        overdue = list(collection.find(query, {"verdict_at": 1}))
        changes = [(old, {**new.pop(old["_id"]), "_overdue": True}) for old in overdue]
        if changes and not _replace(collection, changes):
            # Another drain has changed one; to merge the others again is harmless.
            left = [old["_id"] for old in overdue]
        _forget(collection, (document for pair in changes for document in pair))
    return left + _insert(collection, new.values())


def _raise_unless_duplicates(exc: BulkWriteError) -> None:
    codes = [error.get("code") for error in exc.details.get("writeErrors", ())]
    concerns = exc.details.get("writeConcernErrors", ())
    if concerns or AWAY.intersection(codes):
        raise StoreUnavailable("MongoDB did not take the records") from exc
    if any(code != _DUPLICATE_KEY for code in codes):
        raise exc
    for error in exc.details.get("writeErrors", ()):
        if set(error.get("keyPattern", {"_id": 1})) != {"_id"}:
            raise exc  # a unique index that somebody has made


def _replace(
    collection: Collection[Document], changes: Sequence[tuple[Document, Document]]
) -> bool:
    """Replace each first document by the second; False if one had changed meanwhile."""
    operations = []
    for before, after in changes:
        revision = before.get("_rev")
        after["_rev"] = (revision or 0) + 1
        # No ``_rev`` yet: ``None`` matches a field that is missing.
        operations.append(ReplaceOne({"_id": before["_id"], "_rev": revision}, after))
    try:
        result = collection.bulk_write(operations, ordered=False)
    except BulkWriteError as exc:
        _raise_unless_duplicates(exc)
        return False
    return result.matched_count == len(operations)
