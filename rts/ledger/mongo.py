"""The ledger in MongoDB: ``tasks``, ``assignments``, the tau snapshot and refusals.

Used by the process that drains, never by one that runs tasks: it imports pymongo.

Assignments are written before tasks, so that who sees a verdict can see the run that it
is about. How they are written: :mod:`rts.ledger.writes`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as SomeIds
from datetime import datetime, timezone

from pymongo import ReplaceOne
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from rts.errors import StoreUnavailable
from rts.keys import ASSIGNMENTS, REFUSED, TASKS, TAU_SNAPSHOT
from rts.ledger.connection import AWAY, connect, database_of, unavailable
from rts.ledger.documents import Document, documents
from rts.ledger.merging import ends_again, merge_assignments, merge_tasks, settle, triple
from rts.ledger.schema import prepare
from rts.ledger.storable import text
from rts.ledger.writes import (
    MAX_ROUNDS,
    end_late,
    forget_sums,
    insert,
    instant_of,
    mergeable,
    replace,
    store,
)
from rts.ports import TauEntry
from rts.records import LOST, PROVISIONAL_CAUSES, OutboxEntry
from rts.settings import Settings

#: Seconds after which the indexes are made again, should they be gone: somebody has dropped
#: the database, or restored it from a copy without them.
PREPARE_S = 300.0

#: Characters of a refused entry that are kept.
REFUSED_TEXT = 16384


class MongoLedger:
    """Implements :class:`rts.ports.Ledger` on a MongoDB server or replica set.

    The first call that reaches the server makes the indexes; one in five minutes makes
    those that are gone. Safe to share between threads, not across a fork.

    Raises:
        PyMongoError: rts_mongo_url cannot be used.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ttl_s = settings.ledger_ttl
        self._client = connect(settings.mongo_url)
        self.database = database_of(self._client)
        self._tasks: Collection[Document] = self.database[TASKS]
        self._assignments: Collection[Document] = self.database[ASSIGNMENTS]
        #: When the indexes were made last; ``None``: not yet.
        self._prepared_at: float | None = None
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
            task, assignment = documents(entry, instant_of)
            key = task["_id"]
            if key in tasks:
                before, new = mergeable(tasks[key]), mergeable(task)
                if ends_again(before, new):
                    again.add(entry.entry_id)
                task = merge_tasks(before, new)
            tasks[key] = task
            if assignment is not None:
                key = assignment["_id"]
                if key in assignments:
                    assignment = merge_assignments(
                        mergeable(assignments[key]), mergeable(assignment)
                    )
                assignments[key] = assignment
        with unavailable():
            self.prepare()
            if assignments:
                store(self._assignments, assignments, merge_assignments, insert)
                self._settle(list({a["task_id"] for a in assignments.values()}))
            stored = store(self._tasks, tasks, merge_tasks, end_late)
        if stored:
            for entry in entries:
                for before in stored.get(text(entry.execution.task_id), ()):
                    if ends_again(before, mergeable(documents(entry, instant_of)[0])):
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

    def provisional(self, task_ids: SomeIds[str]) -> set[str]:
        """Return those of the tasks whose verdict was given for them: lost, killed, ….

        Raises:
            StoreUnavailable: the server is away.
        """
        query = {
            "_id": {"$in": list(task_ids)},
            "completed_at": {"$ne": None},
            "$or": [{"state": LOST}, {"cause": {"$in": sorted(PROVISIONAL_CAUSES)}}],
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
            "cause": {"$nin": sorted(PROVISIONAL_CAUSES)},
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
                if replace(self._assignments, [(stored, replacement)]):
                    break
            else:
                raise StoreUnavailable("the same run is written by too many at once")
            if removed:
                self._assignments.delete_many({"_id": {"$in": removed}})
                forget_sums(self._assignments, group)

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
        """Make the indexes and the capped collection, unless this object did so lately.

        Building an index does not block readers or writers (MongoDB ≥ 4.2).

        Raises:
            StoreUnavailable: the server is away, or what somebody else has made there is in
                the way.
        """
        with self._lock:
            at, now = self._prepared_at, self._now()
            if at is not None and now < at + PREPARE_S:
                return
            with unavailable():
                try:
                    prepare(self.database, self._ttl_s, again=at is not None)
                except OperationFailure as exc:
                    if exc.code in AWAY:
                        raise
                    # No record is at fault.
                    raise StoreUnavailable(
                        "collections and indexes cannot be made in the database "
                        f"{self.database.name}: {str(exc).partition(', full error')[0][:500]}"
                    ) from exc
            self._prepared_at = now

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
