"""The pressure on queues, which routing goes by: their backlog, slots and load."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack
from rts.predictions.fleet import living
from rts.predictions.messages import WorkReader
from rts.predictions.queue_reader import QueueReader
from rts.scheduling.discovery import routing_keys
from rts.settings import Settings
from rts.unfinished.heartbeat import Heartbeat

#: Seconds for which the heartbeats that were read serve.
WORKERS_FRESH_S = 1.0


class Pressure(NamedTuple):
    """The pressure on a queue."""

    #: Sum of the taus of the waiting and prefetched tasks, estimated, seconds; without those
    #: that wait for their eta.
    backlog_s: float
    #: Slots of the workers that consume it.
    slots: int
    #: Mean load of these workers, a fraction of what they may use.
    load: float


class Pressures:
    """Reads the pressure on queues. Safe with threads."""

    def __init__(
        self, app: Any, settings: Settings, link: Link, broker: QueueReader, reader: WorkReader
    ) -> None:
        self._app = app
        self._workers_key = settings.keys.workers
        self._link = link
        self._broker = broker
        self._reader = reader
        #: When the workers were read, these, and the fleet's time then.
        self._workers: tuple[float, Sequence[Heartbeat], float] = (-math.inf, (), 0.0)

    def read(self, queues: Sequence[str]) -> dict[str, Pressure]:
        """Return the pressure on each of *queues*."""
        workers, now = self._living()
        found = {}
        for queue in queues:
            of_queue = [worker for worker in workers if worker.takes_from(queue)]
            slots = sum(worker.slots or 0 for worker in of_queue)
            loads = [worker.load.get("load", 0.0) for worker in of_queue]
            load = sum(loads) / max(1, len(loads))
            backlog_s = self._backlog_s(queue, now) if slots else 0.0
            found[queue] = Pressure(backlog_s, slots, load)
        return found

    def _backlog_s(self, queue: str, now: float) -> float:
        """Return the ``backlog_s`` of a queue."""
        with self._broker.open(queue) as opened:
            strata = opened.backlog(routing_keys(self._app, queue))
        backlog_s = 0.0
        for count, sample in strata:
            works = [self._reader.work(message, now) for message in sample]
            ready_s = sum(work.tau for work in works if work.ready <= now)
            backlog_s += count * ready_s / max(1, len(works))
        return backlog_s

    def _living(self) -> tuple[Sequence[Heartbeat], float]:
        """Return the workers as they were a moment ago, and the fleet's time now."""
        read_at, workers, at = self._workers
        if time.monotonic() - read_at >= WORKERS_FRESH_S:
            time_, beats = self._link.call(pack("TIME"), pack("HGETALL", self._workers_key))
            at = as_instant(time_)
            read_at, workers = time.monotonic(), living(beats, at)
            self._workers = read_at, workers, at
        return workers, at + time.monotonic() - read_at
