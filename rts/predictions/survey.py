"""The sizes of what waits at the broker and of what is unacknowledged, measured in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from rts.predictions.queue_parts import Part
from rts.scheduling.layout import TURNS, keys_of, unacked_keys
from rts.scheduling.scripts import BYTES, ScriptByHash

SURVEY = ScriptByHash("survey")


class Taken(NamedTuple):
    """An unacknowledged message that was measured, but not read yet."""

    tag: bytes
    #: Epoch seconds by the clock of the worker's host.
    at: float
    bytes: int


class Survey(NamedTuple):
    """What a script has measured."""

    #: Claims counted for the late share.
    turns: int
    #: Number of unacknowledged messages, of all queues; and some of these.
    unacked: int
    taken: Sequence[Taken]
    #: Number and mean size of the messages in each part.
    sizes: Sequence[int]
    mean_bytes: Sequence[int]

    @property
    def overall_mean_bytes(self) -> float:
        """Mean size of the messages in all parts."""
        pairs = zip(self.sizes, self.mean_bytes, strict=True)
        return sum(size * mean for size, mean in pairs) / max(1, sum(self.sizes))

    def affordable_taken(self) -> Sequence[Taken]:
        """Return the first of ``taken``, of BYTES together, but at least one."""
        sums = accumulate(each.bytes for each in self.taken)
        pairs = zip(self.taken, sums, strict=True)
        return [each for each, bytes_ in pairs if bytes_ - each.bytes < BYTES]


def survey(
    channel: Any,
    parts: Sequence[Part] = (),
    *,
    queue: str = "",
    unacked: int = 0,
    which: str = "spread",
) -> Survey:
    """Measure *parts*, and *unacked* unacknowledged messages at most: *which* is "latest", or
    "spread" over all. *queue*: the one whose claims to count, if the parts are its own.
    """
    keys = [*unacked_keys(channel), *(part.key for part in parts)]
    if queue:
        keys += keys_of(channel, queue, TURNS)
    turns, number, taken, *measured = SURVEY.run(
        channel.plain, keys, [unacked, which, len(parts)]
    )
    each = zip(*(taken[field::3] for field in range(3)), strict=True)
    return Survey(
        turns,
        number,
        [Taken(tag, float(at), bytes_) for tag, at, bytes_ in each],
        measured[::2],
        measured[1::2],
    )
