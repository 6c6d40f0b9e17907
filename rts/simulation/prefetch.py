"""The broker's own order, by workers that prefetch.

A message that one worker has prefetched waits for that worker though another may be idle.
(Predictions, whose workers consume several queues, keep what these hold in
:mod:`rts.predictions.shared_workers`.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rts.simulation.orders import FirstComeFirstServed, Order, Waiting


@dataclass
class _Worker:
    slots: int
    #: Tasks that it prefetches besides those that run; may be infinite.
    prefetch: float
    running: int = 0
    held: deque[Waiting] = field(default_factory=deque)

    def has_room(self) -> bool:
        return len(self.held) < self.slots - self.running + self.prefetch


class Prefetched(Order):
    """By arrival, or another order of the *queue*, over workers that prefetch.

    *workers*: the slots of each. *held_per_slot*: messages that a worker prefetches per
    slot besides those that run: Celery's ``worker_prefetch_multiplier``, one less with
    late acknowledgement; may be infinite. *queue*: the broker's, by default by arrival.
    """

    def __init__(
        self, workers: Sequence[int], held_per_slot: float, queue: Order | None = None
    ) -> None:
        super().__init__()
        # The worker that has waited longest for a message comes first.
        self._workers = deque(_Worker(slots, slots * held_per_slot) for slots in workers)
        self._queue = queue or FirstComeFirstServed()
        #: Worker by the number of the task that it runs.
        self._runs: dict[int, _Worker] = {}

    def push(self, task: Waiting) -> None:
        self._queue.push(task)
        self._deliver()

    def pop(self, now: float, slots: int) -> Waiting | None:
        for worker in self._workers:
            if worker.held and worker.running < worker.slots:
                task = worker.held.popleft()
                worker.running += 1
                self._runs[task.number] = worker
                return task
        return None

    def ended(self, number: int) -> None:
        self._runs.pop(number).running -= 1
        self._deliver()

    def _deliver(self) -> None:
        """Deliver messages to the workers in turn, as far as they prefetch."""
        while worker := next(filter(_Worker.has_room, self._workers), None):
            task = self._queue.pop(0.0, 0)
            if task is None:
                return
            worker.held.append(task)
            self._workers.remove(worker)
            self._workers.append(worker)


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
