"""What simulated workers have prefetched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from rts.simulation.queues import WorkerGroup


class PrefetchedWork:
    """One FIFO queue of prefetched tasks per worker group."""

    def __init__(self, groups: Sequence[WorkerGroup]) -> None:
        self._groups = groups
        #: By group: the tasks' numbers and weights.
        self._queues: list[deque[tuple[int, float]]] = [deque() for _ in groups]
        self._lengths = [0.0] * len(groups)

    def add(self, group: int, number: int, weight: float) -> None:
        """Append a task, which stands for *weight* tasks."""
        self._queues[group].append((number, weight))
        self._lengths[group] += weight

    def pop(self, group: int) -> int | None:
        """Remove and return the number of the first task of *group*; ``None``: none."""
        queue = self._queues[group]
        if not queue:
            return None
        number, weight = queue.popleft()
        # Weights are fractions: rounded, their sum may end below 0, as if there were room.
        self._lengths[group] = self._lengths[group] - weight if queue else 0.0
        return number

    def of(self, group: int) -> Iterator[int]:
        """Return the numbers of the tasks of *group*."""
        return (number for number, _ in self._queues[group])

    def has_room(self, group: int) -> bool:
        """Return whether *group* prefetches another task while it has no free slot."""
        return self._lengths[group] < self._groups[group].prefetch
