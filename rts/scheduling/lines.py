"""What simulated workers have taken before they had a slot for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from rts.scheduling.together import Crew


class Lines:
    """One line for each crew; its tasks start in the order in which they were taken."""

    def __init__(self, crews: Sequence[Crew], asking: Sequence[int]) -> None:
        """*asking*: the crews' numbers, in the order in which they ask the broker."""
        self._crews = crews
        self._asking = asking
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

    def taker(self, queue: int, turn: int) -> int:
        """Return which crew has taken a message of *queue*, where that is not known: they
        are served in turn, as far as they have room.
        """
        takers = [n for n in self._asking if queue in self._crews[n].queues] or self._asking
        first = turn % len(takers)
        in_turn = [*takers[first:], *takers[:first]]
        return next((crew for crew in in_turn if self.has_room(crew)), in_turn[0])
