"""What is kept of the past for the charts: a few figures by interval and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rts.views.histogram import percentile
from rts.views.series import Point
from rts.views.tally import Tally


@dataclass(frozen=True, slots=True)
class Figures:
    """What is plotted of one key in one interval: small, since it is cached."""

    verdicts: int
    on_time: int
    good: int
    #: Percentiles, p50 and p95; ``None`` without runs.
    runtime: tuple[float | None, float | None]
    delay: tuple[float | None, float | None]

    @classmethod
    def of(cls, counted: Tally) -> Figures:
        """Return the figures of a tally."""
        runtime, delay = counted.runtime, counted.queueing_delay
        return cls(
            counted.verdicts,
            counted.on_time,
            counted.good,
            (percentile(runtime, 0.50), percentile(runtime, 0.95)),
            (percentile(delay, 0.50), percentile(delay, 0.95)),
        )


NOTHING = Figures.of(Tally())


@dataclass(frozen=True, slots=True)
class Moment:
    """One interval. *start* in epoch seconds."""

    start: float
    width_s: int
    figures: Mapping[str, Figures]

    @classmethod
    def of(cls, point: Point) -> Moment:
        """Return what is plotted of *point*."""
        figures = {key: Figures.of(tally) for key, tally in point.tallies.items()}
        return cls(point.start.timestamp(), point.width_s, figures)
