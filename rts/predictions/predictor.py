"""Predictions for an app: what its queue, its workers and its taus say now."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from rts.errors import StoreUnavailable
from rts.ledger.heartbeat import Heartbeat
from rts.ledger.in_flight import read_notes
from rts.ledger.overdue import task_of
from rts.link.link import Link, as_instant
from rts.link.scripts import pack
from rts.predictions import forecast
from rts.predictions.cached_reading import MOST_FRESH_S, Reading
from rts.predictions.fleet import NOTED_S, living
from rts.predictions.initial_state import InitialState, Picture, TauOf, ended_of, work_of
from rts.predictions.messages import id_of
from rts.predictions.prediction import Prediction
from rts.predictions.queue_reader import Broker, Look
from rts.predictions.sampling import Work
from rts.predictions.shared_workers import OrderMaker
from rts.predictions.snapshot import Snapshot
from rts.records import OpenTask, Plan
from rts.scheduling.queues import known_queues
from rts.settings import Settings
from rts.simulation.orders import order_of
from rts.simulation.recording import share_of_slots

#: Readings that are kept.
MOST_QUEUES = 100
#: What this process has published is remembered of so many tasks, for NOTED_S seconds.
MOST_SENT = 1000


class Pressure(NamedTuple):
    """What a route is chosen by."""

    #: Seconds of work that wait.
    backlog_s: float
    #: Tasks that may run at a time.
    slots: int
    #: Mean load of the workers, a fraction of what they may use.
    load: float


class Predictor:
    """Reads the broker's queues and the workers, and predicts. Safe with threads and forks."""

    def __init__(self, app: Any, settings: Settings, link: Link, tau_of: TauOf) -> None:
        self._app = app
        self._settings = settings
        self._link = link
        self._broker = Broker(app, settings)
        self._state = InitialState(app, settings, link, self._broker, tau_of)
        self._readings: dict[tuple[str, int], Reading] = {}
        #: What this process has published of late, with the moments.
        self._sent: deque[tuple[float, OpenTask]] = deque(maxlen=MOST_SENT)
        #: Of many threads that ask of new tasks one reads for all; when that last failed.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._failed_at, self._failed = -math.inf, partial(StoreUnavailable)

    def of_new(self, plan: Plan, name: str, queue: str, priority: int = 0) -> Prediction:
        """Predict a task of this *name* that would be published now.

        Raises:
            CommandError: the broker is not Redis, or no worker takes from *queue*.
            StoreUnavailable: Redis is away.
        """
        asked_at = time.monotonic()
        work = Work(
            *(plan.task_type, plan.arrival, plan.tau, plan.deadline, plan.arrival, name)
        )
        found = self._told((queue, priority), work)
        if found is None:
            with self._alone():
                found = self._told((queue, priority), work)
                if found is None:
                    found = self._tell((queue, priority), work, asked_at)
        return _not_before(plan.arrival, replace(found, deadline=plan.deadline))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have one thread read and predict for all that ask of new tasks."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        with self._lock:
            yield

    def _told(self, where: tuple[str, int], work: Work) -> Prediction | None:
        """Return what was predicted of another one a moment ago that serves for *work*."""
        reading = self._readings.get(where)
        return reading.told(work) if reading is not None and reading.is_fresh() else None

    def _tell(self, where: tuple[str, int], work: Work, asked_at: float) -> Prediction:
        """Predict *work*, that would come to a queue with a priority."""
        if self._failed_at > asked_at:  # while this one waited for its turn
            raise self._failed()
        try:
            reading = self._reading(*where)
        except StoreUnavailable as exc:
            self._failed_at, self._failed = time.monotonic(), partial(type(exc), *exc.args)
            raise
        begun, own = time.monotonic(), list(reading.own)
        snapshot = replace(
            reading.picture.snapshot,
            waiting=[*reading.picture.snapshot.waiting, *own],
            known_until=reading.sent_at,
        )
        # What it is played from is a moment old: it starts when it has come, not before.
        found = forecast.of_new(snapshot, work, self._order_of(reading.picture))
        reading.predictions[reading.question(work)] = len(own), found
        reading.cost_s += time.monotonic() - begun
        return found

    def published(self, task: OpenTask) -> None:
        """Count in what this process has published: a reading does not show it yet."""
        self._sent.append((time.monotonic(), task))
        for key, reading in list(self._readings.items()):
            if time.monotonic() - reading.read_at > MOST_FRESH_S:
                self._readings.pop(key, None)
                continue
            number = reading.picture.numbers.get(task.queue or "")
            if number is not None:
                reading.sent_at = reading.now()
                ready = task.arrival if task.arrival > reading.sent_at else 0.0
                reading.own.append(work_of(task, ready, number))

    def pressures(self, queues: Sequence[str]) -> dict[str, Pressure]:
        """Return what the routes to *queues* are chosen by.

        Raises:
            CommandError: the broker is not Redis.
            StoreUnavailable: Redis is away.
        """
        keys = self._settings.keys
        time_, beats = self._link.call(pack("TIME"), pack("HGETALL", keys.workers))
        now = as_instant(time_)
        workers = living(beats, now)
        found = {}
        for queue in queues:
            of_queue = [worker for worker in workers if worker.takes_from(queue)]
            slots = sum(worker.slots or 0 for worker in of_queue)
            loads = [worker.load.get("load", 0.0) for worker in of_queue]
            load = sum(loads) / max(1, len(loads))
            keys_of = self._state.keys(queue)
            waiting, sample = self._broker.glance(queue, keys_of) if slots else (0, [])
            taus = [self._state.work(message, now).tau for message in sample]
            mean_s = sum(taus) / len(taus) if taus else 0.0
            found[queue] = Pressure(waiting * mean_s, slots, load)
        return found

    def of_task(self, task_id: str, queue: str | None) -> Prediction | None:
        """Predict a task that runs, or waits: in *queue*, by default in any that the app
        or its workers know; ``None`` where it does neither.

        Raises:
            CommandError: the broker is not Redis, or no worker takes from the queue.
            StoreUnavailable: Redis is away.
        """
        keys = self._settings.keys
        time_, beats, notes, is_open, info = self._link.call(
            pack("TIME"),
            pack("HGETALL", keys.workers),
            pack("HVALS", keys.running),
            pack("ZSCORE", keys.open, task_id),
            pack("HGET", keys.open_info, task_id),
        )
        published = None if is_open is None else task_of(task_id.encode(), info)
        if published is None:  # its note may be on its way
            published = next((t for t in self._lately_sent() if t.task_id == task_id), None)
        now = as_instant(time_)
        queues = [queue] if queue else self._queues(living(beats, now))
        for run in read_notes(notes):
            if run.task_id == task_id and run.started_at is not None and run.queue:
                fleet = self._state.fleet(self._queue_of(run.queue, queues))
                if any(run.run_id == other.run_id for other in fleet.running):
                    snapshot = Snapshot(
                        fleet.now,
                        max(1, fleet.slots),
                        ratios=fleet.ratios,
                        ended=ended_of(fleet),
                    )
                    return forecast.of_running(snapshot, work_of(run), run.started_at)
        sent_to = None if published is None else self._queue_of(published.queue, queues)
        if sent_to in queues:
            queues = list(dict.fromkeys([sent_to, *queues]))
        found = self._broker.find(
            task_id, queues, None if published is None else published.arrival
        )
        if found is not None:
            look = self._broker.look(found.queue, found)
            picture = self._picture(found.queue, look)
            assert look.position is not None
            return forecast.of_waiting(picture.snapshot, look.position, self._order_of(picture))
        held = self._of_held(task_id, queues)
        if held is not None or published is None or sent_to not in queues:
            return held
        if published.arrival > now:
            return self._of_later(published, sent_to)
        return self._of_begun(published, sent_to)

    def close(self) -> None:
        """Close the connection to the broker."""
        self._broker.close()

    def _of_begun(self, task: OpenTask, queue: str) -> Prediction | None:
        """Predict a task that neither waits nor is noted as running, and has not ended: it
        has begun within the last second.
        """
        fleet = self._state.fleet(queue)
        if any(run.task_id == task.task_id for run in fleet.recent):
            return None
        slots = max(1, fleet.slots)
        snapshot = Snapshot(fleet.now, slots, ratios=fleet.ratios, ended=ended_of(fleet))
        return forecast.of_running(snapshot, work_of(task), fleet.now)

    def _of_later(self, task: OpenTask, queue: str) -> Prediction:
        """Predict a task that has an eta to come, and is none of those held that are read."""
        picture = self._picture(queue, self._broker.look(queue))
        held = [*picture.snapshot.held, work_of(task, task.arrival)]
        snapshot = replace(picture.snapshot, held=held)
        return forecast.of_held(snapshot, len(held) - 1, self._order_of(picture))

    def _of_held(self, task_id: str, queues: Iterable[str]) -> Prediction | None:
        """Predict a task that a worker has taken and not started."""
        look = self._broker.look(next(iter(queues)), priority=0)
        keys = (each.routing_key for each in look.held if id_of(each.message) == task_id)
        key = next(keys, None)
        if key is None:
            return None
        queue = self._queue_of(key, queues)
        look = self._broker.look(queue)
        picture = self._picture(queue, look)
        if task_id not in picture.held:
            return None  # it has been started, or has ended, since
        position = picture.held.index(task_id)
        return forecast.of_held(picture.snapshot, position, self._order_of(picture))

    def _reading(self, queue: str, priority: int) -> Reading:
        """Return the queue as it was a moment ago: a web process may ask often."""
        found, now = self._readings.get((queue, priority)), time.monotonic()
        if found is None or not found.is_fresh():
            look = self._broker.look(queue, priority=priority)
            picture = self._picture(queue, look)
            if len(self._readings) >= MOST_QUEUES:
                self._readings.clear()
            took_s = time.monotonic() - now
            found = Reading(now, picture, took_s, took_s)
            self._readings[queue, priority] = found
        return found

    def _picture(self, queue: str, look: Look) -> Picture:
        return self._state.picture(queue, look, self._lately_sent())

    def _lately_sent(self) -> list[OpenTask]:
        now = time.monotonic()
        return [task for sent_at, task in list(self._sent) if now - sent_at < NOTED_S]

    def _order_of(self, picture: Picture) -> OrderMaker:
        edf = self._settings.scheduler == "edf"
        share = share_of_slots(self._settings.hopeless_slots, picture.workers)
        settings = replace(self._settings, hopeless_slots=share)
        return partial(order_of, "edf" if edf else "fifo", settings)

    def _queue_of(self, routing_key: str | None, queues: Iterable[str]) -> str:
        """Return which of *queues* has messages of this routing key; that is most often its
        name, which is returned where none has.
        """
        key = routing_key or ""
        return next((queue for queue in queues if key in self._state.keys(queue)), key)

    def _queues(self, workers: Iterable[Heartbeat]) -> list[str]:
        served = sorted(q for worker in workers for q in worker.queues or ())
        return known_queues(self._app, self._settings, served)


def _not_before(arrival: float, found: Prediction) -> Prediction:
    """Return *found*, which another one was told a moment ago, for one that comes now."""

    def late(start: float) -> float:
        return max(0.0, arrival - start)

    return replace(
        found,
        start=found.start + late(found.start),
        start_low=found.start_low + late(found.start_low),
        start_high=found.start_high + late(found.start_high),
        finish=found.finish + late(found.start),
        finish_low=found.finish_low + late(found.start_low),
        finish_high=found.finish_high + late(found.start_high),
    )
