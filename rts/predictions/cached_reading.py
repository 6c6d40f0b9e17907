"""A queue as it was read a moment ago, and what was predicted from it, for many that ask."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rts.predictions import forecast
from rts.predictions.initial_state import Picture
from rts.predictions.prediction import Prediction
from rts.predictions.sampling import Work

#: Seconds for which one reading of a queue serves predictions of new tasks: at least, at
#: most, and in between so many times what it has cost.
FRESH_S, MOST_FRESH_S, TIMES = 0.2, forecast.SOON_S, 4.0
#: A prediction serves for others like it until the queue has grown by more than this share.
SLIGHT = 0.05


@dataclass
class Reading:
    """A queue as it was read, and what was predicted from it."""

    read_at: float
    picture: Picture
    #: Seconds that reading it has taken, and that together with predicting from it.
    read_s: float
    cost_s: float
    #: What this process has published since, into it and the queues beside it.
    own: list[Work] = field(default_factory=list)
    #: When that was last, epoch seconds.
    sent_at: float = 0.0
    #: By what was asked: how many of those were counted in, and the answer.
    predictions: dict[tuple[object, ...], tuple[int, Prediction]] = field(default_factory=dict)

    def now(self) -> float:
        """Return the fleet's time, epoch seconds."""
        return self.picture.snapshot.now + time.monotonic() - self.read_at

    def fresh_s(self) -> float:
        """Return for how long it serves; not for long once there is twice as much."""
        if len(self.own) > self.tasks():
            return TIMES * self.read_s
        return min(MOST_FRESH_S, max(FRESH_S, TIMES * self.cost_s))

    def is_fresh(self) -> bool:
        """Return whether it serves still."""
        return time.monotonic() - self.read_at <= self.fresh_s()

    def question(self, work: Work) -> tuple[object, ...]:
        """Return what is the same of tasks that one prediction serves for."""
        ready = work.arrival if work.arrival > self.now() else 0.0
        allowed_s = round(work.deadline - work.arrival, 3)
        return (work.task_type, work.name, work.tau, allowed_s, ready)

    def tasks(self) -> int:
        """Return how many tasks were there when it was read."""
        there = self.picture.snapshot
        waiting = sum(work.weight for work in there.waiting)
        return round(waiting) + len(there.held) + len(there.running)

    def told(self, work: Work) -> Prediction | None:
        """Return what was predicted of another task, if it serves for *work* too."""
        counted, found = self.predictions.get(self.question(work), (0, None))
        more = len(self.own) - counted
        return None if more > SLIGHT * (self.tasks() + counted) else found
