"""What is predicted of a task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """When a task starts and finishes. Instants in epoch seconds, by Redis's clock.

    ``start`` and ``finish`` are off by the least share of the wait in the half of the
    simulations that agree best; ``…_low`` and ``…_high`` enclose 90 % of all.
    Infinite where a task is rather dropped than run (``rts_hopeless`` "drop").
    """

    start: float
    start_low: float
    start_high: float
    finish: float
    finish_low: float
    finish_high: float
    deadline: float
    #: Share of the simulations that finish at or before the deadline.
    on_time: float
    #: Tasks that would start before it, were nothing published any more.
    ahead: int
    slots: int
