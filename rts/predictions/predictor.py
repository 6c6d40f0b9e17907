"""Predictions for an app, from its queues, workers and taus as they are now."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from rts.deadlines import share_of_slots
from rts.errors import CommandError, StoreUnavailable
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack
from rts.predictions import forecast
from rts.predictions.cached_reading import MAX_FRESH_S, MIN_FRESH_S, Reading
from rts.predictions.fleet import NOTED_S, Fleet, living
from rts.predictions.initial_state import InitialState, Picture, TauOf, ended_of
from rts.predictions.messages import id_of
from rts.predictions.prediction import Prediction
from rts.predictions.pressures import Pressures
from rts.predictions.queue_reader import QueueReader, QueueSample
from rts.predictions.shared_workers import OrderMaker
from rts.predictions.snapshot import Snapshot
from rts.predictions.work import Work, work_of
from rts.records import OpenTask, Plan
from rts.scheduling.queues import known_queues
from rts.settings import Settings
from rts.simulation.orders import order_of

#: Readings of queues that are cached, and refusals.
MAX_READINGS = 100
#: Tasks that are remembered as published by this process within the last NOTED_S seconds.
MAX_PUBLISHED = 1000


class Predictor:
    """Reads the broker's queues and the workers, and predicts. Safe with threads."""

    def __init__(self, app: Any, settings: Settings, link: Link, tau_of: TauOf) -> None:
        self._app = app
        self._settings = settings
        self._link = link
        self._broker = QueueReader(app, settings)
        self._state = InitialState(app, settings, link, self._broker, tau_of)
        #: The pressure on the queues, over the same connection.
        self.pressures = Pressures(settings, link, self._broker, self._state)
        self._readings: dict[tuple[str, int], Reading] = {}
        #: Tasks published by this process recently, by monotonic instant.
        self._published: deque[tuple[float, OpenTask]] = deque(maxlen=MAX_PUBLISHED)
        #: One thread at a time reads for all that ask about new tasks; and its last failure.
        self._lock = threading.RLock()
        self._failed_at, self._failed = -math.inf, partial(StoreUnavailable)
        #: When and why nothing could be predicted for a queue and a priority.
        self._refused: dict[tuple[str, int], tuple[float, str]] = {}

    def of_new(self, plan: Plan, name: str, queue: str, priority: int = 0) -> Prediction:
        """Predict a task of this *name* that would be published now.

        Raises:
            CommandError: the broker is not Redis, or no worker consumes *queue*.
            StoreUnavailable: Redis is unavailable.
        """
        asked_at = time.monotonic()
        work = Work(
            *(plan.task_type, plan.arrival, plan.tau, plan.deadline, plan.arrival, name)
        )
        found = self._cached((queue, priority), work)
        if found is None:
            with self._lock:
                found = self._cached((queue, priority), work)
                if found is None:
                    found = self._predict((queue, priority), work, asked_at)
        return _not_before(plan.arrival, replace(found, deadline=plan.deadline))

    def _cached(self, where: tuple[str, int], work: Work) -> Prediction | None:
        """Return a recent prediction for a similar task; *where*: queue and priority."""
        reading = self._readings.get(where)
        return reading.cached(work) if reading is not None and reading.is_fresh() else None

    def _predict(self, where: tuple[str, int], work: Work, asked_at: float) -> Prediction:
        """Predict *work*, as published to *where*, a queue with a priority."""
        if self._failed_at > asked_at:  # while this thread waited for the lock
            raise self._failed()
        refused_at, why = self._refused.get(where, (-math.inf, ""))
        if refused_at > asked_at - MIN_FRESH_S:
            raise CommandError(why)
        try:
            reading = self._reading(*where)
        except StoreUnavailable as exc:
            self._failed_at, self._failed = time.monotonic(), partial(type(exc), *exc.args)
            raise
        except CommandError as exc:
            if len(self._refused) >= MAX_READINGS:
                self._refused.clear()
            self._refused[where] = time.monotonic(), str(exc)
            raise
        begun, known_until = time.monotonic(), reading.published_at
        published = list(reading.published)
        # The ratios are kept for the next question about such a task.
        known = self._state.with_ratios(reading.picture.snapshot, work, *published)
        reading.picture = reading.picture._replace(snapshot=known)
        snapshot = replace(
            known,
            waiting=[*known.waiting, *published],
            known_until=known_until,
        )
        found = forecast.of_new(snapshot, work, self._order_of(reading.picture))
        reading.predictions[reading.cache_key(work)] = len(published), found
        reading.cost_s += time.monotonic() - begun
        return found

    def published(self, task: OpenTask) -> None:
        """Add a task that this process has published to the cached readings."""
        self._published.append((time.monotonic(), task))
        for key, reading in list(self._readings.items()):
            if time.monotonic() - reading.read_at > MAX_FRESH_S:
                self._readings.pop(key, None)
                continue
            number = reading.picture.numbers.get(task.queue or "")
            if number is not None:
                reading.published_at = reading.now()
                ready = task.arrival if task.arrival > reading.published_at else 0.0
                reading.published.append(work_of(task, ready, number))

    def of_task(self, task_id: str, queue: str | None) -> Prediction | None:
        """Predict a task that runs or waits, in *queue*, by default in any that the app or its
        workers know, or that it was sent to; ``None`` if it does neither.

        Raises:
            CommandError: the broker is not Redis, or no worker consumes the queue.
            StoreUnavailable: Redis is unavailable.
        """
        keys = self._settings.keys
        time_, beats, notes, is_open, info = self._link.call(
            pack("TIME"),
            pack("HGETALL", keys.workers),
            pack("HVALS", keys.running),
            pack("ZSCORE", keys.open, task_id),
            pack("HGET", keys.open_info, task_id),
        )
        noted = task_of(task_id.encode(), info)  # open or overdue
        published = None if is_open is None else noted
        if noted is None:  # it may not be registered yet
            recent = self._recently_published()
            noted = published = next((t for t in recent if t.task_id == task_id), None)
        now = as_instant(time_)
        queues = [queue] if queue else self._queues(living(beats, now))
        for run in read_notes(notes):
            if run.task_id == task_id and run.started_at is not None and run.queue:
                fleet = self._state.fleet(self._queue_of(run.queue, queues))
                if any(run.run_id == other.run_id for other in fleet.running):
                    return self._of_running(fleet, work_of(run), run.started_at)
        sent_to = None if noted is None else self._queue_of(noted.queue, queues)
        # It may wait where no worker takes from, which the app need not know either.
        searched = queues if queue or not sent_to else dict.fromkeys([sent_to, *queues])
        found = self._broker.find(task_id, searched, None if noted is None else noted.arrival)
        if found is not None:
            sample = self._broker.read(found.queue, found)
            picture = self._picture(found.queue, sample)
            assert sample.position is not None
            order = self._order_of(picture)
            return forecast.of_waiting(picture.snapshot, sample.position, order)
        held = self._of_held(task_id, queues)
        if held is not None or published is None or sent_to not in queues:
            return held
        if published.arrival > now:
            return self._of_scheduled(published, sent_to)
        return self._of_just_started(published, sent_to)

    def close(self) -> None:
        """Close the connection to the broker."""
        self._broker.close()

    def _of_just_started(self, task: OpenTask, queue: str) -> Prediction | None:
        """Predict an open task that neither waits nor is known to run: it must have started
        within the last second. ``None`` if it has ended since.
        """
        fleet = self._state.fleet(queue)
        if any(run.task_id == task.task_id for run in fleet.recent):
            return None
        return self._of_running(fleet, work_of(task), fleet.now)

    def _of_running(self, fleet: Fleet, work: Work, started: float) -> Prediction:
        slots = max(1, fleet.slots)
        snapshot = Snapshot(fleet.now, slots, ended=ended_of(fleet))
        return forecast.of_running(self._state.with_ratios(snapshot, work), work, started)

    def _of_scheduled(self, task: OpenTask, queue: str) -> Prediction:
        """Predict a task with a future eta that is not among the held ones that are read."""
        picture = self._picture(queue, self._broker.read(queue))
        held = [*picture.snapshot.held, work_of(task, task.arrival)]
        snapshot = self._state.with_ratios(replace(picture.snapshot, held=held))
        return forecast.of_held(snapshot, len(held) - 1, self._order_of(picture))

    def _of_held(self, task_id: str, queues: Iterable[str]) -> Prediction | None:
        """Predict a task that a worker holds and has not started; ``None`` if there is none."""
        sample = self._broker.read(next(iter(queues)), priority=0)
        keys = (each.routing_key for each in sample.held if id_of(each.message) == task_id)
        key = next(keys, None)
        if key is None:
            return None
        queue = self._queue_of(key, queues)
        if queue not in queues:
            raise CommandError(
                f"a worker holds {task_id}, but no queue that is known here has its routing "
                f"key, {key}"
            )
        picture = self._picture(queue, self._broker.read(queue))
        if task_id not in picture.held:
            return None  # it has started, or ended, since
        position = picture.held.index(task_id)
        return forecast.of_held(picture.snapshot, position, self._order_of(picture))

    def _reading(self, queue: str, priority: int) -> Reading:
        """Return a reading of the queue, cached for a moment: a web process may ask often."""
        found, now = self._readings.get((queue, priority)), time.monotonic()
        if found is None or not found.is_fresh():
            picture = self._picture(queue, self._broker.read(queue, priority=priority))
            if len(self._readings) >= MAX_READINGS:
                self._readings.clear()
            took_s = time.monotonic() - now
            found = Reading(now, picture, took_s, took_s)
            self._readings[queue, priority] = found
        return found

    def _picture(self, queue: str, sample: QueueSample) -> Picture:
        return self._state.picture(queue, sample, self._recently_published())

    def _recently_published(self) -> list[OpenTask]:
        now = time.monotonic()
        return [task for at, task in list(self._published) if now - at < NOTED_S]

    def _order_of(self, picture: Picture) -> OrderMaker:
        edf = self._settings.scheduler == "edf"
        share = share_of_slots(self._settings.hopeless_slots, picture.worker_slots)
        settings = replace(self._settings, hopeless_slots=share)
        return partial(order_of, "edf" if edf else "fifo", settings)

    def _queue_of(self, routing_key: str | None, queues: Iterable[str]) -> str:
        """Return which of *queues* gets messages with this routing key; if none does, the key,
        since that usually is the queue's name.
        """
        key = routing_key or ""
        return next((queue for queue in queues if key in self._state.keys(queue)), key)

    def _queues(self, workers: Iterable[Heartbeat]) -> list[str]:
        served = sorted(q for worker in workers for q in worker.queues or ())
        return known_queues(self._app, self._settings, served)


def _not_before(arrival: float, found: Prediction) -> Prediction:
    """Shift *found*, made for an earlier similar task, so that nothing precedes *arrival*."""

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
