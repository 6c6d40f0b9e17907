"""The last runs of each queue, kept in Redis: the recent past, for predictions.

The companion that ships a run's end also adds it to a list of its queue, with its
arrival, start and end. Other recent arrivals are still running or waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from rts.keys import Keys
from rts.link.scripts import pack
from rts.records import Execution, read_runs

#: Runs kept per queue, and seconds until those of an idle queue expire.
RUNS, KEPT_S = 500, 86400
#: Queues whose runs a host's companion keeps: some apps have a queue per user, and each
#: takes up to half a megabyte of Redis.
MAX_QUEUES = 100
#: Bytes of a record that is kept; a usual one has 500. Each prediction reads all of its queue.
MAX_RECORD = 4096


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
    #: Identifies the worker, from its start to its stop.
    instance: str

    @property
    def runtime_s(self) -> float:
        """Service time, seconds."""
        return self.completed_at - self.started_at


_fields_of = attrgetter(*Recent._fields)


class RecentRuns:
    """Keeps the runs of the first :data:`MAX_QUEUES` queues, until they are idle."""

    def __init__(self, keys: Keys, now: Callable[[], float] = time.monotonic) -> None:
        self._prefix = keys.recent
        self._now = now
        #: Queue to the monotonic instant of its last run.
        self._noted_at: dict[str, float] = {}

    def pack(self, ended: Iterable[tuple[Execution, bytes]]) -> list[bytes]:
        """Return the commands that keep ended runs, which are given with their JSON."""
        records: dict[str, list[bytes]] = {}
        for run, record in ended:
            if not run.ran or not run.started_at or not run.completed_at:
                continue
            # A message may be a stranger's: ids of any length, a routing key of any type.
            if isinstance(run.queue, str) and run.queue and len(record) <= MAX_RECORD:
                records.setdefault(run.queue, []).append(record)
        commands = []
        for queue, runs in records.items():
            if self._admits(queue):
                key = self._prefix + queue
                commands += [
                    pack("LPUSH", key, *runs[-RUNS:]),
                    pack("LTRIM", key, 0, RUNS - 1),
                    pack("EXPIRE", key, KEPT_S),
                ]
        return commands

    def _admits(self, queue: str) -> bool:
        now, noted = self._now(), self._noted_at
        if queue not in noted and len(noted) >= MAX_QUEUES:
            noted = {name: at for name, at in noted.items() if now - at < KEPT_S}
            self._noted_at = noted
            if len(noted) >= MAX_QUEUES:
                return False
        noted[queue] = now
        return True


def read_recent(texts: Iterable[Any]) -> list[Recent]:
    """Return the runs in a reply to LRANGE, each once, and without what is no sound record."""
    found = {
        (run.task_id, run.started_at): Recent._make(_fields_of(run))
        for run in read_runs(texts)
        if run.started_at and run.completed_at
    }
    return list(found.values())
