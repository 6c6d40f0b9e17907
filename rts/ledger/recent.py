"""The last runs of a queue, kept in Redis: what predictions know of the recent past.

The companion that ships a run's end notes it there too, for the queue that it came
from: when it arrived, started and ended. The runs that go on and the messages that
wait are the rest of what has arrived lately.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from rts.keys import Keys
from rts.link.scripts import pack
from rts.records import Execution

#: Runs that are kept of each queue, and seconds for which a silent queue's are.
RUNS, KEPT_S = 500, 86400


class Recent(NamedTuple):
    """A run that has ended. Instants in epoch seconds."""

    task_id: str
    task_type: str
    arrival: float
    tau: float
    deadline: float
    started_at: float
    completed_at: float

    @property
    def runtime_s(self) -> float:
        """Service time, seconds."""
        return self.completed_at - self.started_at


def note_recent(keys: Keys, ended: Iterable[tuple[Execution, bytes]]) -> list[bytes]:
    """Return the commands that note ended runs, each with its JSON, which is at hand."""
    records: dict[str, list[bytes]] = {}
    for run, record in ended:
        if run.ran and run.queue and run.started_at and run.completed_at:
            records.setdefault(run.queue, []).append(record)
    commands = []
    for queue, runs in records.items():
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
                *(run.task_id, run.task_type, run.arrival, run.tau, run.deadline),
                *(run.started_at, run.completed_at),
            )
    return list(found.values())
