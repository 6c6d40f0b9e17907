"""The instructions that a worker sends to its companion process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from rts.settings import Settings


@dataclass(frozen=True)
class Instructions:
    """The configuration of a companion, which its worker sends at the start."""

    settings: Settings
    worker: str
    instance: str
    pid: int
    #: Descriptor of the worker's :class:`rts.unfinished.shared_memory.SharedMemory`, and the
    #: number of notes that it has room for.
    memory_fd: int
    note_slots: int
    #: The worker's log file, and the level to log at.
    logfile: str | None
    loglevel: int
    #: The queues that the worker consumes at its start.
    queues: tuple[str, ...] = ()
    #: Tasks that the worker prefetches per slot while all are busy; ``None``: any number.
    ahead: int | None = 0
    #: Seconds after which the worker's pool reports a job whose process was killed.
    pool_waits_s: float = 0.0

    def to_json(self) -> str:
        """Return the instructions as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Instructions:
        """Read what :meth:`to_json` wrote."""
        document = json.loads(line)
        return cls(**{**document, "settings": Settings.from_dict(document["settings"])})
