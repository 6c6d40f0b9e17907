"""How the deadline order is kept: what travels to the transport as one option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from rts.deadlines import HOPELESS_SLOTS, HORIZON_S, LATE_SHARE, late_every, work_weight
from rts.settings import Settings

#: The transport option that turns a Redis connection to the deadline order.
OPTION = "rts"


@dataclass(frozen=True)
class Rule:
    """The rule of every claim. See the settings of the same names."""

    #: ``demote``, ``keep`` (plain EDF) or ``drop``.
    hopeless: str = "demote"
    #: Share of a worker's slots that demoted work may hold, at least one slot.
    hopeless_slots: float = HOPELESS_SLOTS
    #: Share of claims that serve the demoted message that has waited longest.
    late_share: float = LATE_SHARE
    #: Weight of tau in the order: 0, or 2 for "deadline+work".
    work: float = 0.0
    #: Queue name, or ``*`` for all others, to a horizon in seconds.
    horizons: Mapping[str, float] = field(default_factory=dict)

    def horizon(self, queue: str) -> float:
        """Return the horizon of *queue* in seconds."""
        return self.horizons.get(queue, self.horizons.get("*", HORIZON_S))

    @classmethod
    def of(cls, settings: Settings) -> Rule:
        """Return the rule that is set."""
        return cls(
            settings.hopeless,
            settings.hopeless_slots,
            settings.late_share,
            work_weight(settings.order),
            dict(settings.queue_horizons),
        )

    @property
    def late_every(self) -> int:
        """One claim in so many serves the demoted; 0: none does."""
        return late_every(self.late_share)

    def as_option(self) -> dict[str, Any]:
        """Return plain values, from which ``Rule(**option)`` is an equal rule."""
        return {**asdict(self), "horizons": dict(self.horizons)}


class SlotGauge(Protocol):
    """What a worker tells of its slots; see :mod:`rts.scheduling.slots`."""

    def free(self) -> bool:
        """Return whether a task could start now."""

    def demoted_may(self, share: float) -> bool:
        """Return whether one more demoted task may hold a slot, of that share of them."""

    def claimed_demoted(self, task_id: object) -> None:
        """Note that a demoted task was claimed."""
