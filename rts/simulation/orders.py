"""The order in which waiting tasks are taken, at each claim of a free slot.

The rule of the deadline order: the earliest deadline first; a task that has less than
0.9 of its tau left until its deadline is hopeless, and served only after all that is
still hopeful. Its numbers are in :mod:`rts.deadlines`, for the transport as well.
(Plain EDF collapses under overload: Locke, *Best-effort decision making for real-time
scheduling*, 1986.)
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from rts.deadlines import (
    HOPELESS_SLOTS,
    LATE_SHARE,
    demoted_slots,
    hopeful_until,
    late_every,
    work_weight,
)
from rts.settings import Settings


class Waiting(NamedTuple):
    """A task that waits. Instants in seconds; tau and deadline as when it was published."""

    arrival: float
    tau: float
    deadline: float
    #: Position among all tasks of the workload.
    number: int
    #: Whether the deadline is its own: what has none is never hopeless.
    due: bool = True


class Order(Protocol):
    """A queue. One object serves one simulation."""

    def push(self, task: Waiting) -> None:
        """Take in a task that has arrived."""

    def pop(self, now: float, slots: int) -> Waiting | None:
        """Return the task to start at *now*, one of *slots* being free; ``None``: none."""

    def ended(self, task: Waiting) -> None:
        """Note that a task that was popped has finished."""

    def dropped(self) -> Sequence[Waiting]:
        """Return the tasks that the last pop has dropped for good."""


class SharingOrder(Order, Protocol):
    """One whose workers may take from other queues too."""

    def pop_hopeful(self, now: float, slots: int) -> Waiting | None:
        """Return what :meth:`pop` would, if it comes before what is demoted elsewhere."""

    def pop_demoted(self, slots: int) -> Waiting | None:
        """Return what comes after that."""

    def put_back(self, task: Waiting) -> None:
        """Take in a task in the place of one that was popped."""


class _KeepsAll:
    """What the orders have in common that do not care what becomes of a task."""

    def push(self, task: Waiting) -> None:
        """See :class:`Order`."""
        raise NotImplementedError

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`Order`."""
        raise NotImplementedError

    def put_back(self, task: Waiting) -> None:
        """See :class:`SharingOrder`."""
        self.push(task)

    def pop_hopeful(self, now: float, slots: int) -> Waiting | None:
        """See :class:`SharingOrder`."""
        return self.pop(now, slots)

    def pop_demoted(self, slots: int) -> Waiting | None:
        """See :class:`SharingOrder`."""
        return None

    def ended(self, task: Waiting) -> None:
        """See :class:`Order`."""

    def dropped(self) -> Sequence[Waiting]:
        """See :class:`Order`."""
        return ()


class FirstComeFirstServed(_KeepsAll):
    """As brokers do."""

    def __init__(self) -> None:
        self._queue: deque[Waiting] = deque()

    def push(self, task: Waiting) -> None:
        """See :class:`Order`."""
        self._queue.append(task)

    def put_back(self, task: Waiting) -> None:
        """See :class:`SharingOrder`."""
        self._queue.appendleft(task)

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`Order`."""
        return self._queue.popleft() if self._queue else None


class ShortestFirst(_KeepsAll):
    """The least tau first, for comparison: starves long tasks."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiting]] = []

    def push(self, task: Waiting) -> None:
        """See :class:`Order`."""
        heapq.heappush(self._heap, (task.tau, task.number, task))

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`Order`."""
        return heapq.heappop(self._heap)[2] if self._heap else None


class EarliestDeadlineFirst:
    """EDF, as ``rts_scheduler = "edf"`` keeps it.

    With *demote*, what is hopeless waits behind what is not, or, with *drop*, is not
    run; without both it is plain EDF. *hopeless_slots*: share of the slots that demoted work
    holds at most (at least one slot), so that long hopeless runs do not make hopeful
    ones hopeless in turn. *late_share*: share of claims that serve the longest-waiting
    demoted task, so that none starves; 0 for none. *work*: weight of tau in the order.
    """

    def __init__(
        self,
        *,
        demote: bool = True,
        drop: bool = False,
        hopeless_slots: float = HOPELESS_SLOTS,
        late_share: float = LATE_SHARE,
        work: float = 0.0,
    ) -> None:
        self._demote = demote
        self._drop = drop
        self._hopeless_slots = hopeless_slots
        self._every = late_every(late_share)
        self._work = work
        self._hopeful: list[tuple[float, float, int, Waiting]] = []
        self._demoted: list[tuple[float, int, Waiting]] = []
        self._dropped: list[Waiting] = []
        #: Numbers of the demoted tasks that hold a slot.
        self._held: set[int] = set()
        self._turns = 0

    def push(self, task: Waiting) -> None:
        """See :class:`Order`."""
        score = task.deadline + self._work * task.tau
        heapq.heappush(self._hopeful, (score, task.arrival, task.number, task))

    def put_back(self, task: Waiting) -> None:
        """See :class:`SharingOrder`."""
        self.push(task)

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`Order`."""
        return self.pop_hopeful(now, slots) or self.pop_demoted(slots)

    def pop_hopeful(self, now: float, slots: int) -> Waiting | None:
        """See :class:`SharingOrder`: what is demoted is among it where it is its turn."""
        self._dropped.clear()
        while self._hopeful and (self._demote or self._drop):
            task = self._hopeful[0][3]
            if not self._is_hopeless(task, now):
                break
            heapq.heappop(self._hopeful)
            if self._drop:
                self._dropped.append(task)
            else:
                heapq.heappush(self._demoted, (task.arrival, task.number, task))
        if self._demoted and self._every and self.may_take_demoted(slots):
            # As in the script of the claims: they count while demoted work waits.
            self._turns += 1
            if self._turns % self._every == 0:
                return self.pop_demoted(slots)
        return heapq.heappop(self._hopeful)[3] if self._hopeful else None

    def pop_demoted(self, slots: int) -> Waiting | None:
        """See :class:`SharingOrder`."""
        if not self._demoted or not self.may_take_demoted(slots):
            return None
        task = heapq.heappop(self._demoted)[2]
        self._held.add(task.number)
        return task

    def is_demoted(self, task: Waiting, now: float) -> bool:
        """Return whether *task* would be behind what is hopeful at *now*."""
        return self._demote and self._is_hopeless(task, now)

    def _is_hopeless(self, task: Waiting, now: float) -> bool:
        return task.due and now > hopeful_until(task.deadline, task.tau)

    def may_take_demoted(self, slots: int) -> bool:
        """Return whether demoted work may hold one more of *slots*."""
        return len(self._held) < demoted_slots(self._hopeless_slots, slots)

    def ended(self, task: Waiting) -> None:
        """See :class:`Order`."""
        self._held.discard(task.number)

    def dropped(self) -> Sequence[Waiting]:
        """See :class:`Order`."""
        return self._dropped

    def resume(self, turns: int, held: Iterable[int]) -> None:
        """Go on where a real queue stands: *turns* were counted, and demoted tasks of the
        numbers *held* have slots.
        """
        self._turns = turns
        self._held.update(held)

    def share_slots(self, other: EarliestDeadlineFirst) -> None:
        """Count the demoted work that holds slots together with that of *other*."""
        self._held = other._held

    def hold(self, number: int) -> None:
        """Note that a demoted task that was never pushed has a slot."""
        self._held.add(number)

    def released(self, number: int) -> None:
        """Note that a task of :meth:`resume` or :meth:`hold` has finished."""
        self._held.discard(number)


#: The orders by the names that commands take.
ORDERS = ("fifo", "edf", "plain-edf", "sjf")


def order_of(name: str, settings: Settings) -> SharingOrder:
    """Return a new order by its name, one of :data:`ORDERS`; *settings* tune ``edf``.

    Raises:
        ValueError: there is no order of that name.
    """
    if name == "fifo":
        return FirstComeFirstServed()
    if name == "sjf":
        return ShortestFirst()
    if name not in ORDERS:
        raise ValueError(f"no order is called {name!r}: use one of {', '.join(ORDERS)}")
    return EarliestDeadlineFirst(
        demote=name == "edf" and settings.hopeless != "keep",
        drop=name == "edf" and settings.hopeless == "drop",
        hopeless_slots=settings.hopeless_slots,
        late_share=settings.late_share,
        work=work_weight(settings.order),
    )
