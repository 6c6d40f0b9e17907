"""The notices that receivers of :mod:`rts.signals` get.

Frozen records; instants are epoch seconds (UTC), durations are seconds.

Those of the whole fleet are in Redis until a worker passes them on: as JSON objects in a capped
stream of events, each of which is added once.
"""

from __future__ import annotations

from dataclasses import dataclass

from rts.records import Execution

#: Events that the stream holds at most. Of those that a reader has missed, the ledger has the
#: verdicts.
MAX_EVENTS = 20_000


@dataclass(frozen=True, slots=True)
class DeadlineMissed:
    """A task ended, and had not completed by its deadline."""

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
    #: What ended it, as in the ledger (killed, expired, …); ``late`` if it ran to the
    #: end.
    cause: str

    @classmethod
    def of(cls, ended: Execution) -> DeadlineMissed:
        """Return the notice of a run, or task, that has ended."""
        assert ended.completed_at is not None
        return cls(
            task_id=ended.task_id,
            name=ended.name,
            task_type=ended.task_type,
            queue=ended.queue,
            worker=ended.worker,
            retries=ended.retries,
            arrival=ended.arrival,
            deadline=ended.deadline,
            started_at=ended.started_at,
            completed_at=ended.completed_at,
            lateness_s=ended.completed_at - ended.deadline,
            state=ended.state,
            cause=ended.cause or "late",
        )


@dataclass(frozen=True, slots=True)
class TaskOverdue:
    """The deadline of a task has passed before it finished: it is waiting, running, or
    lost. Its texts have at most 1,024 characters.
    """

    task_id: str
    name: str
    task_type: str
    queue: str | None
    #: Where it runs; ``None`` if it was not started: it is waiting, or lost.
    worker: str | None
    arrival: float
    deadline: float
    #: When this was detected.
    seen_at: float


@dataclass(frozen=True, slots=True)
class SloBurning:
    """The error budget of an objective is burning too fast, or no longer is."""

    #: The key in ``rts_slo``: a task name, a queue, a task type, or ``*``.
    objective: str
    #: The share of tasks that should be on time.
    target: float
    #: ``page``: act now; ``ticket``: act within days.
    severity: str
    #: ``firing`` when it starts, ``resolved`` when it is over.
    state: str
    #: In the window ``window``; 1 would use up the budget exactly.
    burn_rate: float
    window: str
    #: Share of the error budget that is left; negative when overspent.
    budget_left_ratio: float
    #: When this was detected.
    seen_at: float
