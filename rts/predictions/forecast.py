"""Monte Carlo prediction of when a task will start and finish.

Each simulation plays the queue forward from now under the rule that the workers follow,
with all running, held and waiting tasks, random future arrivals
(:mod:`rts.predictions.arrivals`), and runtimes sampled from past ones
(:mod:`rts.predictions.runtimes`). The prediction summarizes many simulations. There is no
closed form, since slots, demotion and overtaking are as in :mod:`rts.simulation.orders`.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace

from rts.predictions.arrivals import Arrivals
from rts.predictions.prediction import Prediction
from rts.predictions.queue_simulation import QueueSimulation
from rts.predictions.runtimes import Runtimes
from rts.predictions.snapshot import Snapshot
from rts.predictions.work import Work
from rts.simulation.queues import Queues, WorkerGroup

#: Simulations per prediction, and events of all of them together: some tenths of a second
#: of one core.
MIN_RUNS, MAX_RUNS, MAX_EVENTS = 40, 120, 60_000
#: Arrivals to simulate until the eta of a task, about: each may stand for several.
ARRIVALS = 500
#: An eta this near, in seconds, counts as none; also the greatest age of a cached reading.
SOON_S = 1.0
#: Quantiles of the simulations that bound the interval.
LOW, HIGH = 0.05, 0.95
#: Shorter waits count as none, seconds.
NO_WAIT_S = 1e-3
#: Simulations agree if one point stands for all of them with at most this relative error. It is
#: about the median error of predictions where not even half of them agree.
AGREEMENT = 0.4


def of_new(snapshot: Snapshot, work: Work) -> Prediction:
    """Predict a task that would be published now."""
    # Its plan may be older than the reading of the queue, but it has not waited there.
    waiting = [*snapshot.waiting, work.published_at(snapshot.now)]
    return of_waiting(replace(snapshot, waiting=waiting), len(waiting) - 1)


def of_waiting(snapshot: Snapshot, position: int) -> Prediction:
    """Predict the task at *position* in ``snapshot.waiting``."""
    return _queued(snapshot, position)


def of_held(snapshot: Snapshot, position: int) -> Prediction:
    """Predict the task at *position* in ``snapshot.held``."""
    return _queued(snapshot, -1 - position)


def of_running(snapshot: Snapshot, work: Work, started: float) -> Prediction:
    """Predict a task that has *started*."""
    runtimes = Runtimes(snapshot.ratios, snapshot.ended, random.Random(0))
    elapsed_s = snapshot.now - started
    ends = []
    for _ in range(MAX_RUNS):
        runtimes.resample()
        ends.append(started + runtimes.draw_longer(work, elapsed_s))
    found = _summary(snapshot, work, [started] * MAX_RUNS, ends, 0)
    return replace(found, start=started)


def _queued(snapshot: Snapshot, target: int) -> Prediction:
    """Predict a task by its number: see :class:`QueueSimulation`."""
    rng = random.Random(0)  # deterministic
    runtimes = Runtimes(snapshot.ratios, snapshot.ended, rng)
    work = snapshot.waiting[target] if target >= 0 else snapshot.held[-1 - target]
    arrivals = _arrivals(snapshot, work, rng)
    starts: list[float] = []
    runs: list[float] = []
    events = 0
    while len(starts) < MAX_RUNS and (events < MAX_EVENTS or len(starts) < MIN_RUNS):
        runtimes.resample()
        play = QueueSimulation(snapshot, runtimes, arrivals, rng)
        starts.append(play.start_of(target, MAX_EVENTS // MIN_RUNS))
        runs.append(runtimes.draw(work))
        events += play.events
    ends = [start + run_s for start, run_s in zip(starts, runs, strict=True)]
    ahead = _ahead(snapshot, target, work)
    found = _summary(snapshot, work, starts, ends, ahead)
    # Start and finish are estimated independently, so the finish might come too soon.
    return replace(found, finish=max(found.finish, found.start + quantile(runs, LOW)))


def _arrivals(snapshot: Snapshot, work: Work, rng: random.Random) -> Arrivals:
    """Return the model of the arrivals that *work* may have to wait for."""
    slots = sum(group.slots for group in snapshot.worker_groups)
    recent = snapshot.recent_arrivals
    until_ready_s = max(0.0, work.ready - snapshot.unknown_since)
    if until_ready_s < SOON_S and snapshot.by_arrival:
        recent = [w for w in recent if w.queue]  # later ones of its own queue go after it
    # An arrival stands for as many tasks as a waiting one does on average.
    weight = sum(w.weight for w in snapshot.waiting) / max(1, len(snapshot.waiting))
    if snapshot.span_s > 0:
        expected = sum(w.weight for w in recent) / snapshot.span_s * until_ready_s
        weight = max(weight, expected / ARRIVALS)
    until = snapshot.now - snapshot.unseen_s
    return Arrivals(recent, snapshot.span_s, until, slots, rng, max(1.0, weight))


def _summary(
    snapshot: Snapshot, work: Work, starts: list[float], ends: list[float], ahead: int
) -> Prediction:
    now = snapshot.now
    return Prediction(
        start=typical(starts, now),
        start_low=quantile(starts, LOW),
        start_high=quantile(starts, HIGH),
        finish=typical(ends, now),
        finish_low=quantile(ends, LOW),
        finish_high=quantile(ends, HIGH),
        deadline=work.deadline,
        on_time=sum(end <= work.deadline for end in ends) / len(ends),
        ahead=ahead,
        slots=snapshot.slots,
    )


def _ahead(snapshot: Snapshot, target: int, work: Work) -> int:
    """Return how many tasks will start before the target, *work*, if nothing else arrives."""
    # Tasks held for a later eta do not start before it.
    before = snapshot.held if target >= 0 else snapshot.held[: -1 - target]
    held = sum(other.ready <= max(snapshot.now, work.ready) for other in before)
    if target < 0:
        return held
    # Treat all workers of the queue as one.
    queues = {n for group in snapshot.worker_groups if 0 in group.queues for n in group.queues}
    everyone = WorkerGroup(snapshot.slots, tuple(sorted(queues)))
    line = Queues(snapshot.order, [everyone], in_turn=snapshot.in_turn)
    waiting = snapshot.waiting
    for other, task in zip(waiting, snapshot.waiting_tasks, strict=True):
        if other.queue in queues:
            line.push(other.queue, task)
    ahead = 0.0
    while (found := line.pop(0, snapshot.now, may=True)) is not None:
        _, task, _ = found
        if task.number == target:
            break
        ahead += task.weight
    return round(ahead) + held


def typical(instants: Sequence[float], now: float) -> float:
    """Return the instant on which the simulations agree best, by distance from *now*.

    It is the midpoint of the shortest half, by ratios: the point of least median relative
    error (least median of squares; Rousseeuw, *JASA* 79, 1984). Where not even half of them
    agree, that median is large wherever the point lies, so it is the point with which most
    of them agree: their mode (Chernoff, *Annals of the Institute of Statistical Mathematics*
    16, 1964). Over many predictions this makes the median error least.

    >>> typical([104.0, 105.0, 106.0, 150.0, 190.0], 100.0)
    104.8
    >>> typical([103.0, 104.0, 106.0, 150.0, 300.0, 900.0], 100.0)
    104.0
    >>> typical([100.0, 100.0, 101.0, 103.0, 110.0, 200.0], 100.0)
    100.0
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
    ratio = (1 + AGREEMENT) / (1 - AGREEMENT)
    if high > ratio * low:
        agreeing = (
            waits[index : bisect_right(waits, ratio * wait)]
            for index, wait in enumerate(waits)
            if NO_WAIT_S <= wait < math.inf
        )
        best = max(agreeing, key=len)
        if bisect_left(waits, NO_WAIT_S) > len(best):
            return now
        low, high = best[0], best[-1]
    return now + 2 * low * high / (low + high)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the value beyond which, seen from the median, one more lies with a probability of
    at most *q*, or 1 − *q* above the median, as far as there are enough values.

    Its rank is q·(n + 1), rounded outwards: of n values of the same distribution the rank of
    one more among them is uniform (Vovk, Gammerman & Shafer, *Algorithmic Learning in a Random
    World*, 2005).

    >>> quantile(range(1, 41), 0.05), quantile(range(1, 41), 0.95)
    (2, 39)
    """
    rank = q * (len(values) + 1)
    rank = math.floor(rank) if q < 0.5 else math.ceil(rank)
    return sorted(values)[min(len(values), max(1, rank)) - 1]
