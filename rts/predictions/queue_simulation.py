"""One simulation of a queue and its workers, from their real state on."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from itertools import zip_longest

from rts.predictions.arrivals import Arrivals
from rts.predictions.runtimes import TRIES, Runtimes
from rts.predictions.snapshot import Snapshot
from rts.predictions.work import Work
from rts.simulation.orders import Waiting
from rts.simulation.workers import Worker, Workers
from rts.unfinished.heartbeat import BEAT_S

#: Seconds within which a message is claimed if a slot is free.
CLAIM_S = 0.25
#: Seconds within which the end of a run becomes visible in Redis.
ENDED_S = 0.25
#: A task that stands for several is served in parts, so that time passes between them and some
#: may turn hopeless: each is at most this share of all tasks started before.
PART = 0.02
#: Unknown runs are numbered downwards from here.
UNKNOWN = -(1 << 40)


class QueueSimulation:
    """One simulation. Tasks are identified by number: waiting ones by their position, held
    ones by −1 − their position, all others by numbers beyond these.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        runtimes: Runtimes,
        arrivals: Arrivals,
        rng: random.Random,
    ) -> None:
        self.now = snapshot.now
        #: Events so far, a measure of the effort.
        self.events = 0
        groups = snapshot.worker_groups
        # Which of them has waited longest for a message is unknown.
        ranks = rng.sample(range(len(groups)), len(groups))
        self._workers = Workers(
            [groups[number] for number in ranks],
            snapshot.order,
            in_turn=snapshot.in_turn,
            turns=snapshot.turns,
            split=self._split,
        )
        #: By the number of their group.
        self._by_group = dict(sorted(zip(ranks, self._workers.each, strict=True)))
        self._order = snapshot.order()
        self._runtimes = runtimes
        self._stretch = 1 / snapshot.share
        self._works = [*snapshot.waiting]
        self._arrivals = arrivals.stream(snapshot.unknown_since)
        self._held = snapshot.held
        #: Heap of the end and the number of each run.
        self._ends: list[tuple[float, int]] = []
        #: Heap of tasks with an eta by when they are ready.
        self._later: list[tuple[float, int, Waiting]] = []
        #: How many tasks have started.
        self._begun = 0.0
        for work, task in zip(self._works, snapshot.waiting_tasks, strict=True):
            self._push(work, task)
        self._resume(snapshot, rng)
        self._assign_held(snapshot, rng)
        self._fill(snapshot, rng)
        self._workers.start_held()

    def _resume(self, snapshot: Snapshot, rng: random.Random) -> None:
        """Begin the runs in progress, as far as there are slots. One that was in progress a
        moment ago may have ended since: what has followed it is unknown too.
        """
        for position, run in enumerate(snapshot.running):
            worker = self._by_group[run.group]
            if not worker.has_free_slot():
                continue
            number = -1 - len(self._held) - position
            known_s = self.now - rng.random() * ENDED_S - run.started
            end = run.started + self._runtimes.draw_longer(run.work, known_s)
            if end > self.now:
                self._resume_one(worker, number, end, demoted=snapshot.demoted[position])

    def _assign_held(self, snapshot: Snapshot, rng: random.Random) -> None:
        """Assign the held tasks to their workers, or if unknown to any that has room. One that
        should have started by now is with a worker without a free slot, if there is one.
        """
        unknown = []
        for task, group in zip_longest(snapshot.held_tasks, snapshot.held_by):
            if group is None:
                unknown.append(task)
            else:
                self._hold(self._by_group[group], task)
        everyone = [*self._by_group.values()]
        full = [worker for worker in everyone if not worker.has_free_slot()]
        for task in unknown:
            work = self._work(task.number)
            takers = _takers(work.queue, full) if _waits_for_slot(work, self.now) else []
            takers = takers or _takers(work.queue, everyone)
            if takers:  # else no worker consumes its queue any more
                self._hold(rng.choice(takers), task)

    def _fill(self, snapshot: Snapshot, rng: random.Random) -> None:
        """Fill slots that cannot be free with unknown runs. If tasks wait that should have
        started by now, all slots must be busy, presumably with similar tasks; in deadline
        order, in which those that wait are the long ones, with tasks like the latest arrivals.
        Or, if all that wait are demoted, as many slots as demoted tasks may hold.
        """
        left = [work for work in snapshot.waiting if _waits_for_slot(work, self.now)]
        latest = {} if snapshot.by_arrival else snapshot.latest_arrivals
        by_queues: dict[tuple[int, ...], tuple[list[Work], list[Work]]] = {}
        for worker in self._by_group.values():
            if not worker.has_free_slot():
                continue
            queues = worker.group.queues
            if queues not in by_queues:
                own = [work for work in left if work.queue in queues]
                by_queues[queues] = own, self._hopeful(own)
            similar, hopeful = by_queues[queues]
            held = (self._work(task.number) for task in worker.held)
            if line := [work for work in held if _waits_for_slot(work, self.now)]:
                similar, hopeful = line + similar, self._hopeful(line) + hopeful
            if not similar:
                continue
            came = [work for queue in queues for work in latest.get(queue, ())]
            while worker.has_free_slot():
                if not hopeful and not worker.may_take_demoted():
                    break
                end = self.now + self._rest_of_unknown(came or hopeful or similar, rng)
                number = UNKNOWN - len(self._ends)
                self._resume_one(worker, number, end, demoted=not hopeful)

    def _hopeful(self, works: Sequence[Work]) -> list[Work]:
        return [work for work in works if not self._order.is_demoted(work.waiting(0), self.now)]

    def _rest_of_unknown(self, similar: Sequence[Work], rng: random.Random) -> float:
        """Draw the remaining seconds of an unknown run, which has started since the last
        heartbeat, as it is not visible in Redis yet.
        """
        run_s = 0.0
        for _ in range(TRIES):
            run_s = self._runtimes.draw(similar[int(rng.random() * len(similar))])
            elapsed_s = rng.random() * BEAT_S
            if run_s > elapsed_s:
                return run_s - elapsed_s
        return rng.random() * run_s

    def start_of(self, target: int, max_events: int) -> float:
        """Simulate until the task with the number *target* starts and return that instant: a
        lower bound if *max_events* are not enough, infinite if it is dropped.
        """
        arrival = next(self._arrivals, None)
        while self.events < max_events:
            self.events += 1
            for task in self._workers.take(self.now):
                if task.number == target:
                    return self.now
                self._begun += task.weight
                run_s = self._runtimes.draw(self._work(task.number))
                end = self.now + run_s * task.weight * self._stretch
                heapq.heappush(self._ends, (end, task.number))
            if any(task.number == target for task in self._workers.dropped):
                return math.inf
            later = self._later[0][0] if self._later else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            if end <= later and (arrival is None or end <= arrival.arrival):
                if end == math.inf:
                    return math.inf
                self.now, number = heapq.heappop(self._ends)
                self._workers.ended(number)
            elif arrival is None or later <= arrival.arrival:
                self.now, _, task = heapq.heappop(self._later)
                self._workers.ready(task)
            else:
                self.now = arrival.arrival
                self._works.append(arrival)
                self._push(arrival, arrival.waiting(len(self._works) - 1))
                arrival = next(self._arrivals, None)
        return max(self.now, self._work(target).ready)

    def _split(self, task: Waiting) -> tuple[Waiting, Waiting | None]:
        """Divide a waiting task that stands for several: see PART."""
        part = min(task.weight, max(1.0, PART * self._begun))
        if part == task.weight:
            return task, None
        self._works.append(self._works[task.number])
        rest = task._replace(number=len(self._works) - 1, weight=task.weight - part)
        return task._replace(weight=part), rest

    def _work(self, number: int) -> Work:
        return self._works[number] if number >= 0 else self._held[-1 - number]

    def _push(self, work: Work, task: Waiting) -> None:
        self._expect(task)
        self._workers.push(task, work.queue)

    def _hold(self, worker: Worker, task: Waiting) -> None:
        self._expect(task)
        self._workers.hold(worker, task, self.now)

    def _expect(self, task: Waiting) -> None:
        """See to it that a task with an eta is started then."""
        if task.ready > self.now:
            heapq.heappush(self._later, (task.ready, task.number, task))

    def _resume_one(self, worker: Worker, number: int, end: float, *, demoted: bool) -> None:
        heapq.heappush(self._ends, (end, number))
        self._workers.resume(worker, number, demoted=demoted)


def _takers(queue: int, workers: Sequence[Worker]) -> list[Worker]:
    """Return which of *workers* may have taken a message of *queue*."""
    takers = [worker for worker in workers if queue in worker.group.queues]
    return [worker for worker in takers if worker.has_room()] or takers


def _waits_for_slot(work: Work, now: float) -> bool:
    """Return whether *work* would have started by now if a slot were free."""
    return max(work.arrival, work.ready) < now - CLAIM_S
