"""What a running task can ask about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rts.clock import FleetClock
from rts.installation import parts_of


@dataclass(frozen=True, slots=True)
class Current:
    """Plan of the running task, and the worker's load when it started.

    ``arrival`` and ``deadline`` are epoch seconds; ``tau``, in seconds, is the one that the
    deadline was computed with. ``load`` has ``load``, ``cpu``, ``memory`` and ``gpu``, where
    known, as fractions of what the worker may use.
    """

    task_type: str
    tau: float
    arrival: float
    deadline: float
    load: Mapping[str, Any]
    _clock: FleetClock = field(repr=False, compare=False)

    def remaining(self) -> float:
        """Return the seconds left until the deadline; negative when it has passed."""
        return self.deadline - self._clock.now()


def current() -> Current | None:
    """Return what rts knows about the running task; ``None`` outside of one.

    Also ``None`` where the task's app does not have rts, in eager tasks, which were
    never queued, and in a batch, whose tasks have a deadline each. A task that another
    one calls as a function is part of that one's run.
    """
    from celery._state import get_current_worker_task

    from rts.lifecycle.runs import run_of

    task = get_current_worker_task()
    run = None if task is None else run_of(task.request)
    parts = None if run is None else parts_of(task.app)
    if run is None or parts is None:
        return None
    plan = run.plan
    return Current(
        task_type=plan.task_type,
        tau=plan.tau,
        arrival=plan.arrival,
        deadline=plan.deadline,
        load=run.load_at_start,
        _clock=parts.clock,
    )
