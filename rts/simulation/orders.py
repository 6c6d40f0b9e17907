"""Queueing disciplines: which waiting task takes a free slot.

The deadline order is earliest deadline first with demotion: a task with less than 0.9 of
its tau left until its deadline is hopeless, and served only after all hopeful ones. Its
parameters are a :class:`rts.rule.Rule`, as for the transport. (Plain EDF collapses
under overload: Locke, *Best-effort decision making for real-time scheduling*, 1986.)
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from rts.deadlines import hopeful_until
from rts.rule import Rule
from rts.settings import Settings


class Waiting(NamedTuple):
    """A waiting task. Instants in seconds; tau and deadline as of its publication."""

    arrival: float
    tau: float
    deadline: float
    #: Position among all tasks of the workload.
    number: int
    #: Whether it has a deadline of its own; else it is never hopeless.
    due: bool = True
    #: Where the order has priorities, the least rank goes first.
    rank: int = 0
    #: Not to start before, such as its eta; a worker may take it earlier.
    ready: float = -math.inf
    #: How many tasks it stands for, itself included: of a long queue only a sample is known.
    weight: float = 1.0


class Order:
    """A queue under some discipline, by default without demotion, in one simulation.

    A worker says at each claim whether it *may* take a demoted task, as in ``claim.lua``.
    """

    #: Share of its slots that a worker gives to demoted tasks, at most.
    hopeless_slots = 1.0
    #: Claims while demoted tasks waited.
    turns = 0
    #: Whether the last pop has returned a demoted task.
    took_demoted = False

    def __init__(self) -> None:
        #: Tasks that were dropped for good since somebody has cleared it.
        self.dropped: list[Waiting] = []

    def push(self, task: Waiting) -> None:
        """Add a task that has arrived."""
        raise NotImplementedError

    def pop(self, now: float, may: bool) -> Waiting | None:
        """Return the task to take at *now*; ``None``: none."""
        raise NotImplementedError

    def demote(self, now: float) -> None:
        """Demote, or drop, the first tasks as far as they are hopeless."""

    def is_late_turn(self) -> bool | None:
        """Count a claim that may take a demoted task and return whether it is the turn of one;
        ``None``, and not counted: none waits.
        """
        return None

    def demoted_since(self) -> float:
        """Return the arrival of the demoted task that has waited longest; inf: none waits."""
        return math.inf

    def pop_hopeful(self, now: float) -> Waiting | None:
        """Pop a task that goes before the demoted tasks of all queues; ``None``: none."""
        return self.pop(now, may=False)

    def pop_demoted(self) -> Waiting | None:
        """Pop a demoted task; ``None``: none."""
        return None

    def put_back(self, task: Waiting) -> None:
        """Add a task at the position of the one that was popped last."""
        self.push(task)

    def is_demoted(self, task: Waiting, now: float) -> bool:
        """Return whether *task* would be demoted at *now*."""
        return False


class FirstComeFirstServed(Order):
    """By arrival, like most brokers."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: deque[Waiting] = deque()

    def push(self, task: Waiting) -> None:
        self._queue.append(task)

    def put_back(self, task: Waiting) -> None:
        self._queue.appendleft(task)

    def pop(self, now: float, may: bool) -> Waiting | None:
        return self._queue.popleft() if self._queue else None


class LeastFirst(Order):
    """By *key*, the least first, and by arrival where that is the same."""

    def __init__(self, key: Callable[[Waiting], float]) -> None:
        super().__init__()
        self._key = key
        self._heap: list[tuple[float, int, Waiting]] = []
        self._pushed = 0

    def push(self, task: Waiting) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (self._key(task), self._pushed, task))

    def pop(self, now: float, may: bool) -> Waiting | None:
        return heapq.heappop(self._heap)[2] if self._heap else None

    def least(self) -> float:
        """Return the key of the task that comes next; inf: none waits."""
        return self._heap[0][0] if self._heap else math.inf


class EarliestDeadlineFirst(Order):
    """EDF, as with ``rts_scheduler = "edf"``."""

    def __init__(self, rule: Rule = Rule()) -> None:  # noqa: B008  it is frozen
        super().__init__()
        self._mode = rule.hopeless
        self.hopeless_slots = rule.hopeless_slots
        self._every = rule.late_every
        self._work = rule.work
        self._hopeful: list[tuple[float, float, int, Waiting]] = []
        self._demoted: list[tuple[float, int, Waiting]] = []

    def push(self, task: Waiting) -> None:
        # One without a deadline goes by its queue's horizon alone (rts.scheduling.encoding).
        score = task.deadline + (self._work * task.tau if task.due else 0.0)
        heapq.heappush(self._hopeful, (score, task.arrival, task.number, task))

    def pop(self, now: float, may: bool) -> Waiting | None:
        self.demote(now)
        if may and self.is_late_turn():
            return self.pop_demoted()
        return self.pop_hopeful(now) or (self.pop_demoted() if may else None)

    def demote(self, now: float) -> None:
        while self._hopeful and self._is_hopeless(task := self._hopeful[0][3], now):
            heapq.heappop(self._hopeful)
            if self._mode == "drop":
                self.dropped.append(task)
            else:
                heapq.heappush(self._demoted, (task.arrival, task.number, task))

    def is_late_turn(self) -> bool | None:
        # As in claim.lua, only claims while demoted tasks wait are counted.
        if not self._demoted or not self._every:
            return None
        self.turns += 1
        return self.turns % self._every == 0

    def demoted_since(self) -> float:
        return self._demoted[0][0] if self._demoted else math.inf

    def pop_hopeful(self, now: float) -> Waiting | None:
        """Pop the first task that is not demoted; :meth:`demote` comes first."""
        self.took_demoted = False
        return heapq.heappop(self._hopeful)[3] if self._hopeful else None

    def pop_demoted(self) -> Waiting | None:
        self.took_demoted = True
        return heapq.heappop(self._demoted)[2] if self._demoted else None

    def is_demoted(self, task: Waiting, now: float) -> bool:
        return self._mode == "demote" and self._is_hopeless(task, now)

    def _is_hopeless(self, task: Waiting, now: float) -> bool:
        late = now > hopeful_until(task.deadline, task.tau)
        return late and task.due and self._mode != "keep"


#: Names of the orders on the command line.
ORDERS = ("fifo", "edf", "plain-edf", "sjf")


def order_in_use(settings: Settings) -> str:
    """Return the name of the order that the app's workers use."""
    return "edf" if settings.scheduler == "edf" else "fifo"


def order_of(name: str, settings: Settings) -> Order:
    """Return a new order by its name in :data:`ORDERS`; *settings* configure ``edf``.

    Raises:
        ValueError: no order has that name.
    """
    if name == "fifo":
        return FirstComeFirstServed()
    if name == "sjf":
        return LeastFirst(lambda task: task.tau)
    if name not in ORDERS:
        raise ValueError(f"unknown order {name!r}: use one of {', '.join(ORDERS)}")
    rule = Rule.of(settings)
    return EarliestDeadlineFirst(rule if name == "edf" else replace(rule, hopeless="keep"))
