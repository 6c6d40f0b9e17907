"""One queue of a broker on Redis, in either order, over a connection that is open."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from rts.predictions.messages import id_of, read
from rts.predictions.queue_parts import (
    SAMPLE,
    Page,
    Part,
    affordable,
    parts_of,
    sampled,
)
from rts.predictions.survey import survey
from rts.scheduling.encoding import Message

#: Messages of each part that routing goes by, at most.
BACKLOG = 20

#: The app's own random numbers stay as they were.
_random = random.Random()


class Found(NamedTuple):
    """A waiting task: its queue, the number of the part, its rank there."""

    queue: str
    part: int
    rank: int
    message: Message


class QueueSample(NamedTuple):
    """A sample of the messages in a queue."""

    #: In the order of the queue's parts: hopeful, demoted and the plain lists with the
    #: deadline order, else the lists, one per priority.
    messages: list[Message]
    #: How many messages each of these stands for, itself included.
    weights: list[float]
    #: Position in *messages* of the task in question; ``None``: it is yet to be published.
    position: int | None
    #: Number of its part, or of the part that it would be published to.
    part: int
    #: Number of waiting messages.
    total: int
    #: Claims counted for the late share (see ``claim.lua``).
    turns: int


#: A queue in which nothing waits.
EMPTY = QueueSample([], [], None, part=0, total=0, turns=0)


class OpenQueue:
    """Reads a queue without consuming it."""

    def __init__(self, channel: Any, name: str, *, ordered: bool) -> None:
        """*ordered*: whether workers take from it in deadline order."""
        self._channel = channel
        self._name = name
        self._ordered = ordered
        self._parts = parts_of(channel, name, ordered=ordered)

    def part_of(self, priority: int) -> int:
        """Return the number of the part that a task with this *priority* is published to."""
        channel = self._channel
        return 0 if self._ordered else channel.priority_steps.index(channel.priority(priority))

    def sample(self, part: int, rank: int | None = None, most: int = SAMPLE) -> QueueSample:
        """Sample the messages ahead of a task, about *most*, and in deadline order also those
        behind it, since they may overtake it.

        The task is the one at *rank* in *part*; without a rank, one that would be published
        there now. Its position follows from the rank, though others may have been taken since.
        """
        found = survey(self._channel, self._parts, queue=self._name)
        behind_all = found.sizes[part] if rank is None else rank
        most = affordable(most, found.overall_mean_bytes)
        pages = sampled(found.sizes, part, behind_all, most, ordered=self._ordered)
        messages, weights = self._read(pages)
        position = None
        if rank is not None:
            before = (page for page in pages if (page.part, page.ranks.start) < (part, rank))
            position = sum(len(page.ranks) for page in before)
        return QueueSample(messages, weights, position, part, sum(found.sizes), found.turns)

    def sample_of(self, found: Found) -> QueueSample:
        """Sample the messages around one that was *found*: see :meth:`sample`. If it has been
        taken since, insert it where it was: it was next.
        """
        sample = self.sample(found.part, found.rank)
        task_id = id_of(found.message)
        for index, message in enumerate(sample.messages):
            if id_of(message) == task_id:
                return sample._replace(position=index)
        position = min(sample.position or 0, len(sample.messages))
        sample.messages.insert(position, found.message)
        sample.weights.insert(position, 1.0)
        return sample._replace(position=position)

    def _read(self, pages: Sequence[Page]) -> tuple[list[Message], list[float]]:
        """Return the messages of *pages* in the order of consumption, and their weights."""
        ranges = [(self._parts[p.part].key, p.ranks[0], p.ranks[-1]) for p in pages]
        found, _ = read(self._channel, ranges)
        messages: list[Message] = []
        weights: list[float] = []
        for page, of_page in zip(pages, found, strict=True):
            messages += of_page
            weights += [page.weight] * len(of_page)
        return messages, weights

    def backlog(self, keys: Collection[str]) -> list[tuple[int, list[Message]]]:
        """Return how many messages wait in each part, and about how many are held, each with
        a sample of them. *keys*: the routing keys of the queue's messages.
        """
        found = survey(self._channel, self._parts, unacked=BACKLOG)
        measured = zip(self._parts, found.sizes, found.mean_bytes, strict=True)
        ranges = [_some(part, size, mean_bytes) for part, size, mean_bytes in measured]
        taken = found.affordable_taken()
        answers, unacked = read(self._channel, [*chain(*ranges)], taken)
        rest = iter(answers)
        samples = [[*chain(*islice(rest, len(of_part)))] for of_part in ranges]
        # Estimate the queue's share of the unacknowledged messages from a few.
        held = [each.message for each in unacked if each.routing_key in keys]
        number = found.unacked * len(held) // max(1, len(taken))
        return [*zip(found.sizes, samples, strict=True), (number, held)]


def _some(part: Part, size: int, mean_bytes: float) -> list[tuple[str, int, int]]:
    """Return ranges of ranks in a part of this *size*, for :func:`read_messages`."""
    length = min(size, affordable(BACKLOG, mean_bytes))
    if not part.ordered:
        # Of a long one both ends: the tasks at its head may all wait for their eta.
        last = length // 2 if length < size else 0
        ends = [(part.key, 0, length - last - 1), (part.key, size - last, size - 1)]
        return ends if last else ends[:1]
    # The first ones are mostly short, since they are due soon. (Redis before 6.2 has no command
    # for random members.)
    return [(part.key, rank, rank) for rank in _random.sample(range(size), length)]
