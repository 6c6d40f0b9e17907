"""A queue and its workers at one moment, as plain values: what a simulation begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rts.predictions.sampling import Work
from rts.predictions.shared_workers import Crew
from rts.tau.sketch import Sketch


class Running(NamedTuple):
    """A run that goes on."""

    work: Work
    #: Epoch seconds.
    started: float
    #: Number of the crew that runs it.
    crew: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A queue, those that share workers with it, and the workers, at one moment."""

    now: float
    #: Of the workers that take from the queue.
    slots: int
    #: In the order of the queue; what waits in the others comes last.
    waiting: Sequence[Work] = ()
    #: What workers have taken and not started, in their order: prefetched, or with an eta.
    held: Sequence[Work] = ()
    #: Numbers of the crews that hold these; none, or ``None``: any that takes from the queue.
    held_by: Sequence[int | None] = ()
    running: Sequence[Running] = ()
    #: Learned ratios of runtime over tau, by type.
    ratios: Mapping[str, Sketch] = field(default_factory=dict)
    #: The last runs that have ended, with their runtimes in seconds.
    ended: Sequence[tuple[Work, float]] = ()
    #: What has arrived within the last ``span_s`` seconds, whatever became of it.
    lately: Sequence[Work] = ()
    span_s: float = 0.0
    #: Until then nothing comes but what is among ``waiting``; 0: until now.
    known_until: float = 0.0
    #: All workers; empty: those of the queue, which take from no other.
    crews: Sequence[Crew] = ()
    #: Whether they ask their queues in turn, or the first one first.
    in_turn: bool = True
    #: Share of the slots' time that tasks get, above 0 to 1: what a worker needs
    #: between two tasks has the rest.
    share: float = 1.0
    #: Of each queue, claims that the deadline order has counted for the demoted (see
    #: ``claim.lua``).
    turns: Sequence[int] = ()

    @property
    def hands(self) -> Sequence[Crew]:
        """All workers."""
        return self.crews or (Crew(self.slots),)
