"""A task in a simulation."""

from __future__ import annotations

from typing import NamedTuple

from rts.ledger.recent import Recent
from rts.records import Execution, OpenTask
from rts.simulation.orders import Waiting


class Work(NamedTuple):
    """A task in a simulation. Instants in epoch seconds."""

    task_type: str
    arrival: float
    tau: float
    deadline: float
    #: Earliest start: its eta, if that is later than its arrival.
    ready: float = 0.0
    #: Task name; empty if unknown.
    name: str = ""
    #: Number of its queue among those that share workers; 0 is the one asked about.
    queue: int = 0
    #: How many tasks it stands for, itself included: long queues are only sampled.
    weight: float = 1.0
    #: Whether it has a deadline of its own; else it is never hopeless.
    due: bool = True
    #: Whether its deadline moves with its arrival: it is not published yet, and by the formula.
    moves: bool = False

    def published_at(self, now: float) -> Work:
        """Return it as it would be if it were published *now*, and not before."""
        late_s = max(0.0, now - self.arrival)
        due = self.deadline + late_s if self.moves else self.deadline
        return self._replace(arrival=self.arrival + late_s, deadline=due)

    def waiting(self, number: int) -> Waiting:
        """Return it as an order takes it, with this *number*."""
        return Waiting(
            self.arrival,
            self.tau,
            self.deadline,
            number,
            self.due,
            ready=self.ready,
            weight=self.weight,
        )


def work_of(task: Execution | Recent | OpenTask, ready: float = 0.0, queue: int = 0) -> Work:
    """Return *task* as a :class:`Work`, which see for *ready* and *queue*."""
    return Work(task.task_type, task.arrival, task.tau, task.deadline, ready, task.name, queue)
