"""One reading of the load that a worker is under.

Every figure is a fraction of what this worker may use, 0.0 idle and 1.0 full;
``cpu`` and ``memory`` may exceed 1.0 where demand exceeds what there is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

#: Decimal places that are kept. The counters behind the figures are no finer
#: than a percent or so, and a shorter number is a smaller document.
DIGITS = 4

#: The figures of a load: fractions of what the worker may use.
FIGURES = ("load", "cpu", "memory", "gpu")

#: Oldest sample of the sampler that a task may get, seconds.
MAX_AGE_S = 0.5


class GpuLoad(TypedDict):
    """The load of one visible GPU."""

    #: The driver's index, in PCI bus order; -1 for a MIG instance, which has none.
    index: int
    #: Share of time in which a kernel ran; ``None`` where the GPU does not report it.
    utilization: float | None
    #: Share of its memory in use; ``None`` where the GPU does not report it.
    memory: float | None


class LoadSample(NamedTuple):
    """The load of a worker at one instant."""

    #: The known ones of :data:`FIGURES`, of which ``load`` is the mean of the others, and where
    #: there are GPUs, each of them as ``gpus``: plain JSON and BSON values.
    figures: Mapping[str, Any]
    #: When it was taken, by this host's monotonic clock (``time.monotonic``).
    sampled_at: float
    #: The figures as the start of a JSON object, for ``age_s`` to be appended to.
    json: str

    @classmethod
    def of(
        cls,
        cpu: float | None,
        memory: float | None,
        gpus: Sequence[GpuLoad] = (),
        *,
        sampled_at: float,
    ) -> LoadSample:
        """Build a sample from rounded figures, without those that are not finite.

        The figure ``gpu`` is the **mean** over the GPUs, as for cores: one busy GPU out of
        eight is an eighth of what the worker may use. Of those that do not report their
        utilization (MIG) it is the share of memory in use.

        >>> LoadSample.of(0.5, 0.25, sampled_at=0.0).figures
        {'load': 0.375, 'cpu': 0.5, 'memory': 0.25}
        """
        shares = [g["memory"] if g["utilization"] is None else g["utilization"] for g in gpus]
        gpu = _mean([share for share in shares if share is not None])
        each = {"cpu": rounded(cpu), "memory": rounded(memory), "gpu": rounded(gpu)}
        known = {name: figure for name, figure in each.items() if figure is not None}
        load = rounded(_mean([*known.values()]))
        figures: dict[str, Any] = {} if load is None else {"load": load, **known}
        if gpus:
            figures["gpus"] = list(gpus)
        return cls.of_figures(figures, sampled_at)

    @classmethod
    def of_figures(cls, figures: Mapping[str, Any], sampled_at: float) -> LoadSample:
        """Build a sample from the figures of another one."""
        start = encode(figures)[:-1]
        return cls(figures, sampled_at, start + "," if figures else start)

    def as_dict(self, now: float) -> dict[str, Any]:
        """Return the figures and ``age_s``, seconds until *now*, by ``time.monotonic``."""
        return {**self.figures, "age_s": rounded(now - self.sampled_at)}


encode = json.JSONEncoder(separators=(",", ":")).encode


def rounded(value: float | None) -> float | None:
    """Return *value* rounded, at least 0; ``None`` where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, DIGITS) if value > 0 else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
