"""One reading of the load that a worker is under.

Every figure is a fraction of what this worker may use, 0.0 idle and 1.0 full;
``cpu`` and ``memory`` may exceed 1.0 where demand exceeds what there is.
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

#: Oldest sample of the sampler that a task may get, seconds.
MAX_AGE_S = 0.5


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """The load of one visible GPU."""

    #: The driver's index, in PCI bus order; -1 for a MIG instance, which has none.
    index: int
    #: Share of time in which a kernel ran; ``None`` where the GPU does not report it.
    utilization: float | None
    #: Share of its memory in use; ``None`` where the GPU does not report it.
    memory: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the reading as plain JSON and BSON values."""
        return {"index": self.index, "utilization": self.utilization, "memory": self.memory}


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The load of a worker at one instant; build it with :meth:`of`."""

    #: Mean of those of cpu, memory and gpu that are known; ``None`` if none is.
    load: float | None
    cpu: float | None
    memory: float | None
    #: ``None`` where the worker sees no GPU.
    gpu: float | None
    gpus: tuple[GpuLoad, ...]
    #: When it was taken, by this host's monotonic clock (``time.monotonic``).
    sampled_at: float
    #: The figures as the start of a JSON object, for ``age_s`` to be appended to.
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
        """Build a sample from rounded figures, without those that are not finite.

        >>> LoadSample.of(0.5, 0.25, sampled_at=0.0).load
        0.375
        """
        cpu, memory, gpu = rounded(cpu), rounded(memory), rounded(gpu)
        present = [value for value in (cpu, memory, gpu) if value is not None]
        load = round(sum(present) / len(present), DIGITS) if present else None
        return cls(load, cpu, memory, gpu, tuple(gpus), sampled_at)

    def as_dict(self, now: float | None = None) -> dict[str, Any]:
        """Return the sample as plain JSON and BSON values.

        Keys ``load``, ``cpu``, ``memory``, ``gpu`` for those that are known,
        ``gpus`` where there are any, and ``age_s``, seconds from the sample to
        *now* (by ``time.monotonic``; default: the current instant).
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


def rounded(value: float | None) -> float | None:
    """Return *value* rounded, at least 0; ``None`` where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, DIGITS) if value > 0 else 0.0
