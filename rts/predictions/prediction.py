"""The prediction for a task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """When a task will start and finish. Instants in epoch seconds by Redis's clock.

    ``start`` and ``finish`` are where the simulations agree best, by the relative error of the
    time from now. Between ``…_low`` and ``…_high`` it lies with a probability of 90 %.
    Infinite if the task is more likely dropped than run (``rts_hopeless`` "drop"), or if a
    worker that has no slots holds it.
    ``on_time`` is the probability, 0 to 1, that it meets its ``deadline``; ``ahead`` the number
    of tasks that start before it, if nothing more is published; ``slots`` the number of slots
    of the workers that consume its queue.
    """

    start: float
    start_low: float
    start_high: float
    finish: float
    finish_low: float
    finish_high: float
    deadline: float
    on_time: float
    ahead: int
    slots: int
