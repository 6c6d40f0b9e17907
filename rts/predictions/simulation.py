"""One simulation of a queue and its workers, from a real moment on."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence

from rts.deadlines import hopeful_until
from rts.predictions.arrivals import Arrivals
from rts.predictions.prefetched import PrefetchedWork
from rts.predictions.sampling import TRIES, Runtimes, Work
from rts.predictions.shared_workers import OrderMaker, Queues
from rts.predictions.snapshot import Snapshot
from rts.simulation.orders import Waiting

#: Seconds within which a message is claimed where a slot is free.
CLAIM_S = 0.25
#: Seconds after which a run that goes on has been noted (a heartbeat).
NOTED_S = 1.0
#: Of tasks that one stands for, as many are taken together as this share of what was taken
#: before: the first ones alone, so that what is hopeless by then is.
AT_ONCE = 0.02
#: Looks of workers for something to take that count as one event.
LOOKS = 16
#: The numbers of what runs and is not known begin here, downwards.
NOBODY = -(1 << 40)


def waiting_of(work: Work, number: int) -> Waiting:
    """Return *work* as the orders need it."""
    return Waiting(work.arrival, work.tau, work.deadline, number, work.due)


class QueueSimulation:
    """One simulation. Tasks are known by number: what waits by its position, what is held
    by −1 − its position, all others beyond.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        order: OrderMaker,
        draw: Runtimes,
        coming: Arrivals,
        rng: random.Random,
        new: Work | None = None,
    ) -> None:
        self.now = now = snapshot.now
        #: Simulated so far.
        self.events = 0
        self._crews = snapshot.hands
        self._slots = sum(crew.slots for crew in self._crews)
        self._queues = Queues(order, self._crews, in_turn=snapshot.in_turn)
        self._draw = draw
        self._stretch = 1 / snapshot.share
        self._works = [*snapshot.waiting, *([] if new is None else [new])]
        self._arrivals = coming.stream()
        self._held = snapshot.held
        for number, work in enumerate(self._works):
            self._push(number, work)
        #: Ends of runs, with their crews; and how many slots of each are taken.
        self._ends: list[tuple[float, int, int]] = []
        self._busy = [0] * len(self._crews)
        self._claimed: dict[int, Waiting] = {}
        #: Tasks that were taken, of those that waited.
        self._taken = 0.0
        demoted = []
        for position, (work, started, crew) in enumerate(snapshot.running):
            if self._busy[crew] == self._crews[crew].slots:
                continue
            number = -1 - len(snapshot.held) - position
            self._begin(started + draw.beyond(work, now - started), number, crew)
            if started > hopeful_until(work.deadline, work.tau):
                demoted.append(number)
        self._queues.resume(snapshot.turns, demoted)
        #: All crews, the one that asks the broker next first; and those that may have
        #: something to take.
        self._asking = rng.sample(range(len(self._crews)), len(self._crews))
        self._looking: Sequence[int] = self._asking
        self._lines = PrefetchedWork(self._crews)
        #: What crews start once it is ready.
        self._later: list[tuple[float, int, int]] = []
        self._hold(snapshot.held_by, rng)
        self._fill(snapshot.waiting, rng)

    def _hold(self, held_by: Sequence[int | None], rng: random.Random) -> None:
        """Give the crews what they have taken: where that is not known to any that has room.
        What has not begun for a while is with one that has no free slot, if there is one.
        """
        unknown = []
        for position, work in enumerate(self._held):
            crew = held_by[position] if position < len(held_by) else None
            if crew is None:
                unknown.append((position, work))
            else:
                self._line_up(crew, -1 - position, work)
        full = [c for c, hands in enumerate(self._crews) if self._busy[c] == hands.slots]
        for position, work in unknown:
            takers = self._takers(work.queue, full) if _is_left(work, self.now) else []
            takers = takers or self._takers(work.queue, self._asking)
            if takers:  # or nobody takes from its queue any more
                self._line_up(rng.choice(takers), -1 - position, work)

    def _takers(self, queue: int, among: Sequence[int]) -> list[int]:
        """Return which crews may have taken a message of *queue*."""
        takers = [crew for crew in among if queue in self._crews[crew].queues]
        return list(filter(self._lines.has_room, takers)) or takers

    def _fill(self, waiting: Sequence[Work], rng: random.Random) -> None:
        """Have something run in the slots that cannot be free: what has been left waiting
        tells that all are taken, by something like it; if all of it is demoted, that as
        many are as such work may hold.
        """
        left = [work for work in waiting if _is_left(work, self.now)]
        of_queues: dict[tuple[int, ...], tuple[list[Work], list[Work]]] = {}
        for crew, hands in enumerate(self._crews):
            if self._busy[crew] == hands.slots:
                continue
            if hands.queues not in of_queues:
                own = [work for work in left if work.queue in hands.queues]
                of_queues[hands.queues] = own, self._hopeful(own)
            alike, hopeful = of_queues[hands.queues]
            held = map(self._work, self._lines.of(crew))
            if line := [work for work in held if _is_left(work, self.now)]:
                alike, hopeful = line + alike, self._hopeful(line) + hopeful
            while alike and self._busy[crew] < hands.slots:
                number = NOBODY - len(self._ends)
                if not hopeful and not self._queues.hold_demoted(number, self._slots):
                    break
                end = self.now + self._left_of_unknown(hopeful or alike, rng)
                self._begin(end, number, crew)

    def _hopeful(self, works: Sequence[Work]) -> list[Work]:
        return [work for work in works if not self._is_demoted(work)]

    def _left_of_unknown(self, alike: Sequence[Work], rng: random.Random) -> float:
        """Return the seconds that a run will still take which nobody has noted: it has
        started within the last NOTED_S, and goes on.
        """
        run_s = 0.0
        for _ in range(TRIES):
            run_s = self._draw.of(alike[int(rng.random() * len(alike))])
            elapsed_s = rng.random() * NOTED_S
            if run_s > elapsed_s:
                return run_s - elapsed_s
        return rng.random() * run_s

    def start_of(self, target: int, most_events: int) -> float:
        """Return when the task of number *target* starts; at least then, where that takes
        more than *most_events* events; infinite if it is dropped.
        """
        arrival = next(self._arrivals, None)
        while self.events < most_events:
            self.events += 1
            if self._claims(target):
                return self.now
            later = self._later[0][0] if self._later else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            if end <= later and (arrival is None or end <= arrival.arrival):
                if end == math.inf:
                    return math.inf
                self._end()
            elif arrival is None or later <= arrival.arrival:
                self.now, crew, number = heapq.heappop(self._later)
                self._line_up(crew, number, self._work(number))
                self._looking = (crew,)
            else:
                self.now = arrival.arrival
                self._works.append(arrival)
                self._push(len(self._works) - 1, arrival)
                self._looking = self._asking
                arrival = next(self._arrivals, None)
        return max(self.now, self._work(target).ready)

    def _claims(self, target: int) -> bool:
        """Have the crews take what they may, one after the other; return whether the
        target has started, or was dropped.
        """
        looking = self._looking
        self.events += len(looking) // LOOKS
        while looking:
            taking: list[int] = []
            for crew in looking:
                free = self._busy[crew] < self._crews[crew].slots
                number = self._next(crew, target, free)
                if number is None:
                    continue
                taking.append(crew)
                work = self._work(number)
                later = work.ready > self.now
                if later:
                    self._queues.ended(self._claimed.pop(number))
                if later or not free:
                    self._line_up(crew, number, work)
                elif number == target:
                    return True
                else:
                    run_s = self._draw.of(work) * work.weight * self._stretch
                    self._begin(self.now + run_s, number, crew)
            if taking and len(self._looking) > 1:
                self._served(taking)
            looking = taking
        return False

    def _served(self, crews: Sequence[int]) -> None:
        """Note that *crews* have been given something: the others are served before them,
        as a Redis does.
        """
        last = set(crews)
        self._asking = [c for c in self._asking if c not in last] + [*crews]

    def _next(self, crew: int, target: int, free: bool) -> int | None:
        """Return the number of what *crew* starts, having a slot *free*, or takes ahead."""
        number = self._lines.pop(crew) if free else None
        if number is None and (free or self._lines.has_room(crew)):
            return self._take(crew, target)
        return number

    def _take(self, crew: int, target: int) -> int | None:
        """Return the number of what *crew* takes from its queues, ``None``: nothing; the
        target's, at no time, if it is dropped.
        """
        task = self._queues.pop(crew, self.now, self._slots)
        if self._queues.has_dropped(target):
            self.now = math.inf
            return target
        if task is None:
            return None
        number = task.number
        work = self._works[number]
        self._claimed[number] = task
        if work.ready <= self.now:
            at_once = min(work.weight, max(1.0, AT_ONCE * self._taken))
            self._taken += at_once
            if at_once < work.weight:
                self._put_back(task, work, work.weight - at_once)
                self._works[number] = work._replace(weight=at_once)
        return number

    def _begin(self, end: float, number: int, crew: int) -> None:
        heapq.heappush(self._ends, (end, number, crew))
        self._busy[crew] += 1

    def _end(self) -> None:
        self.now, number, crew = heapq.heappop(self._ends)
        self._busy[crew] -= 1
        self._looking = (crew,) if self._queues.apart else self._asking
        task = self._claimed.pop(number, None)
        if task is not None:
            self._queues.ended(task)
        elif number < 0:
            self._queues.released(number)

    def _work(self, number: int) -> Work:
        return self._works[number] if number >= 0 else self._held[-1 - number]

    def _push(self, number: int, work: Work) -> None:
        self._queues.push(work.queue, waiting_of(work, number))

    def _is_demoted(self, work: Work) -> bool:
        return self._queues.is_demoted(work.queue, waiting_of(work, NOBODY), self.now)

    def _put_back(self, task: Waiting, work: Work, weight: float) -> None:
        """Put back what has not started of the tasks that *task* stands for."""
        self._works.append(work._replace(weight=weight))
        rest = task._replace(number=len(self._works) - 1)
        self._queues.put_back(work.queue, rest)

    def _line_up(self, crew: int, number: int, work: Work) -> None:
        """Have *crew* start what it has taken when it comes to it, or once that is ready."""
        if work.ready > self.now:
            heapq.heappush(self._later, (work.ready, crew, number))
        else:
            self._lines.add(crew, number, work.weight)


def _is_left(work: Work, now: float) -> bool:
    """Return whether *work* would have started, were a slot free."""
    return max(work.arrival, work.ready) < now - CLAIM_S
