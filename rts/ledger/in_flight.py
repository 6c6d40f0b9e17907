"""The notes of runs that go on, in Redis: what companions publish there, and what others
read of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from rts.keys import running_field
from rts.ledger.notes import NoteBoard
from rts.ledger.storable import number
from rts.link.link import Link
from rts.link.scripts import pack
from rts.records import Execution
from rts.settings import Settings


class InFlightRuns:
    """Publishes a worker's notes in Redis, for when the whole worker dies.

    Only those of runs that go on for a while: most end before anybody could look.
    """

    def __init__(self, link: Link, settings: Settings, board: NoteBoard, instance: str) -> None:
        self._link = link
        self._running = settings.keys.running
        self._board = board
        self._instance = instance
        #: The fields of this worker's runs there; ``None``: not known yet, since a companion
        #: before this one may have left some.
        self._published: set[bytes] | None = None

    def step(self) -> None:
        """Bring the ``running`` hash up to date.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if self._published is None:
            (fields,) = self._link.call(pack("HKEYS", self._running))
            self._published = {f for f in fields if instance_of(f) == self._instance}
        notes = {_field(note): note for _, note in self._board.notes()}
        commands = []
        over = self._published - notes.keys()
        if over:
            commands.append(pack("HDEL", self._running, *over))
        # All again, not the new ones only: Redis may have been wiped.
        for field, note in notes.items():
            commands.append(pack("HSET", self._running, field, note.to_json()))
        if commands:
            self._link.call(*commands)
        self._published = set(notes)


def _field(note: Execution) -> bytes:
    field = running_field(note.task_id, note.retries, note.instance, note.pid)
    return field.encode("utf-8", "replace")


def read_notes(texts: Iterable[bytes]) -> list[Execution]:
    """Return the runs that go on, of an answer to HVALS. Left out is what is no record, or
    one that cannot be reckoned with.
    """
    found = []
    for text in texts:
        try:
            run = Execution.from_json(text)
        except ValueError:  # somebody else's
            continue
        if _is_sound(run):
            found.append(run)
    return found


def _is_sound(run: Execution) -> bool:
    """Return whether what it is told apart by is no list or such, and its instants are
    finite numbers.
    """
    names = (run.run_id, run.task_id, run.name, run.task_type, run.queue, run.instance)
    instants = (run.arrival, run.deadline, run.tau, run.started_at or 0.0)
    return not any(isinstance(name, list | dict) for name in names) and all(
        number(instant) is not None for instant in instants
    )


def instance_of(field: bytes) -> str:
    """Return the worker instance of a field of the ``running`` hash.

    >>> instance_of(b"5f1b8c9a|0|celery@host/12-ab12cd34|17")
    'celery@host/12-ab12cd34'
    """
    return field.rpartition(b"|")[0].rpartition(b"|")[2].decode("utf-8", "replace")
