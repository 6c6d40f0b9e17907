"""The ledgers in memory and on a real MongoDB, and records to write into them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Protocol

from rts.ledger.documents import Document
from rts.ledger.mongo import MongoLedger
from rts.records import Execution, Learned, OutboxEntry
from rts.settings import Settings
from tests.memory_ledger import MemoryLedger
from tests.records import run as run_of

#: Whole seconds, so that arithmetic on instants is exact.
R = 1_900_000_000.0
UTC = timezone.utc


def execution(**changes: Any) -> Execution:
    """Return a run that succeeds 3 s after its arrival, 7 s before its deadline."""
    defaults: dict[str, Any] = {
        **run_of("t")._asdict(),
        "arrival": R,
        "deadline": R + 10,
        "queue": "celery",
        "root_id": "t",
        "worker": "celery@a",
        "instance": "celery@a:1:1",
        "pid": 42,
        "started_at": R + 1,
        "load_at_start": {"load": 0.5, "cpu": 0.25, "memory": 0.75, "age_s": 0.125},
        "completed_at": R + 3,
        "runtime_s": 2.0,
        "cpu_s": 1.5,
        "max_rss_bytes": 50_000_000,
        "state": "SUCCESS",
    }
    values = {**defaults, **changes}
    if "run_id" not in changes:
        start = values["started_at"]
        moment = "-" if start is None else f"{start * 1e6:.0f}"
        who = values["pid"] or values["instance"]
        values["run_id"] = f"{values['task_id']}:{values['retries']}:{who}:{moment}"
    return Execution(**values)


def retried(**changes: Any) -> Execution:
    return execution(**{"state": "RETRY", "cause": None, **changes})


def failed(**changes: Any) -> Execution:
    return execution(**{"state": "FAILURE", **changes})


def lost(**changes: Any) -> Execution:
    """Return a run whose worker vanished; its note tells of the start."""
    return execution(
        **{
            "state": "LOST",
            "cause": "lost",
            "runtime_s": None,
            "cpu_s": None,
            "max_rss_bytes": None,
            "completed_at": R + 60,
            **changes,
        }
    )


def killed(**changes: Any) -> Execution:
    """Return a run that was killed; the main process wrote its end, by its note."""
    end = {"state": "FAILURE", "cause": "killed", "completed_at": R + 4, "runtime_s": 3.0}
    return lost(**{**end, **changes})


def never_run(**changes: Any) -> Execution:
    """Return the end of a task of which no run was started."""
    return lost(**{"started_at": None, "load_at_start": None, "ran": False, **changes})


def overdue(**changes: Any) -> Execution:
    """Return the verdict on a task that has not ended by its deadline."""
    values = {"state": "PENDING", "started_at": None, "pid": None, "worker": "", **changes}
    if values["state"] == "PENDING":
        values["instance"] = ""
    never = {"completed_at": None, "runtime_s": None, "cpu_s": None, "max_rss_bytes": None}
    verdict = {"cause": "overdue", "load_at_start": None, "ran": False}
    return execution(**never, **verdict, **values)


def entry(run: Execution, learned: Learned | None = None, number: int = 1) -> OutboxEntry:
    return OutboxEntry(f"{number}-0", run, learned)


class Subject(Protocol):
    """A ledger and a way to look into it."""

    ledger: MemoryLedger | MongoLedger

    def documents(self) -> tuple[list[Document], list[Document]]:
        """Return all tasks and all assignments, by ``_id``, private fields left out."""


def public(found: list[Document]) -> list[Document]:
    """Return documents without what only the store needs, and what tells the order in which
    their records came.
    """
    found = [{k: v for k, v in d.items() if k not in ("_rev", "_ended")} for d in found]
    return sorted(found, key=lambda d: d["_id"])


class InMemory:
    def __init__(self) -> None:
        self.ledger = MemoryLedger()

    def documents(self) -> tuple[list[Document], list[Document]]:
        return (
            public(list(self.ledger.tasks.values())),
            public(list(self.ledger.assignments.values())),
        )


class OnMongo:
    def __init__(self, url: str) -> None:
        self.ledger = MongoLedger(Settings(mongo_url=url, ledger_ttl=0))

    def documents(self) -> tuple[list[Document], list[Document]]:
        database = self.ledger.database
        return public(list(database.tasks.find())), public(list(database.assignments.find()))


def written(subject: Subject, *runs: Execution) -> tuple[Document, list[Document]]:
    """Write each run in a batch of its own; return the one task and its assignments."""
    for run in runs:
        subject.ledger.write([entry(run)])
    tasks, assignments = subject.documents()
    assert len(tasks) == 1
    return tasks[0], assignments


def at(second: float) -> datetime:
    return datetime.fromtimestamp(R + second, UTC)
