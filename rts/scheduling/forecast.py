"""When a task will start and finish: simulations of what is ahead of it.

Each simulation plays the queue forward from now, by the rule that the workers keep:
what runs, what waits, and arrivals as there were lately, with runtimes drawn from tau
times the learned ratios of runtime over tau. What the many simulations give is the
prediction. No formula: slots, demotion and overtaking are as in
:mod:`rts.simulation.orders`.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rts.simulation.orders import Order, Waiting
from rts.tau.sketch import Sketch

#: Simulations for one prediction, and events that all of them take together at most.
RUNS, MOST_EVENTS = 200, 100_000
#: Simulations there are at least.
LEAST_RUNS = 24
#: Where fewer runs than that are learned, runtimes scatter by this (lognormal σ).
KNOWN_RUNS, UNKNOWN_SIGMA = 20, 0.5
#: The interval's ends: 90 % of the simulations lie between.
LOW, HIGH = 0.05, 0.95
#: Seconds of the past whose arrivals are taken for the rate of those to come.
LOOKBACK_S = 60.0


@dataclass(frozen=True)
class Prediction:
    """When a task starts and finishes. Instants in epoch seconds, by Redis's clock.

    Medians of the simulations; ``…_low`` and ``…_high`` enclose 90 % of them.
    """

    start: float
    start_low: float
    start_high: float
    finish: float
    finish_low: float
    finish_high: float
    deadline: float
    #: Share of the simulations that finish at or before the deadline.
    on_time: float
    #: Tasks that wait before it in the queue's present order.
    ahead: int
    slots: int


class Work(NamedTuple):
    """A task, as far as a simulation needs it. Instants in epoch seconds."""

    task_type: str
    arrival: float
    tau: float
    deadline: float


@dataclass(frozen=True)
class Snapshot:
    """A queue and its workers at one moment."""

    now: float
    slots: int
    #: In the order of arrival in the queue.
    waiting: Sequence[Work]
    #: With the instants at which they have started.
    running: Sequence[tuple[Work, float]] = ()
    #: Learned ratios of runtime over tau, by type.
    ratios: Mapping[str, Sketch] = field(default_factory=dict)
    #: Messages that wait beyond *waiting*, which is then a sample of all.
    unseen: int = 0


def predict(
    snapshot: Snapshot,
    target: Work | int | tuple[Work, float],
    order: Callable[[], Order],
    *,
    seed: int = 0,
) -> Prediction:
    """Predict one task.

    *target*: a task that would arrive now, the position in ``snapshot.waiting`` of one
    that waits, or a task that runs with the instant of its start. *order* makes the
    queue's order.

    Raises:
        ValueError: there are no slots.
    """
    if snapshot.slots < 1:
        raise ValueError("no worker takes tasks from this queue")
    rng = random.Random(seed)
    draw = _Runtimes(snapshot.ratios, rng)
    starts, finishes = [], []
    if isinstance(target, tuple) and not isinstance(target, Work):
        work, started = target
        for _ in range(RUNS):
            starts.append(started)
            finishes.append(started + draw.beyond(work, snapshot.now - started))
        ahead = 0
    else:
        waiting = list(snapshot.waiting)
        if isinstance(target, Work):
            waiting.append(target)
            position = len(waiting) - 1
        else:
            position = target
        work = waiting[position]
        runs = max(LEAST_RUNS, min(RUNS, MOST_EVENTS // (2 * len(waiting) + 1)))
        # What is not seen takes as long as what is.
        scale = 1 + snapshot.unseen / len(waiting)
        for _ in range(runs):
            start = _play(snapshot, waiting, position, order(), draw, rng)
            start = snapshot.now + scale * (start - snapshot.now)
            starts.append(start)
            finishes.append(start + draw.of(work))
        ahead = _ahead(waiting, position, order(), snapshot) + snapshot.unseen
    return Prediction(
        start=_quantile(starts, 0.5),
        start_low=_quantile(starts, LOW),
        start_high=_quantile(starts, HIGH),
        finish=_quantile(finishes, 0.5),
        finish_low=_quantile(finishes, LOW),
        finish_high=_quantile(finishes, HIGH),
        deadline=work.deadline,
        on_time=sum(finish <= work.deadline for finish in finishes) / len(finishes),
        ahead=ahead,
        slots=snapshot.slots,
    )


class _Runtimes:
    """Draws runtimes."""

    def __init__(self, ratios: Mapping[str, Sketch], rng: random.Random) -> None:
        self._rng = rng
        self._tables = {
            task_type: [sketch.bound((i + 0.5) / 256) or 0.0 for i in range(256)]
            for task_type, sketch in ratios.items()
            if sketch.count >= KNOWN_RUNS
        }

    def of(self, work: Work) -> float:
        """Return a runtime in seconds."""
        table = self._tables.get(work.task_type)
        if table is not None:
            return work.tau * self._rng.choice(table)
        sigma = UNKNOWN_SIGMA
        return work.tau * self._rng.lognormvariate(-sigma * sigma / 2, sigma)

    def beyond(self, work: Work, elapsed_s: float) -> float:
        """Return a runtime of a task that has not ended for so long."""
        for _ in range(16):
            runtime_s = self.of(work)
            if runtime_s > elapsed_s:
                return runtime_s
        # It takes longer than its like ever did: as long again, on average.
        return elapsed_s + self._rng.expovariate(1 / max(elapsed_s, 1e-3))


def _play(
    snapshot: Snapshot,
    waiting: Sequence[Work],
    position: int,
    order: Order,
    draw: _Runtimes,
    rng: random.Random,
) -> float:
    """Return the start of the task at *position*, in one simulation."""
    now = snapshot.now
    works = list(waiting)
    for number, work in enumerate(works):
        order.push(Waiting(work.arrival, work.tau, work.deadline, number))
    ends: list[tuple[float, int]] = []
    for work, started in snapshot.running[: snapshot.slots]:
        heapq.heappush(ends, (started + draw.beyond(work, now - started), -1))
    if len(works) > 1:
        # A queue means that every slot is taken, by something like what waits.
        while len(ends) < snapshot.slots:
            heapq.heappush(ends, (now + rng.random() * draw.of(rng.choice(works)), -1))
    like, rate = _arrivals(snapshot, works)
    arrival = now + rng.expovariate(rate) if rate else math.inf
    held: dict[int, Waiting] = {}
    for _ in range(20 * len(works) + 1000):
        while len(ends) < snapshot.slots:
            task = order.pop(now, snapshot.slots)
            if task is None:
                break
            if task.number == position:
                return now
            held[task.number] = task
            heapq.heappush(ends, (now + draw.of(works[task.number]), task.number))
        if ends and ends[0][0] <= arrival:
            now, number = heapq.heappop(ends)
            if number in held:
                order.ended(held.pop(number))
        elif arrival < math.inf:
            now = arrival
            past = rng.choice(like)
            work = past._replace(arrival=now, deadline=now + past.deadline - past.arrival)
            works.append(work)
            order.push(Waiting(now, work.tau, work.deadline, len(works) - 1))
            arrival = now + rng.expovariate(rate)
        else:
            break
    return now  # starved: later than that


def _arrivals(snapshot: Snapshot, waiting: Sequence[Work]) -> tuple[list[Work], float]:
    """Return tasks like those to come, and how many come a second.

    Those that were taken at once are not seen any more, so what still waits tells too
    few; but where there is a queue, about as many come as the slots can serve.
    """
    since = snapshot.now - LOOKBACK_S
    running = [work for work, _ in snapshot.running]
    lately = [work for work in (*waiting, *running) if work.arrival > since]
    if len(waiting) < 2 or len(lately) < 3:
        return lately, 0.0
    span_s = snapshot.now - min(work.arrival for work in lately)
    seen = (len(lately) - 1) / span_s if span_s > 0 else 0.0
    mean_tau_s = sum(work.tau for work in lately) / len(lately)
    return lately, max(seen, snapshot.slots / mean_tau_s)


def _ahead(waiting: Sequence[Work], position: int, order: Order, snapshot: Snapshot) -> int:
    """Return how many tasks the order would take before the one at *position*."""
    for number, work in enumerate(waiting):
        order.push(Waiting(work.arrival, work.tau, work.deadline, number))
    for ahead in range(len(waiting)):
        task = order.pop(snapshot.now, len(waiting) + 1)
        if task is None or task.number == position:
            return ahead
    return len(waiting)


def _quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
