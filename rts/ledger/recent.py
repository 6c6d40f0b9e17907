"""The last runs of a queue, kept in Redis: what predictions know of the recent past.

The companion that ships a run's end notes it there too, for the queue that it came
from: when it arrived, started and ended. The runs that go on and the messages that
wait are the rest of what has arrived lately.
"""

from __future__ import annotations

import json
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


def note_recent(keys: Keys, executions: Iterable[Execution]) -> list[bytes]:
    """Return the commands that note ended runs."""
    texts: dict[str, list[str]] = {}
    for run in executions:
        if run.ran and run.queue and run.started_at and run.completed_at:
            recent = Recent(
                *(run.task_id, run.task_type, run.arrival, run.tau, run.deadline),
                *(run.started_at, run.completed_at),
            )
            texts.setdefault(run.queue, []).append(json.dumps(recent))
    commands = []
    for queue, runs in texts.items():
        key = keys.recent + queue
        commands += [pack("LPUSH", key, *runs[-RUNS:]), pack("LTRIM", key, 0, RUNS - 1)]
        commands.append(pack("EXPIRE", key, KEPT_S))
    return commands


def read_recent(texts: Iterable[Any]) -> list[Recent]:
    """Return the runs of a list's answer, each once; what is none is left out."""
    found = {}
    for text in texts:
        try:
            recent = Recent(*json.loads(text))
        except (ValueError, TypeError):
            continue
        found[recent.task_id, recent.started_at] = recent
    return list(found.values())
