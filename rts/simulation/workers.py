"""What workers take from a queue, and when they start it.

A message that a worker has taken waits for a slot of that worker, though another one may be
idle: one that it has prefetched in the broker's own order, and in any order one with an eta.
Workers take these as soon as they are first in the order, hold them without a slot until they
are ready, and start them before whatever they take afterwards. (Predictions, whose workers
consume several queues, keep what these hold in :mod:`rts.predictions.shared_workers`.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rts.simulation.orders import Order, Waiting


@dataclass(eq=False)
class _Worker:
    slots: int
    #: Tasks that it takes besides those that run; may be infinite.
    prefetch: float
    running: int = 0
    #: Whether it is among those that may have room.
    is_open: bool = True
    #: Tasks that wait for one of its slots.
    held: deque[Waiting] = field(default_factory=deque)
    #: Numbers of the demoted tasks that it has taken and not ended.
    demoted: set[int] = field(default_factory=set)

    def has_room(self) -> bool:
        return len(self.held) < self.slots - self.running + self.prefetch


class Workers:
    """Workers that share one *queue*.

    *slots*: those of each. *held_per_slot*: messages that a worker prefetches per slot besides
    those that run: Celery's ``worker_prefetch_multiplier``, one less with late acknowledgement;
    may be infinite. In deadline order it is 0.
    """

    def __init__(self, slots: Sequence[int], queue: Order, held_per_slot: float = 0.0) -> None:
        self._queue = queue
        #: Those that may have room. The one that has waited longest for a message comes first.
        self._open = deque(_Worker(each, each * held_per_slot) for each in slots)
        #: Those that may start a task.
        self._starting: list[_Worker] = []
        #: By the number of a task that was taken and has not ended.
        self._takers: dict[int, _Worker] = {}
        #: Numbers of those that were taken before they were ready.
        self._early: set[int] = set()
        #: Tasks that the last :meth:`take` has dropped for good.
        self.dropped: list[Waiting] = []

    def push(self, task: Waiting) -> None:
        """Add a task to the queue."""
        self._queue.push(task)

    def take(self, now: float) -> None:
        """Have the workers take from the queue, in turn, what they have room for."""
        queue, capped = self._queue, []
        self.dropped = []
        while self._open:
            worker = self._open.popleft()
            if not worker.has_room():
                worker.is_open = False
                continue
            queue.held = worker.demoted
            task = queue.pop(now, worker.slots)
            self.dropped += queue.dropped
            if task is not None:
                self._open.append(worker)
                self._takers[task.number] = worker
                if task.ready > now:
                    self._early.add(task.number)
                    worker.demoted.discard(task.number)
                else:
                    self._hold(task, worker)
                continue
            capped.append(worker)
            if queue.demoted_since() == math.inf:
                break  # the queue is empty
        self._open.extendleft(reversed(capped))

    def ready(self, task: Waiting) -> None:
        """Have the worker that holds *task*, if one has taken it, start it in its turn."""
        if task.number in self._early:
            self._early.remove(task.number)
            self._hold(task, self._takers[task.number])

    def start(self) -> Waiting | None:
        """Return a task that one of the workers now starts; ``None``: none."""
        while self._starting:
            worker = self._starting[-1]
            if worker.held and worker.running < worker.slots:
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


def split(slots: int, workers: Sequence[int]) -> list[int]:
    """Split *slots* into workers of the sizes of *workers*: as they are, or their median.

    >>> split(5, [3, 1, 1]), split(7, [2, 2]), split(4, [3, 1, 2]), split(3, [])
    ([3, 1, 1], [2, 2, 2, 1], [2, 2], [3])
    """
    if sum(workers) == slots:
        return list(workers)
    size = sorted(workers)[len(workers) // 2] if workers else slots
    whole, rest = divmod(slots, size)
    return [size] * whole + [rest] * (rest > 0)
