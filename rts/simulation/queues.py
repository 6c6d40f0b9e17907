"""Simulated queues that share workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rts.simulation.orders import EarliestDeadlineFirst, LeastFirst, Order, Waiting

OrderMaker = Callable[[], Order]


@dataclass(frozen=True)
class WorkerGroup:
    """A worker, or several that consume the same queues and prefetch nothing."""

    #: Tasks that it runs at a time.
    slots: int
    #: Numbers of the queues that it consumes, in that order.
    queues: tuple[int, ...] = (0,)
    #: Tasks that it prefetches while no slot is free; may be infinite.
    prefetch: float = 0.0


class Queues:
    """The queues that *groups* consume, each in an order of its own.

    Like kombu, a group rotates through its queues (*in_turn*: ``round_robin``), or always
    takes from the first non-empty one. Demoted tasks of any queue come after all others; the
    least of any queue comes first where each is served by that, as by priorities.
    """

    def __init__(
        self, order: OrderMaker, groups: Sequence[WorkerGroup], *, in_turn: bool
    ) -> None:
        numbers = {number for group in groups for number in group.queues}
        self._orders = [order() for _ in range(1 + max(numbers, default=0))]
        #: The same, if each serves its least first.
        self._by_key = [order for order in self._orders if isinstance(order, LeastFirst)]
        self._cycles = [list(group.queues) for group in groups]
        self._in_turn = in_turn
        #: Whether what a group may take is independent of what the others run.
        self.independent = not isinstance(self._orders[0], EarliestDeadlineFirst)
        #: Numbers of the demoted tasks that hold a slot, of all queues.
        self._held = self._orders[0].held
        for other in self._orders:
            other.held = self._held

    def resume(self, turns: Sequence[int], held: Iterable[int]) -> None:
        """Start from the state of real queues: their counts of *turns*, 0 for those beyond, and
        the numbers of the demoted tasks that hold slots.
        """
        for order, count in zip(self._orders, turns, strict=False):
            order.turns = count
        self._held.update(held)

    def hold_in(self, held: set[int], group: int) -> None:
        """Have *held* be the numbers of the demoted tasks that hold slots, for the next pop of
        *group*: a worker that counts its own.
        """
        for number in self._cycles[group]:
            self._orders[number].held = held

    def push(self, queue: int, task: Waiting) -> None:
        """Add a task that has arrived in a queue."""
        self._orders[queue].push(task)

    def put_back(self, queue: int, task: Waiting) -> None:
        """Add a task at the position of the one that was popped last."""
        self._orders[queue].put_back(task)

    def pop(self, group: int, now: float, slots: int) -> Waiting | None:
        """Return the task that *group* takes at *now*; ``None``: none. *slots*: of all."""
        orders, cycle = self._orders, self._cycles[group]
        if len(cycle) == 1:
            return orders[cycle[0]].pop(now, slots)
        found = self._pop_of_several(cycle, now, slots)
        if found is None:
            return None
        number, task = found
        if self._in_turn:
            cycle.remove(number)
            cycle.append(number)
        return task

    def _pop_of_several(
        self, cycle: Sequence[int], now: float, slots: int
    ) -> tuple[int, Waiting] | None:
        """Return the task that comes next in the queues of *cycle*, after that queue's number,
        as ``claim.lua`` does.
        """
        orders = self._orders
        if by_key := self._by_key:
            least = min(cycle, key=lambda each: by_key[each].least())
            task = by_key[least].pop(now, slots)
            return None if task is None else (least, task)
        late: bool | None = None
        for number in cycle:
            order = orders[number]
            order.demote(now)
            if late is None:  # a claim counts once
                late = order.is_late_turn(slots)
            if late:
                number = min(cycle, key=lambda each: orders[each].demoted_since())
                task = orders[number].pop_demoted(slots)
            else:
                task = order.pop_hopeful(now, slots)
            if task is not None:
                return number, task
        for number in cycle:
            task = orders[number].pop_demoted(slots)
            if task is not None:
                return number, task
        return None

    def take_dropped(self, group: int) -> list[Waiting]:
        """Return the tasks that the pops of *group* have dropped since the last time."""
        found: list[Waiting] = []
        for number in self._cycles[group]:
            found += self._orders[number].dropped
            self._orders[number].dropped = ()
        return found

    def has_dropped(self, number: int) -> bool:
        """Return whether the last pops have dropped the task with this number."""
        return any(task.number == number for order in self._orders for task in order.dropped)

    def ended(self, number: int) -> None:
        """Release the slot of a task."""
        self._held.discard(number)

    def is_demoted(self, queue: int, task: Waiting, now: float) -> bool:
        """Return whether *task* would be demoted at *now*."""
        return self._orders[queue].is_demoted(task, now)

    def hold_demoted(self, number: int, slots: int) -> bool:
        """Give a demoted task, never pushed, one of *slots*; return whether it may have one."""
        if not self._orders[0].may_take_demoted(slots):
            return False
        self._held.add(number)
        return True
