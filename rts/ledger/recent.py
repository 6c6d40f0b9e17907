"""The last runs of each queue, kept in Redis: the recent past, for predictions.

The companion that ships a run's end also adds it to a list of its queue, with its
arrival, start and end. Other recent arrivals are still running or waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rts.keys import Keys
from rts.link.scripts import pack
from rts.records import Execution

#: Runs kept per queue, and seconds until those of an idle queue expire.
RUNS, KEPT_S = 500, 86400
#: Queues whose runs a host's companion keeps: some apps have a queue per user, and each
#: takes up to half a megabyte of Redis.
MAX_QUEUES = 100


class Recent(NamedTuple):
    """A run that has ended: those fields of its :class:`~rts.records.Execution`."""

    task_id: str
    name: str
    task_type: str
    arrival: float
    tau: float
    deadline: float
    started_at: float
    completed_at: float
    #: The routing key of its message.
    queue: str | None

    @property
    def runtime_s(self) -> float:
        """Service time, seconds."""
        return self.completed_at - self.started_at


class NotedQueues:
    """The queues whose runs are kept: the first :data:`MAX_QUEUES`, until they are idle."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        #: Queue to the monotonic instant of its last run.
        self._noted_at: dict[str, float] = {}

    def admit(self, queue: str) -> bool:
        """Return whether to keep a run of *queue* that has ended now."""
        now = self._now()
        if queue not in self._noted_at and len(self._noted_at) >= MAX_QUEUES:
            kept = {name: at for name, at in self._noted_at.items() if now - at < KEPT_S}
            self._noted_at = kept
            if len(kept) >= MAX_QUEUES:
                return False
        self._noted_at[queue] = now
        return True


def note_recent(
    keys: Keys, noted: NotedQueues, ended: Iterable[tuple[Execution, bytes]]
) -> list[bytes]:
    """Return the commands that keep ended runs, which are given with their JSON."""
    records: dict[str, list[bytes]] = {}
    for run, record in ended:
        if run.ran and run.queue and run.started_at and run.completed_at:
            records.setdefault(run.queue, []).append(record)
    commands = []
    for queue, runs in records.items():
        if not noted.admit(queue):
            continue
        key = keys.recent + queue
        commands += [pack("LPUSH", key, *runs[-RUNS:]), pack("LTRIM", key, 0, RUNS - 1)]
        commands.append(pack("EXPIRE", key, KEPT_S))
    return commands


def read_recent(texts: Iterable[Any]) -> list[Recent]:
    """Return the runs in a reply to LRANGE, without duplicates and invalid entries."""
    found = {}
    for text in texts:
        try:
            run = Execution.from_json(text)
        except ValueError:
            continue
        if run.started_at and run.completed_at:
            kept = Recent._make(getattr(run, field) for field in Recent._fields)
            found[run.task_id, run.started_at] = kept
    return list(found.values())
