"""One reading of the load that a worker is under.

Every figure is a fraction of what this worker may use, 0.0 idle and 1.0 full;
``cpu`` and ``memory`` may exceed 1.0 where more is wanted than there is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: Decimal places that are kept. The counters behind the figures are no finer
#: than a percent or so, and a shorter number is a smaller document.
DIGITS = 4

#: A task never gets a posted sample older than this.
MAX_AGE_S = 0.5


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """The load of one visible GPU."""

    #: The driver's index, in PCI bus order; -1 for a MIG instance, which has none.
    index: int
    #: Share of time in which a kernel ran; ``None`` where the GPU does not tell.
    utilization: float | None
    #: Share of its memory that is taken; ``None`` where the GPU does not tell.
    memory: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the reading as plain JSON and BSON values."""
        return {"index": self.index, "utilization": self.utilization, "memory": self.memory}


@dataclass(frozen=True, slots=True)
class LoadSample:
    """What was seen of a worker's load at one instant; build it with :meth:`of`."""

    #: Mean of those of cpu, memory and gpu that are known; ``None`` if none is.
    load: float | None
    cpu: float | None
    memory: float | None
    #: ``None`` where the worker sees no GPU.
    gpu: float | None
    gpus: tuple[GpuLoad, ...]
    #: When it was taken, by this host's monotonic clock (``time.monotonic``).
    sampled_at: float
    #: The figures as the beginning of a JSON object, to which ``age_s`` is to be added.
    json: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        figures = _encode(self._figures())[:-1]
        object.__setattr__(self, "json", figures + "," if len(figures) > 1 else figures)

    @classmethod
    def of(
        cls,
        cpu: float | None,
        memory: float | None,
        gpu: float | None = None,
        gpus: Sequence[GpuLoad] = (),
        *,
        sampled_at: float,
    ) -> LoadSample:
        """Build a sample: rounded, with what is not a number left out.

        >>> LoadSample.of(0.5, 0.25, sampled_at=0.0).load
        0.375
        """
        cpu, memory, gpu = tidy(cpu), tidy(memory), tidy(gpu)
        present = [value for value in (cpu, memory, gpu) if value is not None]
        load = round(sum(present) / len(present), DIGITS) if present else None
        return cls(load, cpu, memory, gpu, tuple(gpus), sampled_at)

    def as_dict(self, now: float | None = None) -> dict[str, Any]:
        """Return the sample as plain JSON and BSON values.

        Keys ``load``, ``cpu``, ``memory``, ``gpu`` for those that are known,
        ``gpus`` where there are any, and ``age_s``, seconds from the sample to
        *now* (by ``time.monotonic``; default: this moment).
        """
        out = self._figures()
        age_s = (time.monotonic() if now is None else now) - self.sampled_at
        out["age_s"] = round(age_s, DIGITS) if age_s > 0 else 0.0
        return out

    def _figures(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self.load is not None:
            out["load"] = self.load
        if self.cpu is not None:
            out["cpu"] = self.cpu
        if self.memory is not None:
            out["memory"] = self.memory
        if self.gpu is not None:
            out["gpu"] = self.gpu
        if self.gpus:
            out["gpus"] = [gpu.as_dict() for gpu in self.gpus]
        return out


_encode = json.JSONEncoder(separators=(",", ":")).encode


def tidy(value: float | None) -> float | None:
    """Return *value* rounded and not below zero; ``None`` where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, DIGITS) if value > 0 else 0.0
