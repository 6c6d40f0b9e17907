"""The ledger in memory, with the same rules as in MongoDB, for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from rts.ledger.documents import Document, documents
from rts.ledger.merging import ends_again, merge_assignments, merge_tasks
from rts.ledger.writes import mergeable
from rts.ports import TauEntry
from rts.records import OutboxEntry, is_provisional


class MemoryLedger:
    """A :class:`rts.ports.Ledger` in dicts by ``_id``. Thread-safe."""

    def __init__(self) -> None:
        self.tasks: dict[str, Document] = {}
        self.assignments: dict[str, Document] = {}
        self.refused: list[tuple[object, str]] = []
        self._taus: dict[str, TauEntry] = {}
        self._lock = threading.Lock()

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        """See :class:`rts.ports.Ledger`."""
        again = set()
        with self._lock:
            for entry in entries:
                task, assignment = documents(entry)
                task = mergeable(task)
                if assignment is not None:
                    assignment = mergeable(assignment)
                    _put(self.assignments, assignment, merge_assignments)
                stored = self.tasks.get(task["_id"])
                if stored is not None and ends_again(stored, task):
                    again.add(entry.entry_id)
                _put(self.tasks, task, merge_tasks)
        return again

    def ended(self, task_ids: Collection[str]) -> set[str]:
        """Return those of the tasks that have ended."""
        with self._lock:
            return set(_ended(self.tasks, task_ids))

    def provisional(self, task_ids: Collection[str]) -> set[str]:
        """Return those of the tasks whose verdict is provisional: lost, killed, …."""
        with self._lock:
            return {
                task_id
                for task_id, task in _ended(self.tasks, task_ids).items()
                if is_provisional(task["state"], task["cause"])
            }

    def self_ended(self, run_ids: Collection[str]) -> set[str]:
        """Return those of the runs that wrote their own end."""
        with self._lock:
            return {
                run_id
                for run_id, run in _ended(self.assignments, run_ids).items()
                if not is_provisional(run["state"], run["cause"])
            }

    def refuse(self, raw: object, reason: str = "") -> None:
        """Set aside an entry that cannot be read or stored, for a person to look at."""
        with self._lock:
            self.refused.append((raw, reason))

    def save_taus(self, entries: Mapping[str, TauEntry]) -> None:
        """Save a snapshot of the taus, replacing the previous one."""
        with self._lock:
            self._taus = dict(entries)

    def load_taus(self) -> Mapping[str, TauEntry]:
        """Return the last snapshot, empty if there is none."""
        with self._lock:
            return dict(self._taus)


def _ended(collection: Mapping[str, Document], ids: Collection[str]) -> dict[str, Document]:
    """Return those of the documents that have ended, by id."""
    found = {key: collection[key] for key in ids if key in collection}
    return {key: document for key, document in found.items() if document["completed_at"]}


def _put(
    collection: dict[str, Document],
    new: Document,
    merge: Callable[[Document, Document], Document],
) -> None:
    stored = collection.get(new["_id"])
    collection[new["_id"]] = new if stored is None else merge(stored, new)
