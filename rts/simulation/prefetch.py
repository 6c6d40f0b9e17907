"""The stock order of several workers, each of which takes up more than it runs.

A message that one worker holds back waits for that worker, though another may be idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rts.simulation.orders import Waiting


@dataclass
class _Worker:
    slots: int
    #: Tasks that it takes up beyond those that run.
    room: float
    running: int = 0
    held: deque[Waiting] = field(default_factory=deque)


class Prefetched:
    """First come, first served, by workers that hold messages back.

    *workers*: the slots of each. *held_per_slot*: messages that a worker holds for
    each of its slots, beside those that run: Celery's ``worker_prefetch_multiplier``,
    one less with late acknowledgement; may be infinite.
    """

    def __init__(self, workers: Sequence[int], held_per_slot: float) -> None:
        # The one that has waited longest for a message is in front.
        self._workers = deque(_Worker(slots, slots * held_per_slot) for slots in workers)
        self._queue: deque[Waiting] = deque()
        #: Who runs what, by the task's number.
        self._runs: dict[int, _Worker] = {}

    def push(self, task: Waiting) -> None:
        """See :class:`rts.simulation.orders.Order`."""
        self._queue.append(task)
        self._hand_out()

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`rts.simulation.orders.Order`."""
        for worker in self._workers:
            if worker.held and worker.running < worker.slots:
                task = worker.held.popleft()
                worker.running += 1
                self._runs[task.number] = worker
                self._hand_out()
                return task
        return None

    def ended(self, task: Waiting) -> None:
        """See :class:`rts.simulation.orders.Order`."""
        self._runs.pop(task.number).running -= 1
        self._hand_out()

    def dropped(self) -> Sequence[Waiting]:
        """See :class:`rts.simulation.orders.Order`."""
        return ()

    def _hand_out(self) -> None:
        """Let each worker take up what it has room for, in turn."""
        while self._queue:
            for worker in self._workers:
                if len(worker.held) < worker.slots - worker.running + worker.room:
                    break
            else:
                return
            worker.held.append(self._queue.popleft())
            self._workers.remove(worker)
            self._workers.append(worker)


def fleet(slots: int, workers: Sequence[int]) -> list[int]:
    """Return *slots* as slots of workers such as *workers*.

    >>> fleet(4, [2, 2]), fleet(7, [2, 2]), fleet(3, [])
    ([2, 2], [2, 2, 2, 1], [3])
    """
    if sum(workers) == slots:
        return list(workers)
    size = sorted(workers)[len(workers) // 2] if workers else slots
    whole, rest = divmod(slots, size)
    return [size] * whole + [rest] * (rest > 0)
