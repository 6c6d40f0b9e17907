"""Buckets and labels of the metrics that are counted in Redis.

The scripts that remove a record from the outbox (``acknowledge.lua``) or give a verdict without
an end (``mark_overdue.lua``) count, exactly once for the whole fleet. So the counters survive
restarts of workers and exporters.
"""

from __future__ import annotations

from rts.settings import Settings

#: Upper bounds of the buckets of runtimes and queueing delays, seconds. Up to a day: if a
#: quantile is beyond the last bound, Prometheus returns that bound.
DURATIONS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0,
)  # fmt: skip
#: The same for lateness; negative is early.
LATENESS = (
    -600.0, -120.0, -60.0, -30.0, -10.0, -5.0, -2.0, -1.0, -0.5, 0.0,
    0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0, 3600.0, 21600.0, 86400.0,
)  # fmt: skip

#: The cause of verdicts whose deadline was met.
MET = "met"

#: Verdicts that are remembered at least, however few tasks may be open.
MIN_JUDGED = 10_000


def most_judged(settings: Settings) -> int:
    """Return how many verdicts are remembered, so that a late end is not a second one."""
    return max(settings.open_max, MIN_JUDGED)


def bounds_text(bounds: tuple[float, ...]) -> str:
    """Return bounds as the scripts parse them, and as they name the buckets."""
    return " ".join(map(repr, bounds))
