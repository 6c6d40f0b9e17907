"""What a worker tells its companion process."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rts.settings import Settings


@dataclass(frozen=True)
class Instructions:
    """What a companion is told by its worker."""

    settings: Settings
    worker: str
    instance: str
    pid: int
    #: Descriptor and slots of the worker's :class:`rts.ledger.notes.NoteBoard`.
    board_fd: int
    board_slots: int
    #: Where the worker logs, and from which level on.
    logfile: str | None
    loglevel: int
    #: The queues that the worker takes tasks from, as it begins.
    queues: tuple[str, ...] = ()
    #: Tasks that the worker takes for each slot when all are taken; ``None``: any number.
    ahead: int | None = 0

    def to_json(self) -> str:
        """Return the instructions as one line."""
        document = {**self.__dict__, "settings": self.settings.as_dict()}
        return json.dumps(document)

    @classmethod
    def from_json(cls, line: str) -> Instructions:
        """Read what :meth:`to_json` wrote."""
        document = json.loads(line)
        return cls(**{**document, "settings": Settings.from_dict(document["settings"])})
