"""The seams of rts: what one part needs of another, and nothing more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rts.records import Execution, Learned, OpenTask, OutboxEntry


@dataclass(frozen=True, slots=True)
class TauEntry:
    """What is known about the runtime of a type, or of one task name in it."""

    #: The EMA of successful runs, seconds.
    tau: float
    #: Successful runs learned.
    count: int
    #: EMA of |actual − tau before it|, seconds.
    deviation: float


class TauStore(Protocol):
    """Learned runtimes. Fields are ``type`` or ``type/task.name``.

    Raises :class:`rts.errors.StoreUnavailable` where a server does not answer.
    """

    def get(self, task_type: str, name: str | None = None) -> float:
        """Return tau in seconds: the name's once it has enough runs, else the type's."""

    def update(self, task_type: str, name: str, actual_s: float) -> Learned:
        """Learn one successful run, atomically for the type and for the name."""

    def set(self, field: str, tau_s: float) -> None:
        """Set a tau by hand, as the new starting point of its EMA."""

    def reset(self, field: str | None = None) -> None:
        """Forget one field, or everything, back to the defaults."""

    def entries(self) -> Mapping[str, TauEntry]:
        """Return all that was learned, by field."""


class RunSink(Protocol):
    """Where the lifecycle hands the ends of runs. Never raises, waits for no server."""

    def ended(self, execution: Execution) -> None:
        """Take the end of a run, or of a task that never ran."""

    def line(self, line: bytes) -> None:
        """Take the end of a run that is written already: its JSON and a line's end."""


class Announcements(Protocol):
    """Where published tasks are noted. Never raises, waits for no server."""

    def note(self, task: OpenTask, *, again: bool = False) -> None:
        """Note a task that was published, or received from a producer without rts; *again*:
        in the place of another one of its id, which has not ended.
        """


class NoteBook(Protocol):
    """Where runs are noted while they go on. Shared by the processes of a worker."""

    def put(self, note: bytes) -> int | None:
        """Note that a run begins, as JSON; returns its slot, ``None``: there was no room."""

    def clear(self, slot: int) -> None:
        """Note that the run in *slot* has ended."""

    def take(self, task_id: str) -> Execution | None:
        """Return, and forget, the note of a run that was broken off."""


class Acknowledgements(Protocol):
    """What was acknowledged last. Shared by the processes of a worker."""

    def put(self, attributes: Mapping[str, Any]) -> None:
        """Note that the task of a message with these attributes is acknowledged now."""

    def take(self, task_id: str) -> dict[str, Any] | None:
        """Return the attributes that are kept of a task, and forget them."""


class Ledger(Protocol):
    """The durable record. Writing an entry twice changes nothing."""

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        """Store the entries' verdicts; return the ids of the entries that end a task once
        more, which another run has ended by itself. Any other error is about one of the
        entries.

        Raises:
            StoreUnavailable: the server is away; nothing may be acknowledged.
        """

    def given(self, task_ids: Collection[str]) -> set[str]:
        """Return those of the tasks whose verdict was given for them: lost, killed, ….

        Raises:
            StoreUnavailable: the server is away.
        """

    def self_ended(self, run_ids: Collection[str]) -> set[str]:
        """Return those of the runs that have ended by themselves.

        Raises:
            StoreUnavailable: the server is away.
        """

    def refuse(self, raw: object, reason: str = "") -> None:
        """Keep an entry that cannot be stored, for a person to look at."""

    def save_taus(self, entries: Mapping[str, TauEntry]) -> None:
        """Keep a snapshot of the taus, replacing the one before."""

    def load_taus(self) -> Mapping[str, TauEntry]:
        """Return the last snapshot, empty where there is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read of the outbox gave."""

    entries: Sequence[OutboxEntry]
    #: Entry id and raw text of what could not be understood.
    unreadable: Sequence[tuple[str, str]] = ()


class Outbox(Protocol):
    """Finished executions on their way to the ledger; at-least-once.

    Raises :class:`rts.errors.StoreUnavailable` where the server does not answer.
    """

    def read(self, limit: int) -> Batch:
        """Return up to *limit* entries, those that a dead reader left first."""

    def done(
        self,
        entry_ids: Iterable[str],
        beside: Collection[str] = (),
        known: Collection[str] = (),
    ) -> None:
        """Forget entries that are in the ledger. Those *beside* have no say there: the
        task has another verdict, or none yet. Those of *known* do not even tell of a run
        that was not told of.
        """
