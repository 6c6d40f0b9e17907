"""What receivers of :mod:`rts.signals` are told.

Frozen records; instants are epoch seconds (UTC), durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from rts.records import Execution


@dataclass(frozen=True, slots=True)
class DeadlineMissed:
    """A task ended without having completed by its deadline."""

    task_id: str
    name: str
    task_type: str
    queue: str | None
    worker: str
    retries: int
    arrival: float
    deadline: float
    #: ``None`` where the task never started.
    started_at: float | None
    completed_at: float
    #: End minus deadline; negative where a task ended early without completing.
    lateness_s: float
    #: Celery's state.
    state: str
    #: What ended it, as in the ledger (killed, expired, …); ``late`` where it ran to
    #: its end.
    cause: str

    @classmethod
    def of(cls, ended: Execution) -> DeadlineMissed:
        """Return the notice of a run, or task, that has ended."""
        assert ended.completed_at is not None
        return cls(
            ended.task_id,
            ended.name,
            ended.task_type,
            ended.queue,
            ended.worker,
            ended.retries,
            ended.arrival,
            ended.deadline,
            ended.started_at,
            ended.completed_at,
            ended.completed_at - ended.deadline,
            ended.state,
            ended.cause or "late",
        )


@dataclass(frozen=True, slots=True)
class TaskOverdue:
    """The deadline of a task has passed and it has not finished: it waits, runs, or is
    lost.
    """

    task_id: str
    name: str
    task_type: str
    queue: str | None
    #: Where it runs, ``None`` where it was not started: it waits, or is lost.
    worker: str | None
    arrival: float
    deadline: float
    #: The instant at which it was found out.
    seen_at: float


@dataclass(frozen=True, slots=True)
class SloBurning:
    """The error budget of an objective is used up too fast, or no longer is."""

    #: The key in ``rts_slo``: a task name, a queue, a task type, or ``*``.
    objective: str
    #: The share of tasks that shall be in time.
    target: float
    #: ``page``: somebody has to act now; ``ticket``: within days.
    severity: str
    #: ``firing`` when it begins, ``resolved`` when it is over.
    state: str
    #: Times the pace that uses up the budget exactly, in the window ``window``.
    burn_rate: float
    window: str
    #: Share of the error budget that is left; below 0 it is overspent.
    budget_left_ratio: float
    #: The instant at which it was found out.
    seen_at: float
