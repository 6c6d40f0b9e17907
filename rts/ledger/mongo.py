"""The ledger in MongoDB: ``tasks``, ``assignments``, the tau snapshot and refusals.

Used by the process that drains, never by one that runs tasks: it imports pymongo.

A record is inserted; only one whose ``_id`` is there already goes the slow way:
read, merge (:mod:`rts.ledger.merging`), and replace if nobody else did in the
meantime (``_rev``), else again. Several drains may write the same records at
once. Assignments are written before tasks, so that who sees a verdict can see
the run that it is about.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bson.codec_options import CodecOptions
from pymongo import ASCENDING, MongoClient, ReplaceOne
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    CollectionInvalid,
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)

from rts.errors import StoreUnavailable
from rts.keys import ASSIGNMENTS, REFUSED, ROLLUPS, TASKS, TAU_SNAPSHOT
from rts.ledger.documents import Document, documents, text
from rts.ledger.merging import merge_assignments, merge_tasks, settle, triple
from rts.ledger.rollups import forget
from rts.ports import TauEntry
from rts.records import OutboxEntry
from rts.settings import Settings

#: The database where the URL names none.
DEFAULT_DATABASE = "rts"

#: Client options that hold unless the URL sets them, in milliseconds: a drain
#: that waits keeps its records, so it may wait longer than a task ever would.
CLIENT_OPTIONS: Mapping[str, int] = {
    "serverSelectionTimeoutMS": 2000,
    "connectTimeoutMS": 2000,
    "socketTimeoutMS": 30000,
    "maxPoolSize": 8,
}
#: A majority that does not answer within this is away.
WRITE_TIMEOUT_MS = 10000

#: Bytes of refused entries that are kept; the oldest go first.
REFUSED_BYTES = 16 << 20
#: Characters of a refused entry that are kept.
REFUSED_TEXT = 16384

#: Rounds of read, merge and replace. Each is lost only to a drain that won its
#: own, and no two drains have many records in common.
MAX_ROUNDS = 20

_DUPLICATE_KEY = 11000
_INDEX_OPTIONS_CONFLICT = frozenset({85, 86})
_NAMESPACE_EXISTS = 48
#: Server errors that say nothing about the document: try again later.
#: Not the primary, shutting down, stepping down, interrupted by either:
_AWAY = frozenset({6, 7, 89, 91, 189, 9001, 10058, 10107, 11600, 11601, 11602, 13435, 13436})
#: no right to write (yet), writes blocked, disk full, quota, memory, locks, time:
_AWAY |= {13, 18, 24, 46, 50, 64, 79, 100, 112, 146, 262, 317, 371, 8000, 12501, 14031}


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
        self.database = database_of(self._client, settings.mongo_url)
        self._tasks: Collection[Document] = self.database[TASKS]
        self._assignments: Collection[Document] = self.database[ASSIGNMENTS]
        self._prepared = False
        self._lock = threading.Lock()

    def write(self, entries: Sequence[OutboxEntry]) -> None:
        """Store the entries' verdicts; writing one twice changes nothing.

        Raises:
            StoreUnavailable: the server is away; nothing may be acknowledged.
            Exception: another error of the driver is about one of the entries;
                some of the others may have been stored, which does no harm.
        """
        if not entries:
            return
        tasks: dict[str, Document] = {}
        assignments: dict[str, Document] = {}
        for entry in entries:
            task, assignment = documents(entry)
            key = task["_id"]
            tasks[key] = merge_tasks(tasks[key], task) if key in tasks else task
            if assignment is not None:
                key = assignment["_id"]
                if key in assignments:
                    assignment = merge_assignments(assignments[key], assignment)
                assignments[key] = assignment
        with _unavailable():
            self.prepare()
            if assignments:
                _store(self._assignments, assignments, merge_assignments)
                self._settle(list({a["task_id"] for a in assignments.values()}))
            _store(self._tasks, tasks, merge_tasks)

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

    def refuse(self, raw: object, reason: str = "") -> None:
        """Keep an entry that could not be understood, for a person to look at.

        Raises:
            StoreUnavailable: the server is away.
        """
        with _unavailable():
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
        with _unavailable():
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
        with _unavailable():
            return {
                d["_id"]: TauEntry(float(d["tau"]), int(d["count"]), float(d["deviation"]))
                for d in self.database[TAU_SNAPSHOT].find()
            }

    def prepare(self) -> None:
        """Make the indexes and the capped collection, once per object.

        Building an index does not block readers or writers (MongoDB ≥ 4.2).

        Raises:
            StoreUnavailable: the server is away.
        """
        with self._lock:
            if self._prepared:
                return
            with _unavailable():
                prepare(self.database, self._ttl_s)
            self._prepared = True

    def close(self) -> None:
        """Close the connections, unless the client was given."""
        if self._own_client:
            self._client.close()


def connect(url: str) -> MongoClient[dict[str, Any]]:
    """Return a client for *url*; what the URL does not set is as the ledger needs it.

    Nothing is sent before the first operation. Writes are acknowledged by a
    majority and journalled, because the outbox forgets what was acknowledged.

    Raises:
        pymongo.errors.InvalidURI: the URL is none, or has an option that is not valid.
    """
    given = {key.lower() for key, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    options: dict[str, Any] = {
        key: value for key, value in CLIENT_OPTIONS.items() if key.lower() not in given
    }
    if not given & {"w", "journal", "j", "wtimeoutms", "wtimeout"}:
        options |= {"w": "majority", "journal": True, "wTimeoutMS": WRITE_TIMEOUT_MS}
    if "appname" not in given:
        options["appname"] = "rts"
    try:
        return MongoClient(url, connect=False, tz_aware=True, **options)
    except (PyMongoError, ValueError) as exc:  # the driver's text may show the password
        raise InvalidURI(f"{_hidden(url)} is not valid ({type(exc).__name__})") from None


def _hidden(url: str) -> str:
    return "***@" + url.rpartition("@")[2] if "@" in url else url


def database_of(client: MongoClient[dict[str, Any]], url: str) -> Database[dict[str, Any]]:
    """Return the database that the path of *url* names, reading aware datetimes."""
    name = urlsplit(url).path.strip("/") or DEFAULT_DATABASE
    options: CodecOptions[dict[str, Any]] = client.codec_options.with_options(
        tz_aware=True, tzinfo=timezone.utc
    )
    return client.get_database(name, codec_options=options)


def prepare(database: Database[dict[str, Any]], ttl_s: float) -> None:
    """Make indexes and collections that are not there; safe to repeat and to race."""
    try:
        database.create_collection(REFUSED, capped=True, size=REFUSED_BYTES)
    except (CollectionInvalid, OperationFailure) as exc:
        if isinstance(exc, OperationFailure) and exc.code != _NAMESPACE_EXISTS:
            raise
    assignments = database[ASSIGNMENTS]
    assignments.create_index([("task_id", ASCENDING), ("retries", ASCENDING)])
    # Few runs end without a known start: this index is nearly always empty.
    assignments.create_index(
        [("task_id", ASCENDING)],
        name="nostart",
        partialFilterExpression={"_nostart": True},
    )
    # The reports read by completed_at; so does the removal of what is too old.
    _expiring(assignments, "completed_at", ttl_s)
    database[TASKS].create_index([("completed_at", ASCENDING)])
    # A task that never ends has no completed_at, and must go as well.
    _expiring(database[TASKS], "arrival", ttl_s)
    _expiring(database[ROLLUPS], "start", ttl_s)


def _expiring(collection: Collection[Document], field: str, ttl_s: float) -> None:
    """Index *field*, so that a document goes *ttl_s* seconds after it (0: stays)."""
    name = f"{field}_1"
    options: dict[str, Any] = (
        {"expireAfterSeconds": max(1, int(min(ttl_s, 2**31 - 1)))} if ttl_s else {}
    )
    try:
        collection.create_index([(field, ASCENDING)], name=name, **options)
    except OperationFailure as exc:
        if exc.code not in _INDEX_OPTIONS_CONFLICT:
            raise
        if options:
            collection.database.command(
                "collMod", collection.name, index={"name": name, **options}
            )
        else:  # collMod can change a time to live, but not take it away
            collection.drop_index(name)
            collection.create_index([(field, ASCENDING)], name=name)


def _store(
    collection: Collection[Document],
    new: dict[str, Document],
    merge: Callable[[Document, Document], Document],
) -> None:
    """Insert documents; merge those into what is stored that are there already."""
    left = _insert(collection, new.values())
    for _ in range(MAX_ROUNDS):
        if not left:
            return
        stored = {d["_id"]: d for d in collection.find({"_id": {"$in": left}})}
        changes = []
        for key, before in stored.items():
            after = merge(before, new[key])
            if after is not before:
                changes.append((before, after))
        # Expired between our insert and our look: new again.
        left = _insert(collection, [new[key] for key in left if key not in stored])
        if changes and not _replace(collection, changes):
            left += [before["_id"] for before, _ in changes]
    raise StoreUnavailable("the same records are written by too many at once")


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


def _raise_unless_duplicates(exc: BulkWriteError) -> None:
    codes = [error.get("code") for error in exc.details.get("writeErrors", ())]
    concerns = exc.details.get("writeConcernErrors", ())
    if concerns or _AWAY.intersection(codes):
        raise StoreUnavailable("MongoDB did not take the records") from exc
    if any(code != _DUPLICATE_KEY for code in codes):
        raise exc


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
    ends = [d["completed_at"] for pair in changes for d in pair if "completed_at" in d]
    forget(collection.database, collection.name, ends)
    return result.matched_count == len(operations)


#: A mongodb+srv URL is looked up on the first use; what goes wrong there is a
#: ConfigurationError. InvalidOperation: the client was closed.
_NO_ANSWER = (
    ConnectionFailure,
    ConfigurationError,
    ExecutionTimeout,
    InvalidOperation,
    WTimeoutError,
)


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turn what says "the server is away" into :class:`StoreUnavailable`."""
    try:
        yield
    except _NO_ANSWER as exc:
        raise StoreUnavailable(f"MongoDB does not answer ({type(exc).__name__})") from exc
    except OperationFailure as exc:
        if isinstance(exc, BulkWriteError) or exc.code not in _AWAY:
            raise
        raise StoreUnavailable(f"MongoDB refuses (code {exc.code})") from exc
