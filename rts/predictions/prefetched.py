"""What simulated workers have taken before they had a slot for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from rts.predictions.shared_workers import Crew


class PrefetchedWork:
    """One line for each crew; its tasks start in the order in which they were taken."""

    def __init__(self, crews: Sequence[Crew]) -> None:
        self._crews = crews
        #: By crew: numbers of tasks, with how many tasks each stands for.
        self._lines: list[deque[tuple[int, float]]] = [deque() for _ in crews]
        self._lengths = [0.0] * len(crews)

    def add(self, crew: int, number: int, weight: float = 1.0) -> None:
        """Put the task of this number, which stands for *weight*, at the end."""
        self._lines[crew].append((number, weight))
        self._lengths[crew] += weight

    def pop(self, crew: int) -> int | None:
        """Return the number of the first task of *crew*; ``None``: there is none."""
        if not self._lines[crew]:
            return None
        number, weight = self._lines[crew].popleft()
        self._lengths[crew] -= weight
        return number

    def of(self, crew: int) -> Iterator[int]:
        """Return the numbers of all tasks of *crew*."""
        return (number for number, _ in self._lines[crew])

    def has_room(self, crew: int) -> bool:
        """Return whether *crew* takes one more while none of its slots is free."""
        return self._lengths[crew] < self._crews[crew].ahead
