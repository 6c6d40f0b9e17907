"""Predictions of new tasks: one reading of a queue serves many."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from rts.errors import CommandError, StoreUnavailable
from rts.predictions import forecast
from rts.predictions.initial_state import InitialState, Picture
from rts.predictions.prediction import Prediction
from rts.predictions.work import Work, work_of
from rts.records import OpenTask

#: Seconds for which a reading of a queue serves predictions of new tasks: COST_FACTOR times
#: those that it has cost, within these bounds.
MIN_FRESH_S, MAX_FRESH_S, COST_FACTOR = 0.2, forecast.SOON_S, 4.0
#: A prediction serves similar tasks until the queue has grown by more than this share.
MAX_GROWTH = 0.05
#: Readings that are cached, at most, and as many refusals.
MAX_READINGS = 100


@dataclass
class Reading:
    """A queue as it was read, and the predictions made from it."""

    #: Monotonic instant.
    read_at: float
    picture: Picture
    #: Seconds that it took to read, and together with the predictions made from it.
    read_s: float
    cost_s: float
    #: What this process has published since, to it and to the queues that share its workers.
    published: list[Work] = field(default_factory=list)
    #: When that was last, epoch seconds.
    published_at: float = 0.0
    #: By cache key: the number of published tasks that it accounts for, and the prediction.
    predictions: dict[tuple[object, ...], tuple[int, Prediction]] = field(default_factory=dict)
    #: How many tasks there were when it was read.
    tasks: int = field(init=False)

    def __post_init__(self) -> None:
        snapshot = self.picture.snapshot
        waiting = sum(work.weight for work in snapshot.waiting)
        self.tasks = round(waiting) + len(snapshot.held) + len(snapshot.running)

    def now(self) -> float:
        """Return the current time by Redis's clock, epoch seconds."""
        return self.picture.snapshot.now + time.monotonic() - self.read_at

    def fresh_s(self) -> float:
        """Return for how many seconds it serves, fewer once the queue has doubled."""
        if len(self.published) > self.tasks:
            return min(MAX_FRESH_S, COST_FACTOR * self.read_s)
        return min(MAX_FRESH_S, max(MIN_FRESH_S, COST_FACTOR * self.cost_s))

    def is_fresh(self) -> bool:
        """Return whether it may still be used."""
        return time.monotonic() - self.read_at <= self.fresh_s()

    def add(self, task: OpenTask) -> None:
        """Add a task that this process has published, if it goes to one of these queues."""
        number = self.picture.numbers.get(task.queue or "")
        if number is not None:
            self.published_at = self.now()
            ready = task.arrival if task.arrival > self.published_at else 0.0
            self.published.append(work_of(task, ready, number))

    def cache_key(self, work: Work) -> tuple[object, ...]:
        """Return what tasks have to agree in to share a prediction."""
        ready = work.arrival if work.arrival > self.now() else 0.0
        allowed_s = round(work.deadline - work.arrival, 3)
        return (work.task_type, work.name, work.tau, allowed_s, ready)

    def cached(self, work: Work) -> Prediction | None:
        """Return the prediction for a similar task, unless it is outdated."""
        counted, found = self.predictions.get(self.cache_key(work), (0, None))
        more = len(self.published) - counted
        return None if more > MAX_GROWTH * (self.tasks + counted) else found

    def predict(self, work: Work, state: InitialState) -> Prediction:
        """Predict *work* and cache the prediction."""
        begun, known_until = time.monotonic(), self.published_at
        published = list(self.published)
        # The ratios are kept for the next question about such a task.
        known = state.with_ratios(self.picture.snapshot, work, *published)
        self.picture = self.picture._replace(snapshot=known)
        snapshot = replace(known, waiting=[*known.waiting, *published], known_until=known_until)
        found = forecast.of_new(snapshot, work)
        self.predictions[self.cache_key(work)] = len(published), found
        self.cost_s += time.monotonic() - begun
        return found


class NewTasks:
    """Predicts tasks that would be published now. Safe with threads.

    A web process may ask often, so a reading of a queue and the predictions from it serve for
    a moment. One thread at a time reads for all that ask.
    """

    def __init__(self, state: InitialState, read: Callable[[str, int], Picture]) -> None:
        """*read* returns the picture of a queue for a new task with some priority."""
        self._state = state
        self._read = read
        #: By queue and priority.
        self._readings: dict[tuple[str, int], Reading] = {}
        #: When and why nothing could be predicted for a queue and a priority.
        self._refused: dict[tuple[str, int], tuple[float, str]] = {}
        #: Held by the thread that reads.
        self._lock = threading.RLock()
        #: When a reading last failed, and what makes the exception to raise for it.
        self._failed_at, self._failed = -math.inf, partial(StoreUnavailable)

    def predict(self, work: Work, queue: str, priority: int) -> Prediction:
        """Predict *work*, as published to a queue with a priority."""
        asked_at, where = time.monotonic(), (queue, priority)
        if found := self._cached(where, work):
            return found
        with self._lock:
            if found := self._cached(where, work):
                return found
            if self._failed_at > asked_at:  # while this thread waited for the lock
                raise self._failed()
            return self._reading(where, asked_at).predict(work, self._state)

    def published(self, task: OpenTask) -> None:
        """Add a task that this process has published to the cached readings."""
        for where, reading in list(self._readings.items()):
            if time.monotonic() - reading.read_at > MAX_FRESH_S:
                self._readings.pop(where, None)
            else:
                reading.add(task)

    def _cached(self, where: tuple[str, int], work: Work) -> Prediction | None:
        """Return a recent prediction for a similar task; *where*: queue and priority."""
        reading = self._readings.get(where)
        return reading.cached(work) if reading is not None and reading.is_fresh() else None

    def _reading(self, where: tuple[str, int], asked_at: float) -> Reading:
        """Return a fresh reading of a queue for a priority."""
        found, now = self._readings.get(where), time.monotonic()
        if found is not None and found.is_fresh():
            return found
        refused_at, why = self._refused.get(where, (-math.inf, ""))
        if refused_at > asked_at - MIN_FRESH_S:
            raise CommandError(why)
        try:
            picture = self._read(*where)
        except StoreUnavailable as exc:
            self._failed_at, self._failed = time.monotonic(), partial(type(exc), *exc.args)
            raise
        except CommandError as exc:
            if len(self._refused) >= MAX_READINGS:
                self._refused.clear()
            self._refused[where] = time.monotonic(), str(exc)
            raise
        if len(self._readings) >= MAX_READINGS:
            self._readings.clear()
        took_s = time.monotonic() - now
        found = self._readings[where] = Reading(now, picture, took_s, took_s)
        return found
