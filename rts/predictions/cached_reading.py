"""A cache: a recent reading of a queue, and the predictions made from it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rts.predictions import forecast
from rts.predictions.initial_state import Picture
from rts.predictions.prediction import Prediction
from rts.predictions.work import Work

#: Seconds for which a reading of a queue serves predictions of new tasks: at least, at most,
#: and in between this factor times the seconds that it has cost.
MIN_FRESH_S, MAX_FRESH_S, COST_FACTOR = 0.2, forecast.SOON_S, 4.0
#: A prediction serves similar tasks until the queue has grown by more than this share.
MAX_GROWTH = 0.05


@dataclass
class Reading:
    """A queue as it was read, and the predictions made from it."""

    #: Monotonic instant.
    read_at: float
    picture: Picture
    #: Seconds that reading it took, and reading it and predicting from it.
    read_s: float
    cost_s: float
    #: What this process has published since, to it and to the queues that share its workers.
    published: list[Work] = field(default_factory=list)
    #: When that was last, epoch seconds.
    published_at: float = 0.0
    #: By cache key: how many of these were taken into account, and the prediction.
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
