"""What workers take from their queues, and when they start it.

A message that a worker has taken waits for a slot of that worker, though another one may be
idle: one that it has prefetched in the broker's own order, and in any order one with an eta.
Workers take these as soon as they are first in the order, hold them without a slot until they
are ready, and start them before whatever they take afterwards. (Predictions keep what workers
hold in :mod:`rts.predictions.shared_workers`.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rts.simulation.orders import Waiting
from rts.simulation.queues import OrderMaker, Queues, WorkerGroup


@dataclass(eq=False)
class _Worker:
    number: int
    group: WorkerGroup
    running: int = 0
    #: Whether it is among those that may have room.
    is_open: bool = True
    #: Tasks that wait for one of its slots.
    held: deque[Waiting] = field(default_factory=deque)
    #: Numbers of the demoted tasks that it has taken and not ended.
    demoted: set[int] = field(default_factory=set)

    def has_room(self) -> bool:
        return len(self.held) < self.group.slots - self.running + self.group.prefetch


class Workers:
    """Workers that each take from some of the queues, which are in the same *order*."""

    def __init__(self, workers: Sequence[WorkerGroup], order: OrderMaker) -> None:
        self._queues = Queues(order, workers, in_turn=True)
        numbers = {number for worker in workers for number in worker.queues}
        #: The number of the queue, if there is only one: then all tasks wait in it.
        self._only = min(numbers) if len(numbers) == 1 else None
        #: Tasks that wait in the queues.
        self._waiting = 0
        #: Those that may have room. The one that has waited longest for a message comes first.
        self._open = deque(_Worker(number, worker) for number, worker in enumerate(workers))
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
        self._waiting += 1
        self._queues.push(queue if self._only is None else self._only, task)

    def take(self, now: float) -> None:
        """Have the workers take, in turn, what they have room for."""
        queues, idle = self._queues, []
        self.dropped = []
        while self._waiting and self._open:
            worker = self._open.popleft()
            if not worker.has_room():
                worker.is_open = False
                continue
            queues.hold_in(worker.demoted)
            task = queues.pop(worker.number, now, worker.group.slots)
            if dropped := queues.take_dropped():
                self._waiting -= len(dropped)
                self.dropped += dropped
            if task is None:
                idle.append(worker)
            else:
                self._waiting -= 1
                self._open.append(worker)
                self._takers[task.number] = worker
                if task.ready > now:
                    self._early.add(task.number)
                    worker.demoted.discard(task.number)
                else:
                    self._hold(task, worker)
        self._open.extendleft(reversed(idle))

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
        if not worker.is_open:
            worker.is_open = True
            self._open.append(worker)

    def _hold(self, task: Waiting, worker: _Worker) -> None:
        worker.held.append(task)
        self._starting.append(worker)
