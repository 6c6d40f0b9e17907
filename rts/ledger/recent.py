"""The last runs of a queue, kept in Redis: what predictions know of the recent past.

The companion that ships a run's end notes it there too, for the queue that it came
from: when it arrived, started and ended. The runs that go on and the messages that
wait are the rest of what has arrived lately.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rts.keys import Keys
from rts.link.scripts import pack
from rts.records import Execution

#: Runs that are kept of each queue, and seconds for which a silent queue's are.
RUNS, KEPT_S = 500, 86400
#: Queues of which a host's companion notes runs: some apps make a queue for each user,
#: and each takes up to half a megabyte of Redis.
MOST_QUEUES = 100


class Recent(NamedTuple):
    """A run that has ended. Instants in epoch seconds."""

    task_id: str
    name: str
    task_type: str
    arrival: float
    tau: float
    deadline: float
    started_at: float
    completed_at: float
    #: The routing key that it came by.
    queue: str | None

    @property
    def runtime_s(self) -> float:
        """Service time, seconds."""
        return self.completed_at - self.started_at


class Noted:
    """The queues whose runs are noted: the first ones, until they are silent."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        #: By queue, when a run of it was noted last.
        self._noted_at: dict[str, float] = {}

    def takes(self, queue: str) -> bool:
        """Return whether the runs of a queue are to be noted now."""
        now = self._now()
        if queue not in self._noted_at and len(self._noted_at) >= MOST_QUEUES:
            kept = {name: at for name, at in self._noted_at.items() if now - at < KEPT_S}
            self._noted_at = kept
            if len(kept) >= MOST_QUEUES:
                return False
        self._noted_at[queue] = now
        return True


def note_recent(
    keys: Keys, noted: Noted, ended: Iterable[tuple[Execution, bytes]]
) -> list[bytes]:
    """Return the commands that note ended runs, each with its JSON, which is at hand."""
    records: dict[str, list[bytes]] = {}
    for run, record in ended:
        if run.ran and run.queue and run.started_at and run.completed_at:
            records.setdefault(run.queue, []).append(record)
    commands = []
    for queue, runs in records.items():
        if not noted.takes(queue):
            continue
        key = keys.recent + queue
        commands += [pack("LPUSH", key, *runs[-RUNS:]), pack("LTRIM", key, 0, RUNS - 1)]
        commands.append(pack("EXPIRE", key, KEPT_S))
    return commands


def read_recent(texts: Iterable[Any]) -> list[Recent]:
    """Return the runs of a list's answer, each once; what is none is left out."""
    found = {}
    for text in texts:
        try:
            run = Execution.from_json(text)
        except ValueError:
            continue
        if run.started_at and run.completed_at:
            found[run.task_id, run.started_at] = Recent(
                *(run.task_id, run.name, run.task_type, run.arrival, run.tau, run.deadline),
                *(run.started_at, run.completed_at, run.queue),
            )
    return list(found.values())
