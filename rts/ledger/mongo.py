"""The ledger in MongoDB: ``tasks``, ``assignments``, the tau snapshot and refused entries.

Used by the process that drains, never by one that runs tasks: it imports pymongo.

Assignments are written before tasks, so that whoever sees a verdict can see its run. How
they are written: :mod:`rts.ledger.writes`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone

from pymongo import ReadPreference, ReplaceOne
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from rts.errors import StoreUnavailable
from rts.fields import text
from rts.keys import ASSIGNMENTS, REFUSED, TASKS, TAU_SNAPSHOT
from rts.ledger.connection import UNAVAILABLE, connect, translate_outages
from rts.ledger.documents import Document, documents
from rts.ledger.merging import ends_again, merge_assignments, merge_tasks
from rts.ledger.schema import prepare
from rts.ledger.writes import insert, mergeable, replace_overdue_or_insert, store
from rts.ports import TauEntry
from rts.records import LOST, PROVISIONAL_CAUSES, OutboxEntry
from rts.settings import Settings

#: Seconds between checks that the indexes exist: somebody may have dropped the database,
#: or restored it from a copy without them.
PREPARE_S = 300.0

#: Conditions of which the documents of provisional ends meet one (see ``is_provisional``).
_PROVISIONAL = [{"state": LOST}, {"cause": {"$in": list(PROVISIONAL_CAUSES)}}]

#: Characters of a refused entry that are kept.
REFUSED_TEXT = 16384


class MongoLedger:
    """Implements :class:`rts.ports.Ledger` on a MongoDB server or replica set.

    The first call that reaches the server creates the indexes; every five minutes, one
    recreates those that are gone. Thread-safe, but not to be used across a fork. Each call
    raises :class:`StoreUnavailable` if the server is unavailable.

    Raises:
        PyMongoError: rts_mongo_url cannot be used.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ttl_s = settings.ledger_ttl
        #: Read from the primary, though the URL may say otherwise for reports: records are
        #: merged with what is stored, which a secondary may not have yet.
        self.database = connect(settings.mongo_url).with_options(
            read_preference=ReadPreference.PRIMARY
        )
        self._tasks: Collection[Document] = self.database[TASKS]
        self._assignments: Collection[Document] = self.database[ASSIGNMENTS]
        #: Monotonic instant at which the indexes were last checked; ``None``: not yet.
        self._prepared_at: float | None = None
        self._lock = threading.Lock()

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        """See :class:`rts.ports.Ledger`. If one of the entries is at fault, some of the others
        may have been stored, which does no harm.
        """
        if not entries:
            return set()
        tasks, assignments, again = _merged(entries)
        with translate_outages():
            self.prepare()
            store(self._assignments, assignments, merge_assignments, insert)
            stored = store(self._tasks, tasks, merge_tasks, replace_overdue_or_insert)
        if stored:
            again |= {
                entry.entry_id
                for entry in entries
                for before in stored.get(text(entry.execution.task_id), ())
                if ends_again(before, mergeable(documents(entry)[0]))
            }
        return again

    def ended(self, task_ids: Iterable[str]) -> set[str]:
        """Return those of the tasks that have ended."""
        return self._ended(self._tasks, task_ids, {})

    def provisional(self, task_ids: Iterable[str]) -> set[str]:
        """Return those of the tasks whose verdict is provisional: lost, killed, …."""
        return self._ended(self._tasks, task_ids, {"$or": _PROVISIONAL})

    def self_ended(self, run_ids: Iterable[str]) -> set[str]:
        """Return those of the runs that wrote their own end."""
        return self._ended(self._assignments, run_ids, {"$nor": _PROVISIONAL})

    def _ended(
        self, collection: Collection[Document], ids: Iterable[str], more: Document
    ) -> set[str]:
        """Return the ids of those documents that have ended and match *more*."""
        query = {"_id": {"$in": list(ids)}, "completed_at": {"$ne": None}, **more}
        with translate_outages():
            return {document["_id"] for document in collection.find(query, {"_id": 1})}

    def refuse(self, raw: object, reason: str = "") -> None:
        """Set aside an entry that cannot be read or stored, for a person to look at."""
        with translate_outages():
            self.prepare()
            self.database[REFUSED].insert_one(
                {
                    "refused_at": datetime.now(timezone.utc),
                    "reason": text(reason),
                    "raw": text(raw, REFUSED_TEXT),
                }
            )

    def save_taus(self, entries: Mapping[str, TauEntry]) -> None:
        """Save a snapshot of the taus, replacing the previous one.

        Fields that are gone are removed after the others were written: a reader
        in between sees too many, never too few.
        """
        with translate_outages():
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
        """Return the last snapshot, empty if there is none."""
        found = {}
        with translate_outages():
            for d in self.database[TAU_SNAPSHOT].find():
                try:
                    entry = TauEntry(float(d["tau"]), int(d["count"]), float(d["deviation"]))
                except (TypeError, ValueError, KeyError, OverflowError):
                    continue  # not written by rts: skip it, and keep the others
                if isinstance(d["_id"], str):
                    found[d["_id"]] = entry
        return found

    def prepare(self) -> None:
        """Create the indexes and the capped collection, unless this object did so lately.

        Building an index does not block readers or writers (MongoDB ≥ 4.2).

        Raises:
            StoreUnavailable: the server is unavailable, or has collections or indexes that
                conflict with them.
        """
        with self._lock:
            at, now = self._prepared_at, self._now()
            if at is not None and now < at + PREPARE_S:
                return
            with translate_outages():
                try:
                    prepare(self.database, self._ttl_s, again=at is not None)
                except OperationFailure as exc:
                    if exc.code in UNAVAILABLE:
                        raise
                    # No record is at fault.
                    raise StoreUnavailable(
                        "collections and indexes cannot be created in the database "
                        f"{self.database.name}: {str(exc).partition(', full error')[0][:500]}"
                    ) from exc
            self._prepared_at = now

    def close(self) -> None:
        """Close the connections."""
        self.database.client.close()


def _merged(
    entries: Sequence[OutboxEntry],
) -> tuple[dict[str, Document], dict[str, Document], set[str]]:
    """Return the tasks and assignments of *entries* by id, and the ids of the entries that end
    a task which an earlier one of them has ended by itself.
    """
    tasks: dict[str, Document] = {}
    assignments: dict[str, Document] = {}
    again: set[str] = set()
    for entry in entries:
        task, assignment = documents(entry)
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
    return tasks, assignments, again
