"""What workers take from their queues, and when they start it.

A message that a worker has taken waits for a slot of that worker, though another one may be
idle: one that it has prefetched in the broker's own order, and in any order one with an eta.
Workers take these as soon as they are first in the order, hold them without a slot until they
are ready, and start them before whatever they take afterwards. (Predictions keep what workers
hold in :mod:`rts.predictions.prefetched_work`.)
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from rts.simulation.orders import Waiting
from rts.simulation.queues import OrderMaker, Queues, WorkerGroup


@dataclass(eq=False)
class _Worker:
    number: int
    group: WorkerGroup
    #: Counts up: of two that have room, the lesser one has waited longer for a message.
    since: int
    running: int = 0
    #: Tasks that wait for one of its slots.
    held: deque[Waiting] = field(default_factory=deque)
    #: Numbers of the demoted tasks that it has taken and not ended.
    demoted: set[int] = field(default_factory=set)

    def has_room(self) -> bool:
        return len(self.held) < self.group.slots - self.running + self.group.prefetch


#: The workers of the same queues that have room, the one that has waited longest first.
_Open = OrderedDict[_Worker, None]


class Workers:
    """Workers that each take from some of the queues, which are in the same *order*.

    After :meth:`take`, no worker that has room may take anything. So then only a task that is
    pushed, or a run that ends, lets one take again: the others are not asked.
    """

    def __init__(self, workers: Sequence[WorkerGroup], order: OrderMaker) -> None:
        self._queues = Queues(order, workers, in_turn=True)
        numbers = {number for worker in workers for number in worker.queues}
        #: The number of the queue, if there is only one: then all tasks wait in it.
        self._only = min(numbers) if len(numbers) == 1 else None
        #: Tasks that wait in the queues.
        self._waiting = 0
        self._turns = len(workers)
        #: Those that have room, by the queues that they take from; and by each of these.
        self._open: defaultdict[tuple[int, ...], _Open] = defaultdict(OrderedDict)
        for number, group in enumerate(workers):
            self._open[group.queues][_Worker(number, group, number)] = None
        self._open_of = {
            number: [of for queues, of in self._open.items() if number in queues]
            for number in numbers
        }
        #: What has happened since the last :meth:`take`: workers that have ended a run, and the
        #: queues of the tasks that were pushed.
        self._freed: list[_Worker] = []
        self._pushed: list[int] = []
        #: Those that may start a task.
        self._starting: list[_Worker] = []
        #: By the number of a task that was taken and has not ended.
        self._takers: dict[int, _Worker] = {}
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
        self._pushed.append(queue)

    def take(self, now: float) -> None:
        """Have the workers take what they have room for."""
        self.dropped = []
        for worker in self._freed:
            while self._waiting and worker.has_room() and self._take(worker, now):
                pass
        self._freed.clear()
        for queue in self._pushed:
            for worker in self._with_room(queue):
                if not self._waiting or self._take(worker, now):
                    break
        self._pushed.clear()

    def _with_room(self, queue: int) -> Iterable[_Worker]:
        """Return those that take from *queue* and have room, the one that has waited longest
        first.
        """
        open_of = self._open_of[queue]
        if len(open_of) == 1:
            return open_of[0]
        return heapq.merge(*open_of, key=attrgetter("since"))

    def _take(self, worker: _Worker, now: float) -> bool:
        """Have *worker* take a task; return whether there was one for it."""
        queues = self._queues
        queues.hold_in(worker.demoted, worker.number)
        task = queues.pop(worker.number, now, worker.group.slots)
        if dropped := queues.take_dropped(worker.number):
            self._waiting -= len(dropped)
            self.dropped += dropped
        if task is None:
            return False
        self._waiting -= 1
        self._wait(worker)
        self._takers[task.number] = worker
        if task.ready > now:
            self._early.add(task.number)
            worker.demoted.discard(task.number)
        else:
            self._hold(task, worker)
        return True

    def ready(self, task: Waiting) -> None:
        """Have the worker that holds *task*, if one has taken it, start it in its turn."""
        if task.number in self._early:
            self._early.remove(task.number)
            self._hold(task, self._takers[task.number])

    def start(self) -> Waiting | None:
        """Return a task that one of the workers now starts; ``None``: none."""
        while self._starting:
            worker = self._starting[-1]
            if worker.held and worker.running < worker.group.slots:
                worker.running += 1
                return worker.held.popleft()
            self._starting.pop()
        return None

    def ended(self, number: int) -> None:
        """Release the slot of a task."""
        worker = self._takers.pop(number)
        worker.demoted.discard(number)
        worker.running -= 1
        self._starting.append(worker)
        self._freed.append(worker)
        if worker.has_room() and worker not in self._open[worker.group.queues]:
            self._wait(worker)

    def _wait(self, worker: _Worker) -> None:
        """Have *worker* wait for a message, behind the others."""
        self._turns += 1
        worker.since = self._turns
        workers = self._open[worker.group.queues]
        workers[worker] = None
        workers.move_to_end(worker)

    def _hold(self, task: Waiting, worker: _Worker) -> None:
        worker.held.append(task)
        self._starting.append(worker)
        if not worker.has_room():
            self._open[worker.group.queues].pop(worker, None)
