"""The load of a worker at a task's start, and what a run used."""

from __future__ import annotations

from rts.load.board import LoadBoard
from rts.load.sample import GpuLoad, LoadSample
from rts.load.sampler import LoadSampler, Probes, real_probes
from rts.load.usage import RunUsage, Usage

__all__ = [
    "GpuLoad",
    "LoadBoard",
    "LoadSample",
    "LoadSampler",
    "Probes",
    "RunUsage",
    "Usage",
    "real_probes",
]
