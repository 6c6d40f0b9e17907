"""Simulated queues that share workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rts.simulation.orders import LeastFirst, Order, Waiting

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
        self,
        order: OrderMaker,
        groups: Sequence[WorkerGroup],
        *,
        in_turn: bool,
        turns: Sequence[int] = (),
    ) -> None:
        """*turns*: claims that the queues have counted, 0 for those beyond."""
        numbers = {number for group in groups for number in group.queues}
        self._orders = [order() for _ in range(1 + max(numbers, default=0))]
        for each, count in zip(self._orders, turns, strict=False):
            each.turns = count
        #: The same, if each serves its least first.
        self._by_key = [order for order in self._orders if isinstance(order, LeastFirst)]
        self._cycles = [list(group.queues) for group in groups]
        self._in_turn = in_turn
        #: Tasks that were dropped for good since somebody has cleared it.
        self.dropped: list[Waiting] = []
        for each in self._orders:
            each.dropped = self.dropped
        #: Share of its slots that a worker gives to demoted tasks, at most.
        self.hopeless_slots = self._orders[0].hopeless_slots

    def push(self, queue: int, task: Waiting) -> None:
        """Add a task that has arrived in a queue."""
        self._orders[queue].push(task)

    def put_back(self, queue: int, task: Waiting) -> None:
        """Add a task at the position of the one that was popped last."""
        self._orders[queue].put_back(task)

    def pop(self, group: int, now: float, may: bool) -> tuple[int, Waiting, bool] | None:
        """Return what *group* takes at *now*: the number of the queue, the task, and whether it
        was demoted; ``None``: nothing. *may*: see :class:`Order`.
        """
        cycle = self._cycles[group]
        if len(cycle) == 1:
            (number,) = cycle
            task = self._orders[number].pop(now, may)
        else:
            number, task = self._pop_of_several(cycle, now, may)
            if task is not None and self._in_turn:
                cycle.remove(number)
                cycle.append(number)
        return None if task is None else (number, task, self._orders[number].took_demoted)

    def _pop_of_several(
        self, cycle: Sequence[int], now: float, may: bool
    ) -> tuple[int, Waiting | None]:
        """Return the task that comes next in the queues of *cycle*, after that queue's number,
        as ``claim.lua`` does.
        """
        orders = self._orders
        if by_key := self._by_key:
            least = min(cycle, key=lambda each: by_key[each].least())
            return least, by_key[least].pop(now, may)
        late = None if may else False
        for number in cycle:
            order = orders[number]
            order.demote(now)
            if late is None:  # a claim counts once
                late = order.is_late_turn()
            if late:
                number = min(cycle, key=lambda each: orders[each].demoted_since())
                return number, orders[number].pop_demoted()
            task = order.pop_hopeful(now)
            if task is not None:
                return number, task
        for number in cycle if may else ():
            task = orders[number].pop_demoted()
            if task is not None:
                return number, task
        return cycle[0], None
