"""One simulation of a queue and its workers, from a real moment on."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from rts.scheduling.arrivals import Arrivals
from rts.scheduling.draws import TRIES, Runtimes, Work
from rts.simulation.orders import HOPE, EarliestDeadlineFirst, Order, Waiting
from rts.tau.sketch import Sketch

#: Seconds within which a message is claimed where a slot is free.
CLAIM_S = 0.25
#: Seconds after which a run that goes on has been noted (a heartbeat).
NOTED_S = 1.0
#: The number of what runs and is not known.
NOBODY = -(1 << 40)


@dataclass(frozen=True)
class Snapshot:
    """A queue and its workers at one moment."""

    now: float
    slots: int
    #: In the order of the queue.
    waiting: Sequence[Work] = ()
    #: What workers have taken and not started, in their order: prefetched, or with an eta.
    held: Sequence[Work] = ()
    #: With the instants at which they have started.
    running: Sequence[tuple[Work, float]] = ()
    #: Learned ratios of runtime over tau, by type.
    ratios: Mapping[str, Sketch] = field(default_factory=dict)
    #: The last runs that have ended, with their runtimes in seconds.
    ended: Sequence[tuple[Work, float]] = ()
    #: What has arrived within the last ``span_s`` seconds, whatever became of it.
    lately: Sequence[Work] = ()
    span_s: float = 0.0
    #: Until then nothing comes but what is among ``waiting``; 0: until now.
    known_until: float = 0.0
    #: Routing keys of other queues whose tasks take the same slots.
    beside: Set[str] = frozenset()
    #: Share of the slots' time that this queue gets, above 0 to 1: other queues and
    #: what a worker needs between two tasks have the rest.
    share: float = 1.0
    #: The same of what is held: where there are other queues, theirs is among it.
    held_share: float = 1.0
    #: Claims that the deadline order has counted for the demoted (see ``claim.lua``).
    turns: int = 0


class Play:
    """One simulation. Tasks are known by number: what waits by its position, what is held
    by −1 − its position, all others beyond.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        order: Order,
        draw: Runtimes,
        coming: Arrivals,
        rng: random.Random,
        new: Work | None = None,
    ) -> None:
        self.now = now = snapshot.now
        #: Simulated so far.
        self.events = 0
        self._slots = snapshot.slots
        self._order = order
        self._draw = draw
        self._stretch, self._held_stretch = 1 / snapshot.share, 1 / snapshot.held_share
        self._works = [*snapshot.waiting, *([] if new is None else [new])]
        self._arrivals = coming.stream()
        #: What starts before all that waits, and what will once it is ready.
        self._first: deque[int] = deque()
        self._later: list[tuple[float, int]] = []
        self._held = snapshot.held
        for position, work in enumerate(snapshot.held):
            self._hold(-1 - position, work)
        for number, work in enumerate(self._works):
            order.push(Waiting(work.arrival, work.tau, work.deadline, number))
        #: Ends of runs.
        self._ends: list[tuple[float, int]] = []
        self._claimed: dict[int, Waiting] = {}
        demoted = []
        for position, (work, started) in enumerate(snapshot.running[: snapshot.slots]):
            number = -1 - len(snapshot.held) - position
            end = started + draw.beyond(work, now - started)
            heapq.heappush(self._ends, (end, number))
            if started > work.deadline - HOPE * work.tau:
                demoted.append(number)
        if isinstance(order, EarliestDeadlineFirst):
            order.resume(snapshot.turns, demoted)
        known = (*snapshot.held, *snapshot.waiting)
        left = [w for w in known if max(w.arrival, w.ready) < now - CLAIM_S]
        # What has been left waiting tells that every slot is taken, by something like it.
        while left and len(self._ends) < snapshot.slots:
            heapq.heappush(self._ends, (now + self._left_of_unknown(left, rng), NOBODY))

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
                number = len(self._works)
                self._works.append(arrival)
                self._order.push(Waiting(self.now, arrival.tau, arrival.deadline, number))
                arrival = next(self._arrivals, None)
        return self.now

    def _claims(self, target: int) -> bool:
        """Fill the free slots; return whether the target was started."""
        while len(self._ends) < self._slots:
            if self._first:
                number = self._first.popleft()
            else:
                task = self._order.pop(self.now, self._slots)
                if any(dropped.number == target for dropped in self._order.dropped()):
                    self.now = math.inf
                    return True
                if task is None:
                    return False
                number = task.number
                self._claimed[number] = task
                if self._works[number].ready > self.now:
                    self._order.ended(self._claimed.pop(number))
                    heapq.heappush(self._later, (self._works[number].ready, number))
                    continue
            if number == target:
                return True
            work = self._works[number] if number >= 0 else self._held[-1 - number]
            run_s = self._draw.of(work) * (self._stretch if number >= 0 else self._held_stretch)
            heapq.heappush(self._ends, (self.now + run_s, number))
        return False

    def _end(self) -> None:
        self.now, number = heapq.heappop(self._ends)
        task = self._claimed.pop(number, None)
        if task is not None:
            self._order.ended(task)
        elif number < 0 and isinstance(self._order, EarliestDeadlineFirst):
            self._order.released(number)

    def _hold(self, number: int, work: Work) -> None:
        if work.ready > self.now:
            heapq.heappush(self._later, (work.ready, number))
        else:
            self._first.append(number)
