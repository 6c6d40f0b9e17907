"""The load of a worker at a task's start, and what a run used."""

from __future__ import annotations

from rts.load.board import LoadBoard
from rts.load.sample import GpuLoad, LoadSample
from rts.load.sampler import LoadSampler, Probes, real_probes
from rts.load.usage import ProcessMeter, ThreadMeter

__all__ = [
    "GpuLoad",
    "LoadBoard",
    "LoadSample",
    "LoadSampler",
    "Probes",
    "ProcessMeter",
    "ThreadMeter",
    "real_probes",
]
