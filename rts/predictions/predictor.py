"""Predictions for an app, from its queues, workers and taus as they are now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from rts.deadlines import deadline
from rts.errors import CommandError
from rts.fields import brief
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack
from rts.predictions import forecast
from rts.predictions.fleet import NOTED_S, Fleet, living
from rts.predictions.initial_state import InitialState, Picture
from rts.predictions.messages import TauOf, WorkReader, id_of
from rts.predictions.new_tasks import NewTasks
from rts.predictions.open_queue import Found
from rts.predictions.prediction import Prediction
from rts.predictions.pressures import Pressures
from rts.predictions.queue_reader import QueueReader
from rts.predictions.routing import Risks
from rts.predictions.snapshot import Snapshot
from rts.predictions.work import Work, work_of
from rts.records import Execution, OpenTask, Plan, read_runs
from rts.scheduling.discovery import known_queues, routing_keys
from rts.settings import Settings
from rts.unfinished.open_task_format import task_of
from rts.unfinished.received import mark_of

#: Tasks that are remembered as published by this process within the last NOTED_S seconds.
MAX_PUBLISHED = 1000


class Predictor:
    """Reads the broker's queues and the workers, and predicts. Safe with threads.

    Raises:
        CommandError: the broker is not Redis, or no worker consumes the queue.
        StoreUnavailable: Redis is unavailable.
    """

    def __init__(self, app: Any, settings: Settings, link: Link, tau_of: TauOf) -> None:
        self._app = app
        self._settings = settings
        self._link = link
        self._broker = QueueReader(app, settings)
        reader = WorkReader(settings, tau_of)
        self._state = InitialState(app, settings, link, self._broker, reader)
        pressures = Pressures(app, settings, link, self._broker, reader)
        #: For routes, by what is read over the same connection.
        self.risks = Risks(pressures, settings.breaker_period)
        #: Tasks published by this process recently, by monotonic instant.
        self._published: deque[tuple[float, OpenTask]] = deque(maxlen=MAX_PUBLISHED)
        self._new_tasks = NewTasks(self._state, self._picture)

    def close(self) -> None:
        """Close the connection to the broker."""
        self._broker.close()

    def published(self, task: OpenTask) -> None:
        """Take into account a task that this process has published."""
        noted = task._replace(task_id=brief(task.task_id))
        self._published.append((time.monotonic(), noted))
        self._new_tasks.published(task)

    def of_new(
        self, plan: Plan, name: str, queue: str, priority: int, now: Callable[[], float]
    ) -> Prediction:
        """Predict a task of this *name* that would be published once this returns."""
        by_formula = deadline(plan.arrival, plan.tau, plan.k, self._settings.min_slack)
        work = Work(
            plan.task_type,
            plan.arrival,
            plan.tau,
            plan.deadline,
            plan.arrival,
            name,
            moves=plan.deadline == by_formula,
        )
        found = self._new_tasks.predict(work, queue, priority)
        work = work.published_at(now())
        return _not_before(work.arrival, replace(found, deadline=work.deadline))

    def of_task(self, task_id: str, queue: str | None) -> Prediction | None:
        """Predict a task that runs or waits, in *queue*, by default in any that the app or its
        workers know, or that it was sent to; ``None`` if it does neither.
        """
        keys, given, task_id = self._settings.keys, task_id, brief(task_id)
        time_, beats, notes, due, info = self._link.call(
            pack("TIME"),
            pack("HGETALL", keys.workers),
            pack("HVALS", keys.running),
            pack("ZSCORE", keys.open, task_id),
            pack("HGET", keys.open_info, task_id),
        )
        now = as_instant(time_)
        known = self._queues(beats, now)
        queues = [queue] if queue else known
        for run in read_runs(notes):
            if run.task_id == task_id and (found := self._of_noted(run, queues)):
                return found
        task = task_of(task_id.encode(), info)  # open or overdue
        is_overdue = task is not None and due is None
        if task is None:  # it may not be registered yet
            recent = self._recently_published()
            task = next((each for each in recent if each.task_id == task_id), None)
        sent_to = None if task is None else self._queue_of(task.queue, queues)
        # It may wait where no worker takes from, which the app need not know either.
        searched = queues if queue or not sent_to else dict.fromkeys([sent_to, *queues])
        waits = self._broker.find(given, searched, None if task is None else task.arrival)
        if waits is not None:
            return self._of_waiting(waits)
        held = self._of_held(task_id, queues, known)
        if held is not None or task is None or sent_to not in queues:
            return held
        if task.arrival > now:
            return self._of_scheduled(task, sent_to)
        return self._of_just_started(task, sent_to, is_overdue=is_overdue)

    def _of_noted(self, run: Execution, queues: Iterable[str]) -> Prediction | None:
        """Predict a run from its note; ``None`` if it has not started, or has ended since."""
        if run.started_at is None or not run.queue:
            return None
        fleet = self._state.fleet(self._queue_of(run.queue, queues))
        if all(run.run_id != other.run_id for other in fleet.running):
            return None
        return self._of_running(fleet, work_of(run), run.started_at)

    def _of_waiting(self, found: Found) -> Prediction:
        picture = self._picture(found.queue, found=found)
        assert picture.position is not None
        return forecast.of_waiting(picture.snapshot, picture.position)

    def _of_held(
        self, task_id: str, queues: Iterable[str], known: Iterable[str]
    ) -> Prediction | None:
        """Predict a task that a worker holds and has not started; ``None`` if there is none, or
        it came from another one of the *known* queues than from one of *queues*.
        """
        held = self._broker.unacknowledged().held
        keys = (each.routing_key for each in held if id_of(each.message) == task_id)
        key = next(keys, None)
        if key is None:
            return None
        queue = self._queue_of(key, queues)
        if queue not in queues:
            if self._queue_of(key, known) in known:
                return None
            raise CommandError(
                f"a worker holds {task_id}, but no queue that is known here has its routing "
                f"key, {key}"
            )
        picture = self._picture(queue)
        if task_id not in picture.held:
            return None  # it has started, or ended, since
        position = picture.held.index(task_id)
        return forecast.of_held(picture.snapshot, position)

    def _of_scheduled(self, task: OpenTask, queue: str) -> Prediction:
        """Predict a task with a future eta that is not among the held ones that are read."""
        picture = self._picture(queue)
        held = [*picture.snapshot.held, work_of(task, task.arrival)]
        snapshot = self._state.with_ratios(replace(picture.snapshot, held=held))
        return forecast.of_held(snapshot, len(held) - 1)

    def _of_just_started(
        self, task: OpenTask, queue: str, *, is_overdue: bool
    ) -> Prediction | None:
        """Predict a task that neither waits nor is known to run: it must have started within
        the last second. ``None`` if it has ended since, or is overdue and no worker there is
        has lately received it: it may be lost.
        """
        fleet = self._state.fleet(queue)
        if is_overdue and mark_of(task.task_id) not in fleet.receivers:
            return None
        if any(run.task_id == task.task_id for run in fleet.recent):
            return None
        return self._of_running(fleet, work_of(task), fleet.now)

    def _of_running(self, fleet: Fleet, work: Work, started: float) -> Prediction:
        snapshot = Snapshot(fleet.now, max(1, fleet.slots), ended=fleet.ended)
        return forecast.of_running(self._state.with_ratios(snapshot, work), work, started)

    def _picture(self, queue: str, priority: int = 0, found: Found | None = None) -> Picture:
        return self._state.picture(queue, self._recently_published(), priority, found)

    def _recently_published(self) -> list[OpenTask]:
        now = time.monotonic()
        return [task for at, task in list(self._published) if now - at < NOTED_S]

    def _queue_of(self, routing_key: str | None, queues: Iterable[str]) -> str:
        """Return which of *queues* gets messages with this routing key; if none does, the key,
        since that usually is the queue's name.
        """
        key = routing_key or ""
        return next((queue for queue in queues if key in routing_keys(self._app, queue)), key)

    def _queues(self, heartbeats: list[bytes], now: float) -> list[str]:
        served = {q for worker in living(heartbeats, now) for q in worker.queues or ()}
        return known_queues(self._app, self._settings, sorted(served))


def _not_before(arrival: float, found: Prediction) -> Prediction:
    """Shift *found*, made a moment ago, so that nothing precedes *arrival*."""

    def late(start: float) -> float:
        return max(0.0, arrival - start)

    finish = found.finish + late(found.start)
    return replace(
        found,
        start=found.start + late(found.start),
        start_low=found.start_low + late(found.start_low),
        start_high=found.start_high + late(found.start_high),
        finish=finish,
        # A start that is later by less shifts the bounds of the finish by less.
        finish_low=min(finish, found.finish_low + late(found.start_low)),
        finish_high=max(finish, found.finish_high + late(found.start_high)),
    )
