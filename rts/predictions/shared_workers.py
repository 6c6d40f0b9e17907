"""Queues that share workers, as simulations play them: each worker asks its own in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rts.simulation.orders import EarliestDeadlineFirst, SharingOrder, Waiting

OrderMaker = Callable[[], SharingOrder]


@dataclass(frozen=True)
class Crew:
    """A worker, or workers that take from the same queues and nothing ahead."""

    #: Tasks that they run at a time.
    slots: int
    #: Numbers of the queues, the one that is asked first, first.
    queues: tuple[int, ...] = (0,)
    #: Tasks that it takes when no slot is free, at most; may be infinite.
    ahead: float = 0.0


class Queues:
    """The queues that *crews* take from, each in an order of its own.

    As kombu has it, what a queue was served for it waits for behind the others
    (*in_turn*, its ``round_robin``), or the first one that holds something is served.
    Demoted work, of whatever queue, comes after all that is not.
    """

    def __init__(
        self, order: OrderMaker, crews: Sequence[Crew], *, in_turn: bool = True
    ) -> None:
        numbers = {number for crew in crews for number in crew.queues}
        self._orders = [order() for _ in range(1 + max(numbers, default=0))]
        self._cycles = [list(crew.queues) for crew in crews]
        self._in_turn = in_turn
        #: Whether what one crew may take does not hang on what others hold.
        self.apart = not isinstance(self._orders[0], EarliestDeadlineFirst)
        first, *others = self._orders
        for other in others:
            if isinstance(other, EarliestDeadlineFirst) and isinstance(
                first, EarliestDeadlineFirst
            ):
                other.share_slots(first)

    def resume(self, turns: Sequence[int], held: Iterable[int]) -> None:
        """Go on where real queues stand: see :meth:`EarliestDeadlineFirst.resume`.

        *turns*: of each queue; 0 where there are no more.
        """
        for number, order in enumerate(self._orders):
            if isinstance(order, EarliestDeadlineFirst):
                order.resume(turns[number] if number < len(turns) else 0, held)

    def push(self, queue: int, task: Waiting) -> None:
        """Take in a task that has arrived in a queue."""
        self._orders[queue].push(task)

    def put_back(self, queue: int, task: Waiting) -> None:
        """Take in a task in the place of one that was popped."""
        self._orders[queue].put_back(task)

    def pop(self, crew: int, now: float, slots: int) -> Waiting | None:
        """Return the task that *crew* starts at *now*; ``None``: none. All have *slots*."""
        cycle = self._cycles[crew]
        if len(cycle) == 1:
            return self._orders[cycle[0]].pop(now, slots)
        chosen = self._choose(cycle, now, slots)
        if chosen is None:
            return None
        number, task = chosen
        if self._in_turn:
            cycle.remove(number)
            cycle.append(number)
        return task

    def has_dropped(self, number: int) -> bool:
        """Return whether the last pops have dropped the task of this number for good."""
        for order in self._orders:
            for task in order.dropped():
                if task.number == number:
                    return True
        return False

    def ended(self, task: Waiting) -> None:
        """Note that a task that was popped has finished."""
        self._orders[0].ended(task)

    def is_demoted(self, queue: int, task: Waiting, now: float) -> bool:
        """Return whether *task* would come after all that is not hopeless at *now*."""
        order = self._orders[queue]
        return isinstance(order, EarliestDeadlineFirst) and order.is_demoted(task, now)

    def hold_demoted(self, number: int, slots: int) -> bool:
        """Give a slot to a demoted task that was never pushed; return whether it may hold
        one of *slots*.
        """
        first = self._orders[0]
        if not isinstance(first, EarliestDeadlineFirst) or not first.may_take_demoted(slots):
            return False
        first.hold(number)
        return True

    def released(self, number: int) -> None:
        """Note that a task that was never pushed has finished."""
        first = self._orders[0]
        if isinstance(first, EarliestDeadlineFirst):
            first.released(number)

    def _choose(
        self, cycle: Sequence[int], now: float, slots: int
    ) -> tuple[int, Waiting] | None:
        for number in cycle:
            task = self._orders[number].pop_hopeful(now, slots)
            if task is not None:
                return number, task
        for number in cycle:
            task = self._orders[number].pop_demoted(slots)
            if task is not None:
                return number, task
        return None
