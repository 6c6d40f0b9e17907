"""The rule of the deadline order, which transport and simulator share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rts.deadlines import HOPELESS_SLOTS, HORIZON_S, LATE_SHARE
from rts.settings import Settings

#: The transport option that puts a Redis connection in deadline order.
OPTION = "rts"


@dataclass(frozen=True)
class Rule:
    """The rule that every claim follows. See the settings of the same names.

    >>> [Rule(late_share=share).late_every for share in (0.05, 0.15, 0.0)]
    [20, 7, 0]
    """

    #: ``demote``, ``keep`` (plain EDF) or ``drop``.
    hopeless: str = "demote"
    #: Share of a worker's slots that demoted tasks may hold, at least one slot, so that long
    #: hopeless runs do not make hopeful tasks hopeless in turn.
    hopeless_slots: float = HOPELESS_SLOTS
    #: Share of claims that serve the demoted message that has waited longest, so that none
    #: starves; 0 for none.
    late_share: float = LATE_SHARE
    #: Weight of tau in the order: 0, or 2 for "deadline+work".
    work: float = 0.0
    #: Horizon in seconds by queue name; ``*`` for all others.
    horizons: Mapping[str, float] = field(default_factory=dict)

    def horizon(self, queue: str) -> float:
        """Return the horizon of *queue* in seconds."""
        return self.horizons.get(queue, self.horizons.get("*", HORIZON_S))

    @classmethod
    def of(cls, settings: Settings) -> Rule:
        """Return the rule that *settings* configure."""
        return cls(
            settings.hopeless,
            settings.hopeless_slots,
            settings.late_share,
            2.0 if settings.order == "deadline+work" else 0.0,
            dict(settings.queue_horizons),
        )

    @property
    def late_every(self) -> int:
        """Every n-th claim serves a demoted task; 0: none does."""
        return round(1 / self.late_share) if self.late_share > 0 else 0

    def as_option(self) -> dict[str, Any]:
        """Return the transport's option, such that ``Rule(**option)`` equals this rule."""
        return asdict(self)
