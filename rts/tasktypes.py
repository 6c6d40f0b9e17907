"""Task types: the classes of work that tau is learned for."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskType:
    """A class of work.

    ``tau`` is the runtime in seconds that is assumed until one is learned;
    ``sla_multiplier`` is its own k, ``None`` for that of the settings.
    """

    name: str
    tau: float
    sla_multiplier: float | None = None


#: The six types that every installation has, with their default tau in seconds.
DEFAULT_TASK_TYPES: dict[str, TaskType] = {
    t.name: t
    for t in (
        TaskType("cpu-light", 5.0),
        TaskType("cpu-heavy", 15.0),
        TaskType("memory-heavy", 20.0),
        TaskType("gpu-inference", 10.0),
        TaskType("gpu-training", 60.0),
        TaskType("mixed", 10.0),
    )
}

#: The type of tasks that request nothing.
UNTYPED = "mixed"

#: Allowed names of types. A type becomes a hash field in Redis and a value in
#: MongoDB and metrics, so it is short and plain; "/" separates type and name.
TYPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task requests: cores, GiB, GPUs, and GiB of storage, which no rule uses yet. 0
    where not given.
    """

    cpu: float = 0.0
    memory: float = 0.0
    gpu: float = 0.0
    storage: float = 0.0


def infer(resources: Resources) -> str:
    """Return the type to infer from a resource request; the first matching rule wins.

    >>> infer(Resources(gpu=4, cpu=8)), infer(Resources(gpu=1)), infer(Resources(memory=16))
    ('gpu-training', 'gpu-inference', 'memory-heavy')
    >>> infer(Resources(cpu=8)), infer(Resources(cpu=1)), infer(Resources())
    ('cpu-heavy', 'cpu-light', 'mixed')
    """
    if resources.gpu > 2 and resources.cpu > 4:
        return "gpu-training"
    if resources.gpu > 0:
        return "gpu-inference"
    if resources.memory > 8:
        return "memory-heavy"
    if resources.cpu > 4:
        return "cpu-heavy"
    if resources.cpu > 0:
        return "cpu-light"
    return UNTYPED
