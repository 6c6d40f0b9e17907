"""What Redis tells of the workers of a queue: slots, load, runs, what was learned."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from rts.ledger.janitor import LOST_AFTER_S
from rts.ledger.recent import RUNS, Recent, read_recent
from rts.link.link import Link, replies_as_text
from rts.link.scripts import pack
from rts.records import Execution
from rts.settings import Settings
from rts.tau.cache import POOL
from rts.tau.sketch import Sketch

#: Seconds within which a run that goes on is noted in Redis: a heartbeat, and its way.
NOTED_S = 1.5
#: Runs per slot, and seconds, from which on the measured share of the slots is believed.
RUNS_PER_SLOT, LEAST_S = 2, 2.0


@dataclass(frozen=True)
class Worker:
    """One heartbeat."""

    instance: str
    slots: int
    #: A fraction of what the worker may use.
    load: float
    #: ``None``: of a version that does not say.
    queues: frozenset[str] | None


@dataclass(frozen=True)
class Fleet:
    """The workers of one queue at one moment."""

    now: float
    workers: Sequence[Worker]
    #: What goes on in the workers' slots, of whatever queue.
    running: Sequence[Execution]
    #: The routing keys of the queue's messages.
    keys: Collection[str]
    recent: Sequence[Recent]
    ratios: Mapping[str, Sketch]
    #: Queues that workers take from which do not take from this one.
    elsewhere: Set[str] = frozenset()

    @property
    def slots(self) -> int:
        """Tasks that the workers run at a time."""
        return sum(worker.slots for worker in self.workers)

    @property
    def load(self) -> float:
        """The mean of the workers' loads; 0 without workers."""
        return sum(w.load for w in self.workers) / max(1, len(self.workers))

    @property
    def neighbours(self) -> set[str]:
        """All queues that the workers take from."""
        return {queue for worker in self.workers for queue in worker.queues or ()}

    @property
    def own_running(self) -> list[Execution]:
        """What goes on of this queue."""
        return [run for run in self.running if run.queue in self.keys]

    def share(self, since: float) -> float | None:
        """Return the share of the slots' time that runs of this queue have had, where it
        had work for all of them *since* an instant; ``None``: too little was seen.
        """
        until = self.now - NOTED_S
        if until - since < LEAST_S or not self.slots:
            return None
        spans = [(run.started_at, run.completed_at) for run in self.recent]
        spans += [(run.started_at or until, until) for run in self.own_running]
        seen = [min(end, until) - max(start, since) for start, end in spans]
        seen = [span for span in seen if span > 0]
        full = len(self.recent) >= RUNS and since < min(run.completed_at for run in self.recent)
        if full or len(seen) < RUNS_PER_SLOT * self.slots:
            return None
        return min(1.0, max(0.01, sum(seen) / (self.slots * (until - since))))


def read_fleet(
    link: Link, settings: Settings, queue: str, keys_of_queue: Iterable[str] = ()
) -> Fleet:
    """Read what there is to know of *queue*, in one round trip.

    *keys_of_queue*: the routing keys of its messages, by default its name.

    Raises:
        StoreUnavailable: Redis is away.
    """
    keys = settings.keys
    types = [*settings.task_types, POOL]
    names = list(keys_of_queue) or [queue]
    time_, beats, notes, *answers = link.call(
        pack("TIME"),
        pack("HGETALL", keys.workers),
        pack("HVALS", keys.running),
        *(pack("LRANGE", keys.recent + name, 0, -1) for name in names),
        *(pack("HGETALL", keys.ratio + task_type) for task_type in types),
    )
    now = int(time_[0]) + int(time_[1]) / 1e6
    recent, ratios = answers[: len(names)], answers[len(names) :]
    ended = read_recent(text for texts in recent for text in texts)
    over = {(run.task_id, run.started_at) for run in ended}
    living = read_beats(beats, now)
    workers = [w for w in living if w.queues is None or queue in w.queues]
    others = [w.queues for w in living if w.queues is not None and queue not in w.queues]
    here = {worker.instance for worker in workers}
    running = [run for run in read_notes(notes) if run.instance in here or run.queue in names]
    return Fleet(
        now,
        workers,
        [run for run in running if (run.task_id, run.started_at) not in over],
        names,
        ended,
        {
            task_type: Sketch.from_hash(replies_as_text(answer))
            for task_type, answer in zip(types, ratios, strict=True)
        },
        {name for queues in others for name in queues},
    )


def read_beats(answer: Sequence[bytes], now: float) -> list[Worker]:
    """Return the workers that live, of an answer to HGETALL."""
    found = []
    for instance, beat in replies_as_text(answer).items():
        try:
            told = json.loads(beat)
            if now - float(told["seen_at"]) > LOST_AFTER_S:
                continue
            queues = told.get("queues")
            load = float((told.get("load") or {}).get("load") or 0.0)
            served = None if queues is None else frozenset(map(str, queues))
            found.append(Worker(instance, int(told["concurrency"]), load, served))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # of another version
    return found


def read_notes(texts: Sequence[bytes]) -> list[Execution]:
    """Return the runs that go on, of an answer to HVALS."""
    found = []
    for text in texts:
        try:
            run = Execution.from_json(text)
        except ValueError:
            continue
        if run.started_at is not None:
            found.append(run)
    return found
