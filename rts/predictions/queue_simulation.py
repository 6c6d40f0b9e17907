"""One simulation of a queue and its workers, from their real state on."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from itertools import zip_longest

from rts.predictions.arrivals import Arrivals
from rts.predictions.prefetched_work import PrefetchedWork
from rts.predictions.runtimes import TRIES, Runtimes
from rts.predictions.snapshot import Snapshot
from rts.predictions.work import Work
from rts.simulation.queues import Queues
from rts.unfinished.heartbeat import BEAT_S

#: Seconds within which a message is claimed if a slot is free.
CLAIM_S = 0.25
#: Seconds within which the end of a run becomes visible in Redis.
ENDED_S = 0.25
#: A task that stands for several is served in parts, so that time passes between them and some
#: may turn hopeless: each is at most this share of all tasks taken before.
PART = 0.02
#: Polls of workers that count as one event.
POLLS = 16
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
        self._groups = snapshot.worker_groups
        self._slots = sum(group.slots for group in self._groups)
        self._queues = Queues(snapshot.order, self._groups, in_turn=snapshot.in_turn)
        self._runtimes = runtimes
        self._stretch = 1 / snapshot.share
        self._works = [*snapshot.waiting]
        self._arrivals = arrivals.stream(snapshot.unknown_since)
        self._held = snapshot.held
        for number, work in enumerate(self._works):
            self._push(number, work)
        #: Heap of end, number and group of each run; and busy slots by group.
        self._ends: list[tuple[float, int, int]] = []
        self._busy = [0] * len(self._groups)
        #: Waiting tasks that were taken.
        self._taken = 0.0
        self._resume(snapshot, rng)
        #: All groups in the order in which the broker serves them; and those that may be able
        #: to take something now.
        self._serving = rng.sample(range(len(self._groups)), len(self._groups))
        self._polling: Sequence[int] = self._serving
        self._prefetched = PrefetchedWork(self._groups)
        #: Heap of ready time, group and number of held tasks with an eta.
        self._later: list[tuple[float, int, int]] = []
        self._assign_held(snapshot.held_by, rng)
        self._fill(snapshot, rng)

    def _resume(self, snapshot: Snapshot, rng: random.Random) -> None:
        """Begin the runs in progress, as far as there are slots. One that was in progress a
        moment ago may have ended since: what has followed it is unknown too.
        """
        demoted = []
        for position, (work, started, group) in enumerate(snapshot.running):
            if self._busy[group] == self._groups[group].slots:
                continue
            number = -1 - len(self._held) - position
            known_s = self.now - rng.random() * ENDED_S - started
            end = started + self._runtimes.draw_longer(work, known_s)
            if end <= self.now:
                continue
            self._begin(end, number, group)
            if self._is_demoted(work, started):
                demoted.append(number)
        self._queues.resume(snapshot.turns, demoted)

    def _assign_held(self, held_by: Sequence[int | None], rng: random.Random) -> None:
        """Assign the held tasks to their groups, or if unknown to any that has room. One that
        should have started by now is with a group without a free slot, if there is one.
        """
        unknown = []
        for position, (work, group) in enumerate(zip_longest(self._held, held_by)):
            if group is None:
                unknown.append((position, work))
            else:
                self._hold(group, -1 - position, work)
        full = [n for n, group in enumerate(self._groups) if self._busy[n] == group.slots]
        for position, work in unknown:
            takers = self._takers(work.queue, full) if _waits_for_slot(work, self.now) else []
            takers = takers or self._takers(work.queue, self._serving)
            if takers:  # else no worker consumes its queue any more
                self._hold(rng.choice(takers), -1 - position, work)

    def _takers(self, queue: int, among: Sequence[int]) -> list[int]:
        """Return which groups may have taken a message of *queue*."""
        takers = [group for group in among if queue in self._groups[group].queues]
        return list(filter(self._prefetched.has_room, takers)) or takers

    def _fill(self, snapshot: Snapshot, rng: random.Random) -> None:
        """Fill slots that cannot be free with unknown runs. If tasks wait that should have
        started by now, all slots must be busy, presumably with similar tasks; in deadline
        order, in which those that wait are the long ones, with tasks like the latest arrivals.
        Or, if all that wait are demoted, as many slots as demoted tasks may hold.
        """
        left = [work for work in snapshot.waiting if _waits_for_slot(work, self.now)]
        latest = {} if snapshot.by_arrival else snapshot.latest_arrivals
        by_queues: dict[tuple[int, ...], tuple[list[Work], list[Work]]] = {}
        for number, group in enumerate(self._groups):
            if self._busy[number] == group.slots:
                continue
            if group.queues not in by_queues:
                own = [work for work in left if work.queue in group.queues]
                by_queues[group.queues] = own, self._hopeful(own)
            similar, hopeful = by_queues[group.queues]
            held = map(self._work, self._prefetched.of(number))
            if line := [work for work in held if _waits_for_slot(work, self.now)]:
                similar, hopeful = line + similar, self._hopeful(line) + hopeful
            if not similar:
                continue
            came = [work for queue in group.queues for work in latest.get(queue, ())]
            while self._busy[number] < group.slots:
                run = UNKNOWN - len(self._ends)
                if not hopeful and not self._queues.hold_demoted(run, self._slots):
                    break
                end = self.now + self._rest_of_unknown(came or hopeful or similar, rng)
                self._begin(end, run, number)

    def _hopeful(self, works: Sequence[Work]) -> list[Work]:
        return [work for work in works if not self._is_demoted(work, self.now)]

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
            if self._claims(target):
                return self.now
            later = self._later[0][0] if self._later else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            if end <= later and (arrival is None or end <= arrival.arrival):
                if end == math.inf:
                    return math.inf
                self._end()
            elif arrival is None or later <= arrival.arrival:
                self.now, group, number = heapq.heappop(self._later)
                self._hold(group, number, self._work(number))
                self._polling = (group,)
            else:
                self.now = arrival.arrival
                self._works.append(arrival)
                self._push(len(self._works) - 1, arrival)
                self._polling = self._serving
                arrival = next(self._arrivals, None)
        return max(self.now, self._work(target).ready)

    def _claims(self, target: int) -> bool:
        """Let the groups take tasks in turn until none can; return whether the target has
        started or was dropped.
        """
        polling = self._polling
        self.events += len(polling) // POLLS
        while polling:
            taking: list[int] = []
            for group in polling:
                free = self._busy[group] < self._groups[group].slots
                number = self._next(group, target, free)
                if number is None:
                    continue
                taking.append(group)
                work = self._work(number)
                later = work.ready > self.now
                if later:
                    self._queues.ended(number)
                if later or not free:
                    self._hold(group, number, work)
                elif number == target:
                    return True
                else:
                    run_s = self._runtimes.draw(work) * work.weight * self._stretch
                    self._begin(self.now + run_s, number, group)
            if taking and len(self._polling) > 1:
                self._served(taking)
            polling = taking
        return False

    def _served(self, groups: Sequence[int]) -> None:
        """Move *groups*, which have taken something, behind the others: Redis serves blocked
        clients in the order in which they blocked.
        """
        last = set(groups)
        self._serving = [n for n in self._serving if n not in last] + [*groups]

    def _next(self, group: int, target: int, free: bool) -> int | None:
        """Return the number of the task that *group* starts, if a slot is *free*, or else
        prefetches; ``None``: none.
        """
        number = self._prefetched.pop(group) if free else None
        if number is None and (free or self._prefetched.has_room(group)):
            return self._take(group, target)
        return number

    def _take(self, group: int, target: int) -> int | None:
        """Return the number of the task that *group* takes from its queues; ``None``: none.
        If the target is dropped: its number, at an infinite time.
        """
        task = self._queues.pop(group, self.now, self._slots)
        if self._queues.has_dropped(target):
            self.now = math.inf
            return target
        if task is None:
            return None
        number = task.number
        work = self._works[number]
        if work.ready <= self.now:
            part = min(work.weight, max(1.0, PART * self._taken))
            self._taken += part
            if part < work.weight:  # put back the rest of the tasks that it stands for
                self._works[number] = work._replace(weight=part)
                self._works.append(work._replace(weight=work.weight - part))
                rest = task._replace(number=len(self._works) - 1)
                self._queues.put_back(work.queue, rest)
        return number

    def _begin(self, end: float, number: int, group: int) -> None:
        heapq.heappush(self._ends, (end, number, group))
        self._busy[group] += 1

    def _end(self) -> None:
        self.now, number, group = heapq.heappop(self._ends)
        self._busy[group] -= 1
        self._polling = (group,) if self._queues.independent else self._serving
        self._queues.ended(number)

    def _work(self, number: int) -> Work:
        return self._works[number] if number >= 0 else self._held[-1 - number]

    def _push(self, number: int, work: Work) -> None:
        self._queues.push(work.queue, work.waiting(number))

    def _is_demoted(self, work: Work, now: float) -> bool:
        return self._queues.is_demoted(work.queue, work.waiting(UNKNOWN), now)

    def _hold(self, group: int, number: int, work: Work) -> None:
        """Have *group* hold a task: it starts in its turn, once it is ready."""
        if work.ready > self.now:
            heapq.heappush(self._later, (work.ready, group, number))
        else:
            self._prefetched.add(group, number, work.weight)


def _waits_for_slot(work: Work, now: float) -> bool:
    """Return whether *work* would have started by now if a slot were free."""
    return max(work.arrival, work.ready) < now - CLAIM_S
