"""When a task will start and finish: simulations of what is ahead of it.

Each simulation plays the queue forward from now, by the rule that the workers keep:
what runs, what workers hold, what waits, and arrivals to come
(:mod:`rts.predictions.arrivals`), with runtimes drawn from what was learned
(:mod:`rts.predictions.sampling`). What the many simulations give is the prediction. No
formula: slots, demotion and overtaking are as in :mod:`rts.simulation.orders`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from rts.predictions.arrivals import Arrivals
from rts.predictions.prediction import Prediction
from rts.predictions.sampling import Runtimes, Work
from rts.predictions.shared_workers import Crew, OrderMaker, Queues
from rts.predictions.simulation import QueueSimulation, waiting_of
from rts.predictions.snapshot import Snapshot
from rts.simulation.orders import FirstComeFirstServed

#: Simulations for one prediction, at least and at most, and events that all of them
#: take together at most: some tenths of a second of one core.
LEAST_RUNS, RUNS, MOST_EVENTS = 40, 120, 60_000
#: Arrivals until the eta of a task that are played, about: one may stand for several.
ARRIVALS = 500
#: A task with an eta that is no further away is one of those that start as they come: a
#: reading of its queue is that old at most, seconds.
SOON_S = 1.0
#: The interval's ends: 90 % of the simulations lie between.
LOW, HIGH = 0.05, 0.95
#: Below this a wait is none, seconds.
NO_WAIT_S = 1e-3


def of_new(snapshot: Snapshot, work: Work, order: OrderMaker) -> Prediction:
    """Predict a task that would be published now."""
    return _queued(snapshot, len(snapshot.waiting), order, work)


def of_waiting(snapshot: Snapshot, position: int, order: OrderMaker) -> Prediction:
    """Predict the task at *position* in ``snapshot.waiting``."""
    return _queued(snapshot, position, order)


def of_held(snapshot: Snapshot, position: int, order: OrderMaker) -> Prediction:
    """Predict the task at *position* in ``snapshot.held``."""
    return _queued(snapshot, -1 - position, order)


def of_running(snapshot: Snapshot, work: Work, started: float) -> Prediction:
    """Predict a task that has *started*."""
    draw = Runtimes(snapshot.ratios, snapshot.ended, random.Random(0))
    elapsed_s = snapshot.now - started
    ends = [started + draw.beyond(work, elapsed_s) for _ in range(RUNS)]
    found = _summed(snapshot, work, [started] * RUNS, ends, 0)
    return replace(found, start=started)


def _queued(
    snapshot: Snapshot, target: int, order: OrderMaker, new: Work | None = None
) -> Prediction:
    if snapshot.slots < 1:
        raise ValueError("no worker takes tasks from this queue")
    rng = random.Random(0)  # the same question has the same answer
    draw = Runtimes(snapshot.ratios, snapshot.ended, rng)
    since = max(snapshot.now, snapshot.known_until)
    slots = sum(crew.slots for crew in snapshot.hands)
    waiting = [*snapshot.waiting, *([] if new is None else [new])]
    together = sum(other.weight for other in waiting) / max(1, len(waiting))
    work = waiting[target] if target >= 0 else snapshot.held[-1 - target]
    lately = snapshot.lately
    until_ready_s = max(0.0, work.ready - since)
    if until_ready_s < SOON_S and isinstance(order(), FirstComeFirstServed):
        lately = [w for w in lately if w.queue]  # of its own queue later ones come later
    if snapshot.span_s > 0:
        expected = sum(w.weight for w in lately) / snapshot.span_s * until_ready_s
        together = max(together, expected / ARRIVALS)
    coming = Arrivals(lately, snapshot.span_s, since, slots, rng, max(1.0, together))
    starts: list[float] = []
    runs: list[float] = []
    events = 0
    while len(starts) < RUNS and (events < MOST_EVENTS or len(starts) < LEAST_RUNS):
        draw.resample()
        play = QueueSimulation(snapshot, order, draw, coming, rng, new)
        starts.append(play.start_of(target, MOST_EVENTS // LEAST_RUNS))
        runs.append(draw.of(work))
        events += play.events
    ends = [start + run_s for start, run_s in zip(starts, runs, strict=True)]
    ahead = _ahead(snapshot, waiting, target, work, order)
    found = _summed(snapshot, work, starts, ends, ahead)
    # Each is typical by itself: the simulations that agree best on one may be others.
    return replace(found, finish=max(found.finish, found.start + _quantile(runs, LOW)))


def _summed(
    snapshot: Snapshot, work: Work, starts: list[float], ends: list[float], ahead: int
) -> Prediction:
    now = snapshot.now
    return Prediction(
        start=typical(starts, now),
        start_low=_quantile(starts, LOW),
        start_high=_quantile(starts, HIGH),
        finish=typical(ends, now),
        finish_low=_quantile(ends, LOW),
        finish_high=_quantile(ends, HIGH),
        deadline=work.deadline,
        on_time=sum(end <= work.deadline for end in ends) / len(ends),
        ahead=ahead,
        slots=snapshot.slots,
    )


def _ahead(
    snapshot: Snapshot, waiting: list[Work], target: int, work: Work, order: OrderMaker
) -> int:
    """Return how many tasks would be taken before the target, *work*, were nothing to come."""
    # What is held for a later eta does not start before it.
    before = snapshot.held if target >= 0 else snapshot.held[: -1 - target]
    held = sum(other.ready <= max(snapshot.now, work.ready) for other in before)
    if target < 0:
        return held
    # All workers of the queue as one.
    queues = {n for crew in snapshot.hands if 0 in crew.queues for n in crew.queues}
    line = Queues(
        order, [Crew(snapshot.slots, tuple(sorted(queues)))], in_turn=snapshot.in_turn
    )
    among = [number for number, other in enumerate(waiting) if other.queue in queues]
    for number in among:
        line.push(waiting[number].queue, waiting_of(waiting[number], number))
    ahead = 0.0
    while (task := line.pop(0, snapshot.now, len(among) + 1)) is not None:
        if task.number == target:
            break
        ahead += waiting[task.number].weight
        line.ended(task)  # or what is demoted would stop where it has its share of the slots
    return round(ahead) + held


def typical(instants: Sequence[float], now: float) -> float:
    """Return the instant whose distance from *now* has the least median relative error.

    It lies in the middle of the half that is closest together (the least median of
    squares, of ratios; Rousseeuw, *JASA* 79, 1984). Where tasks start either soon or late
    it is one of both, where the plain median may lie between.

    >>> typical([104.0, 105.0, 106.0, 150.0, 190.0], 100.0)
    104.8
    """
    waits = sorted(max(0.0, instant - now) for instant in instants)
    half = len(waits) // 2
    if waits[half] < NO_WAIT_S:
        return now
    pairs = [
        (low, high)
        for low, high in zip(waits, waits[half:], strict=False)
        if low >= NO_WAIT_S and high < math.inf
    ]
    if not pairs:
        return now + waits[half]
    low, high = min(pairs, key=lambda pair: pair[1] / pair[0])
    return now + 2 * low * high / (low + high)


def _quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
