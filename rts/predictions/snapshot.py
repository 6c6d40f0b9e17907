"""A queue and its workers at one moment: the initial state of a simulation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from rts.predictions.work import Work
from rts.simulation.orders import FirstComeFirstServed, Waiting
from rts.simulation.queues import OrderMaker, WorkerGroup
from rts.tau.sketch import Sketch

#: Seconds within which tasks have arrived that are like those that have started unseen.
LATELY_S = 15.0


class Running(NamedTuple):
    """A run in progress."""

    work: Work
    #: Epoch seconds.
    started: float
    #: Number of the worker group that runs it.
    group: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A queue, the queues that share workers with it, and the workers, at one moment."""

    #: Epoch seconds.
    now: float
    #: Slots of the workers that consume the queue, at least 1.
    slots: int
    #: Waiting tasks in the order of the queue; those of other queues come last.
    waiting: Sequence[Work] = ()
    #: Tasks that workers hold and have not started (prefetched, or with an eta), in the order
    #: in which they were taken.
    held: Sequence[Work] = ()
    #: Numbers of the groups that hold these; ``None`` or missing: any that consumes the queue.
    held_by: Sequence[int | None] = ()
    running: Sequence[Running] = ()
    #: Learned ratios of runtime over tau, by type.
    ratios: Mapping[str, Sketch] = field(default_factory=dict)
    #: Recent runs that have ended, with their runtimes in seconds.
    ended: Sequence[tuple[Work, float]] = ()
    #: What had arrived within ``span_s`` seconds until ``unseen_s`` seconds ago, in whatever
    #: state it is now. What has arrived since may have started unseen.
    recent_arrivals: Sequence[Work] = ()
    span_s: float = 0.0
    unseen_s: float = 0.0
    #: The instant until which all arrivals are among ``waiting``; 0: ``now``.
    known_until: float = 0.0
    #: All worker groups; empty: one, which consumes no other queue.
    groups: Sequence[WorkerGroup] = ()
    #: Whether they consume their queues round-robin, instead of the first one first.
    in_turn: bool = True
    #: Share of the slots' time in which tasks run, above 0 to 1; the rest is overhead
    #: between two tasks.
    share: float = 1.0
    #: By queue: claims counted for the late share (see ``claim.lua``).
    turns: Sequence[int] = ()
    #: Returns a new order, such as each queue has in a simulation.
    order: OrderMaker = FirstComeFirstServed

    @property
    def unknown_since(self) -> float:
        """The instant since which arrivals have to be drawn."""
        return max(self.now, self.known_until)

    @cached_property
    def waiting_tasks(self) -> Sequence[Waiting]:
        """The waiting tasks as orders take them, by number: their position."""
        return [work.waiting(position) for position, work in enumerate(self.waiting)]

    @cached_property
    def held_tasks(self) -> Sequence[Waiting]:
        """The held ones, by number: −1 − their position."""
        return [work.waiting(-1 - position) for position, work in enumerate(self.held)]

    @cached_property
    def demoted(self) -> Sequence[bool]:
        """Of each running task, whether it has started as a demoted one."""
        order = self.order()
        return [order.is_demoted(run.work.waiting(0), run.started) for run in self.running]

    @cached_property
    def by_arrival(self) -> bool:
        """Whether the queues are served in order of arrival."""
        return isinstance(self.order(), FirstComeFirstServed)

    @cached_property
    def latest_arrivals(self) -> Mapping[int, Sequence[Work]]:
        """Those of the recent arrivals that are of the last ``LATELY_S`` seconds, by queue."""
        found = defaultdict(list)
        for work in self.recent_arrivals:
            if work.arrival > self.now - LATELY_S:
                found[work.queue].append(work)
        return found

    @property
    def worker_groups(self) -> Sequence[WorkerGroup]:
        """All worker groups, at least one."""
        return self.groups or (WorkerGroup(self.slots),)
