"""Task types: the classes of work that tau is learned for."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


#: What a task may request: cores, GiB, GPUs, and GiB of storage, which no rule uses yet.
RESOURCES = ("req_cpu", "req_memory", "req_gpu", "req_storage")


def infer(requested: Mapping[str, float]) -> str:
    """Return the type to infer from the requested resources; the first matching rule wins.

    >>> infer({"req_gpu": 4, "req_cpu": 8}), infer({"req_gpu": 1}), infer({"req_memory": 16})
    ('gpu-training', 'gpu-inference', 'memory-heavy')
    >>> infer({"req_cpu": 8}), infer({"req_cpu": 1}), infer({})
    ('cpu-heavy', 'cpu-light', 'mixed')
    """
    cpu, memory, gpu = (requested.get(name, 0.0) for name in RESOURCES[:3])
    if gpu > 2 and cpu > 4:
        return "gpu-training"
    if gpu > 0:
        return "gpu-inference"
    if memory > 8:
        return "memory-heavy"
    if cpu > 4:
        return "cpu-heavy"
    if cpu > 0:
        return "cpu-light"
    return UNTYPED
