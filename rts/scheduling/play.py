"""One simulation of a queue and its workers, from a real moment on."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rts.scheduling.arrivals import Arrivals
from rts.scheduling.draws import TRIES, Runtimes, Work
from rts.scheduling.together import Crew, OrderMaker, Queues
from rts.simulation.orders import HOPE, Waiting
from rts.tau.sketch import Sketch

#: Seconds within which a message is claimed where a slot is free.
CLAIM_S = 0.25
#: Seconds after which a run that goes on has been noted (a heartbeat).
NOTED_S = 1.0
#: Of tasks that one stands for, as many start together as this share of what has started
#: before: the first ones alone, so that what is hopeless by then is.
AT_ONCE = 0.02
#: The numbers of what runs and is not known begin here, downwards.
NOBODY = -(1 << 40)


def waiting_of(work: Work, number: int) -> Waiting:
    """Return *work* as the orders need it."""
    return Waiting(work.arrival, work.tau, work.deadline, number, work.due)


class Running(NamedTuple):
    """A run that goes on."""

    work: Work
    #: Epoch seconds.
    started: float
    #: Number of the crew that runs it.
    crew: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A queue, those that share workers with it, and the workers, at one moment."""

    now: float
    #: Of the workers that take from the queue.
    slots: int
    #: In the order of the queue; what waits in the others comes last.
    waiting: Sequence[Work] = ()
    #: What workers have taken and not started, in their order: prefetched, or with an eta.
    held: Sequence[Work] = ()
    running: Sequence[Running] = ()
    #: Learned ratios of runtime over tau, by type.
    ratios: Mapping[str, Sketch] = field(default_factory=dict)
    #: The last runs that have ended, with their runtimes in seconds.
    ended: Sequence[tuple[Work, float]] = ()
    #: What has arrived within the last ``span_s`` seconds, whatever became of it.
    lately: Sequence[Work] = ()
    span_s: float = 0.0
    #: Until then nothing comes but what is among ``waiting``; 0: until now.
    known_until: float = 0.0
    #: All workers; empty: those of the queue, which take from no other.
    crews: Sequence[Crew] = ()
    #: Whether they ask their queues in turn, or the first one first.
    in_turn: bool = True
    #: Share of the slots' time that tasks get, above 0 to 1: what a worker needs
    #: between two tasks has the rest.
    share: float = 1.0
    #: Of each queue, claims that the deadline order has counted for the demoted (see
    #: ``claim.lua``).
    turns: Sequence[int] = ()

    @property
    def hands(self) -> Sequence[Crew]:
        """All workers."""
        return self.crews or (Crew(self.slots),)


class Play:
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
        #: What starts before all that waits, and what will once it is ready.
        self._first: deque[int] = deque()
        self._later: list[tuple[float, int]] = []
        self._held = snapshot.held
        for position, work in enumerate(snapshot.held):
            self._hold(-1 - position, work)
        for number, work in enumerate(self._works):
            self._push(number, work)
        #: Ends of runs, with their crews; and how many slots of each are taken.
        self._ends: list[tuple[float, int, int]] = []
        self._busy = [0] * len(self._crews)
        self._claimed: dict[int, Waiting] = {}
        #: Tasks that have started, of those that waited.
        self._started = 0.0
        demoted = []
        for position, (work, started, crew) in enumerate(snapshot.running):
            if self._busy[crew] == self._crews[crew].slots:
                continue
            number = -1 - len(snapshot.held) - position
            self._begin(started + draw.beyond(work, now - started), number, crew)
            if started > work.deadline - HOPE * work.tau:
                demoted.append(number)
        self._queues.resume(snapshot.turns, demoted)
        known = (*snapshot.held, *snapshot.waiting)
        left = [w for w in known if max(w.arrival, w.ready) < now - CLAIM_S]
        for crew, hands in enumerate(self._crews):
            # What has been left waiting tells that every slot is taken, by something like it;
            # if all of it is demoted, that as many are as such work may hold.
            if self._busy[crew] == hands.slots:
                continue
            alike = [work for work in left if work.queue in hands.queues]
            hopeful = [work for work in alike if not self._is_demoted(work)]
            while alike and self._busy[crew] < hands.slots:
                number = NOBODY - len(self._ends)
                if not hopeful and not self._queues.hold_demoted(number, self._slots):
                    break
                self._begin(now + self._left_of_unknown(hopeful or alike, rng), number, crew)

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
                self.now, number = heapq.heappop(self._later)
                self._first.append(number)
            else:
                self.now = arrival.arrival
                self._works.append(arrival)
                self._push(len(self._works) - 1, arrival)
                arrival = next(self._arrivals, None)
        return self.now

    def _claims(self, target: int) -> bool:
        """Fill the free slots; return whether the target was started."""
        for crew, hands in enumerate(self._crews):
            while self._busy[crew] < hands.slots:
                number = self._next_held(hands) if self._first else None
                if number is None:
                    task = self._queues.pop(crew, self.now, self._slots)
                    if self._queues.has_dropped(target):
                        self.now = math.inf
                        return True
                    if task is None:
                        break
                    number = task.number
                    self._claimed[number] = task
                    if self._works[number].ready > self.now:
                        self._queues.ended(self._claimed.pop(number))
                        heapq.heappush(self._later, (self._works[number].ready, number))
                        continue
                if number == target:
                    return True
                work = self._work(number)
                at_once = 1.0
                if number >= 0:
                    at_once = min(work.weight, max(1.0, AT_ONCE * self._started))
                    self._started += at_once
                    if work.weight > at_once:
                        self._put_back(self._claimed[number], work, work.weight - at_once)
                run_s = self._draw.of(work) * at_once * self._stretch
                self._begin(self.now + run_s, number, crew)
        return False

    def _begin(self, end: float, number: int, crew: int) -> None:
        heapq.heappush(self._ends, (end, number, crew))
        self._busy[crew] += 1

    def _end(self) -> None:
        self.now, number, crew = heapq.heappop(self._ends)
        self._busy[crew] -= 1
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

    def _next_held(self, hands: Crew) -> int | None:
        """Return the number of what starts before all that waits; ``None``: nothing."""
        for place, number in enumerate(self._first):
            if self._work(number).queue in hands.queues:
                del self._first[place]
                return number
        return None

    def _hold(self, number: int, work: Work) -> None:
        if work.ready > self.now:
            heapq.heappush(self._later, (work.ready, number))
        else:
            self._first.append(number)
