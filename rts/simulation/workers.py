"""What workers take from their queues, and when they start it.

A message that a worker has taken waits for a slot of that worker, though another one may be
idle: one that it has prefetched in the broker's own order, and in any order one with an eta.
Workers take these as soon as they are first in the order, hold them without a slot until they
are ready, and start them before whatever they take afterwards.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from rts.deadlines import demoted_slots
from rts.simulation.orders import Waiting
from rts.simulation.queues import OrderMaker, Queues, WorkerGroup

#: Workers of the same queues that have room, the one that has waited longest first.
Line = OrderedDict["Worker", None]


@dataclass(eq=False, slots=True)
class Worker:
    """The state of a worker."""

    number: int
    group: WorkerGroup
    #: Counts up: of two that have room, the lesser one has waited longer for a message.
    since: int
    #: Slots that demoted tasks may hold.
    most_demoted: int
    #: The one in which it waits for a message if it has room.
    line: Line
    running: int = 0
    #: Tasks that wait for one of its slots, and how many messages they stand for.
    held: deque[Waiting] = field(default_factory=deque)
    held_weight: float = 0.0
    #: Numbers of the demoted tasks that it has taken and not ended.
    demoted: set[int] = field(default_factory=set)

    def has_free_slot(self) -> bool:
        """Return whether a task could start now."""
        return self.running < self.group.slots

    def has_room(self) -> bool:
        """Return whether it takes another task."""
        free = self.group.slots - self.running
        return len(self.held) < free or self.held_weight < self.group.prefetch

    def may_take_demoted(self) -> bool:
        """Return whether another slot may go to a demoted task."""
        return len(self.demoted) < self.most_demoted

    def hold(self, task: Waiting) -> None:
        """Have *task* wait for a slot."""
        self.held.append(task)
        self.held_weight += task.weight

    def start(self) -> Waiting:
        """Start the task that it has held longest."""
        task = self.held.popleft()
        # Weights are fractions: rounded, their sum may end below 0, as if there were room.
        self.held_weight = self.held_weight - task.weight if self.held else 0.0
        self.running += 1
        return task


class Workers:
    """Workers that each take from some of the queues, which are in the same *order*.

    After :meth:`take`, no worker that has room may take anything. So then only a task that is
    pushed, or a run that ends, lets one take again: the others are not asked.
    """

    def __init__(
        self,
        groups: Sequence[WorkerGroup],
        order: OrderMaker,
        *,
        in_turn: bool = True,
        turns: Sequence[int] = (),
        split: Callable[[Waiting], tuple[Waiting, Waiting | None]] | None = None,
    ) -> None:
        """*in_turn* and *turns*: see :class:`Queues`. *split* divides a task that was taken and
        stands for several into what the worker gets of it and the rest, which goes on waiting.
        """
        self._queues = Queues(order, groups, in_turn=in_turn, turns=turns)
        self._split = split
        numbers = {number for group in groups for number in group.queues}
        #: The number of the queue, if there is only one: then all tasks wait in it.
        self._only = min(numbers) if len(numbers) == 1 else None
        #: Tasks that wait in the queues.
        self._waiting = 0
        self._turns = len(groups)
        share = self._queues.hopeless_slots
        lines: defaultdict[tuple[int, ...], Line] = defaultdict(OrderedDict)
        #: In the order of *groups*.
        self.each = [
            Worker(n, group, n, demoted_slots(share, group.slots), lines[group.queues])
            for n, group in enumerate(groups)
        ]
        for worker in self.each:
            if worker.has_room():
                worker.line[worker] = None
        #: By queue: the lines of those that take from it.
        self._lines = {
            number: [line for queues, line in lines.items() if number in queues]
            for number in numbers
        }
        #: What has happened since the last :meth:`take`: workers that have ended a run, the
        #: number of tasks pushed by queue, and the tasks that have started.
        self._freed: list[Worker] = []
        self._pushed: Counter[int] = Counter()
        self._started: list[Waiting] = []
        #: By the number of a task that was taken and has not ended.
        self._takers: dict[int, Worker] = {}
        #: Numbers of those that were taken before they were ready.
        self._early: set[int] = set()
        #: Tasks that the last :meth:`take` has dropped for good.
        self.dropped: list[Waiting] = []

    def push(self, task: Waiting, queue: int) -> None:
        """Add a task to a queue."""
        if self._only is not None:
            queue = self._only
        self._waiting += 1
        self._queues.push(queue, task)
        self._pushed[queue] += 1

    def take(self, now: float) -> list[Waiting]:
        """Have the workers take what they have room for; return the tasks that have started."""
        self.dropped = []
        for worker in self._freed:
            while self._waiting and worker.has_room() and self._take(worker, now) is not None:
                pass
        self._freed.clear()
        pushed = self._pushed
        while pushed:
            queue = next(iter(pushed))
            taken = self._take_one(queue, now) if self._waiting else None
            if taken is None:  # nobody takes anything from it
                del pushed[queue]
                continue
            pushed[taken] -= 1  # perhaps from another queue of the same worker
            if pushed[taken] <= 0:
                del pushed[taken]
        started, self._started = self._started, []
        return started

    def _take_one(self, queue: int, now: float) -> int | None:
        """Have a worker that takes from *queue* take a task, of this or another of its queues;
        return the number of that queue; ``None``: nobody takes any.
        """
        for worker in self._takers_of(queue):
            taken = self._take(worker, now)
            if taken is not None:
                return taken
        return None

    def _takers_of(self, queue: int) -> Iterable[Worker]:
        """Return those that take from *queue* and have room, the one that has waited longest
        first.
        """
        lines = self._lines[queue]
        if len(lines) == 1:
            return lines[0]
        return heapq.merge(*lines, key=attrgetter("since"))

    def _take(self, worker: Worker, now: float) -> int | None:
        """Have *worker* take a task; return the number of its queue, ``None``: none for it."""
        queues = self._queues
        found = queues.pop(worker.number, now, worker.may_take_demoted())
        if queues.dropped:
            self._waiting -= len(queues.dropped)
            self.dropped += queues.dropped
            queues.dropped.clear()
        if found is None:
            return None
        queue, task, demoted = found
        self._waiting -= 1
        if task.weight > 1 and self._split is not None and task.ready <= now:
            task, rest = self._split(task)
            if rest is not None:
                self._waiting += 1
                queues.put_back(queue, rest)
                self._pushed[queue] += 1
        self._takers[task.number] = worker
        if task.ready > now:
            self._early.add(task.number)
        else:
            if demoted:
                worker.demoted.add(task.number)
            if worker.has_free_slot():
                worker.running += 1
                self._started.append(task)
            else:
                worker.hold(task)
        self._turns += 1
        worker.since = self._turns
        if worker.has_room():
            worker.line.move_to_end(worker)
        else:
            del worker.line[worker]
        return queue

    def ready(self, task: Waiting) -> None:
        """Have the worker that holds *task*, if one has taken it, start it in its turn."""
        if task.number in self._early:
            self._early.remove(task.number)
            worker = self._takers[task.number]
            worker.hold(task)
            self._start(worker)

    def ended(self, number: int) -> None:
        """Release the slot of a task."""
        worker = self._takers.pop(number)
        worker.demoted.discard(number)
        worker.running -= 1
        self._freed.append(worker)
        self._start(worker)

    def _start(self, worker: Worker) -> None:
        """Have *worker* start what it holds, as far as slots are free; then wait for a message,
        behind the others, if it has room.
        """
        while worker.held and worker.has_free_slot():
            self._started.append(worker.start())
        if not worker.has_room():
            worker.line.pop(worker, None)
        elif worker not in worker.line:
            self._turns += 1
            worker.since = self._turns
            worker.line[worker] = None

    # The state of real workers to begin with

    def resume(self, worker: Worker, number: int, *, demoted: bool) -> None:
        """Have a task run on a free slot of *worker*."""
        self._takers[number] = worker
        worker.running += 1
        if demoted:
            worker.demoted.add(number)

    def hold(self, worker: Worker, task: Waiting, now: float) -> None:
        """Have *worker* hold a task."""
        self._takers[task.number] = worker
        if task.ready > now:
            self._early.add(task.number)
        else:
            worker.hold(task)

    def start_held(self) -> None:
        """Have all workers start what they hold, and wait for messages as far as they have
        room: once it is known what else they run and hold.
        """
        for worker in self.each:
            self._start(worker)
