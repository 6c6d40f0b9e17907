"""The interfaces between the parts of rts: what one needs of another, and no more."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rts.records import Execution, Learned, OutboxEntry


@dataclass(frozen=True, slots=True)
class TauEntry:
    """What is known about the runtime of a type, or of one task name in it."""

    #: The EMA of successful runs, seconds.
    tau: float
    #: Successful runs learned.
    count: int
    #: EMA of |actual − tau before that run|, seconds.
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
    """Where the lifecycle sends the ends of runs. Never raises, waits for no server."""

    def ended(self, execution: Execution) -> None:
        """Take the end of a run, or of a task that never ran."""

    def ended_line(self, line: bytes) -> None:
        """Take the end of a run that is serialized already: its JSON and a newline."""


class Ledger(Protocol):
    """The durable record. Writing an entry twice changes nothing.

    Raises :class:`rts.errors.StoreUnavailable` where the server is away; nothing may be
    acknowledged then.
    """

    def write(self, entries: Sequence[OutboxEntry]) -> set[str]:
        """Store the entries' verdicts; return the ids of the entries that end a task again,
        after another run has ended it by itself. An error other than
        :class:`~rts.errors.StoreUnavailable` is about one of the entries.
        """

    def ended(self, task_ids: Collection[str]) -> set[str]:
        """Return those of the tasks that have ended."""

    def provisional(self, task_ids: Collection[str]) -> set[str]:
        """Return those of the tasks whose verdict is provisional: lost, killed, …."""

    def self_ended(self, run_ids: Collection[str]) -> set[str]:
        """Return those of the runs that have ended by themselves."""

    def refuse(self, raw: object, reason: str = "") -> None:
        """Keep an entry that cannot be stored, for inspection."""

    def save_taus(self, entries: Mapping[str, TauEntry]) -> None:
        """Store a snapshot of the taus, replacing the previous one."""

    def load_taus(self) -> Mapping[str, TauEntry]:
        """Return the last snapshot, empty where there is none."""
