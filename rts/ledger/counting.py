"""What is counted in Redis for the metrics, and in which buckets.

Counting happens in the scripts that end a record's way (``done.lua``) or give a verdict
without an end (``judge.lua``), each exactly once, for all processes of the fleet. So the
counters go on when workers and exporters are started anew.
"""

from __future__ import annotations

#: Upper bounds of the buckets of runtimes and queueing delays, seconds.
DURATIONS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1800.0, 3600.0),
)
#: The same of lateness; negative is early.
LATENESS = (
    *(-600.0, -120.0, -60.0, -30.0, -10.0, -5.0, -2.0, -1.0, -0.5, 0.0),
    *(0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0, 3600.0),
)

#: Cause that stands for a deadline that was met.
MET = "met"


def spelled(bounds: tuple[float, ...]) -> str:
    """Return bounds as the scripts read them, and as they name the buckets."""
    return " ".join(map(repr, bounds))
