"""The order in which waiting tasks are taken, at each claim of a free slot.

The rule of the deadline order: the earliest deadline first; a task that cannot
finish in time even if started now is hopeless, and served only after all that is
still hopeful. (Plain EDF collapses under overload: Locke, *Best-effort decision
making for real-time scheduling*, 1986.)
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import NamedTuple, Protocol

#: A task is hopeless later than this share of its tau before its deadline: of tasks
#: whose runtimes scatter about tau, some just short of time still make it.
HOPE = 0.9

#: Share of the slots that demoted work may hold, at least one slot.
HOPELESS_SLOTS = 0.75

#: Share of claims that serve the demoted task that has waited longest.
LATE_SHARE = 0.05


class Waiting(NamedTuple):
    """A task that waits. Instants in seconds; tau and deadline as when it was published."""

    arrival: float
    tau: float
    deadline: float
    #: Position among all tasks of the workload.
    number: int


class Order(Protocol):
    """A queue. One object serves one simulation."""

    def push(self, task: Waiting) -> None:
        """Take in a task that has arrived."""

    def pop(self, now: float, slots: int) -> Waiting | None:
        """Return the task to start at *now*, one of *slots* being free; ``None``: none."""

    def ended(self, task: Waiting) -> None:
        """Note that a task that was popped has finished."""


class FirstComeFirstServed:
    """As brokers do."""

    def __init__(self) -> None:
        self._queue: deque[Waiting] = deque()

    def push(self, task: Waiting) -> None:
        """See :class:`Order`."""
        self._queue.append(task)

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`Order`."""
        return self._queue.popleft() if self._queue else None

    def ended(self, task: Waiting) -> None:
        """See :class:`Order`."""


class ShortestFirst:
    """The least tau first, for comparison: starves long tasks."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiting]] = []

    def push(self, task: Waiting) -> None:
        """See :class:`Order`."""
        heapq.heappush(self._heap, (task.tau, task.number, task))

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`Order`."""
        return heapq.heappop(self._heap)[2] if self._heap else None

    def ended(self, task: Waiting) -> None:
        """See :class:`Order`."""


class EarliestDeadlineFirst:
    """EDF; with *demote*, what is hopeless waits behind what is not.

    *hopeless_slots*: share of the slots that demoted work holds at most (at least
    one slot), so that long hopeless runs do not make hopeful ones hopeless in
    turn. *late_share*: share of claims that serve the longest-waiting demoted
    task, so that none starves; 0 for none.
    """

    def __init__(
        self,
        *,
        demote: bool = True,
        hopeless_slots: float = HOPELESS_SLOTS,
        late_share: float = LATE_SHARE,
    ) -> None:
        self._demote = demote
        self._hopeless_slots = hopeless_slots
        self._every = round(1 / late_share) if late_share > 0 else 0
        self._hopeful: list[tuple[float, int, Waiting]] = []
        self._demoted: list[tuple[float, int, Waiting]] = []
        #: Numbers of the demoted tasks that hold a slot.
        self._held: set[int] = set()
        self._claims = itertools.count(1)

    def push(self, task: Waiting) -> None:
        """See :class:`Order`."""
        heapq.heappush(self._hopeful, (task.deadline, task.number, task))

    def pop(self, now: float, slots: int) -> Waiting | None:
        """See :class:`Order`."""
        while self._demote and self._hopeful:
            task = self._hopeful[0][2]
            if now <= task.deadline - HOPE * task.tau:
                break
            heapq.heappop(self._hopeful)
            heapq.heappush(self._demoted, (task.arrival, task.number, task))
        room = len(self._held) < max(1, int(self._hopeless_slots * slots))
        if self._demoted and room:
            turn = bool(self._every) and next(self._claims) % self._every == 0
            if turn or not self._hopeful:
                task = heapq.heappop(self._demoted)[2]
                self._held.add(task.number)
                return task
        elif self._hopeful:
            next(self._claims)
        return heapq.heappop(self._hopeful)[2] if self._hopeful else None

    def ended(self, task: Waiting) -> None:
        """See :class:`Order`."""
        self._held.discard(task.number)
