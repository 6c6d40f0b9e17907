"""What a running task can ask about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rts.clock import FleetClock


@dataclass(frozen=True, slots=True)
class Current:
    """Plan and load of the running task. Instants are epoch seconds."""

    task_type: str
    #: The tau that the deadline was computed with, seconds.
    tau: float
    arrival: float
    deadline: float
    #: Load of the worker when the task started: ``load``, ``cpu``, ``memory`` and
    #: ``gpu`` as fractions of what the worker may use.
    load: Mapping[str, Any]
    _clock: FleetClock = field(repr=False, compare=False)

    def remaining(self) -> float:
        """Return the seconds left until the deadline; negative when it has passed."""
        return self.deadline - self._clock.now()
