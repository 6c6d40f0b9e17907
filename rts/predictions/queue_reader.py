"""Reading the queues of a broker on Redis, in either order, without consuming."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

from rts.errors import CommandError
from rts.predictions.messages import (
    SAMPLE,
    SEARCH_PAGE,
    Found,
    Held,
    Page,
    Part,
    Stratum,
    affordable,
    held_of,
    placed,
    rank_of,
    sampled,
)
from rts.predictions.shared_connection import SharedConnection
from rts.scheduling.encoding import Message, message_of
from rts.scheduling.layout import DEMOTED, HOPEFUL, TURNS
from rts.scheduling.scripts import BYTES, ScriptByHash, read_messages
from rts.settings import Settings

#: Messages to search for a task, at most.
SEARCHED = 1_000_000
#: Unacknowledged messages to read, at most: those taken last.
HELD = 1000

#: Messages of each part that routing goes by, at most.
BACKLOG = 20

FIND_TASK, SURVEY = ScriptByHash("find_task"), ScriptByHash("survey")

#: The app's own random numbers stay as they were.
_random = random.Random()


class QueueSample(NamedTuple):
    """A sample of the messages in a queue."""

    #: In the order of the queue's parts: hopeful, demoted and the plain lists with the
    #: deadline order, else the lists, one per priority.
    messages: list[Message]
    #: How many messages each of these stands for, itself included.
    weights: list[float]
    #: Position in *messages* of the task in question; ``None``: without one.
    position: int | None
    #: Number of waiting messages.
    total: int
    #: Unacknowledged messages of all queues, the earliest taken first.
    held: list[Held]
    #: Claims counted for the late share (see ``claim.lua``).
    turns: int
    #: Number of the part of the task in question.
    level: int
    #: Seconds after which a held message is redelivered.
    redelivery_s: float = math.inf


class _Survey(NamedTuple):
    """The sizes of what waits and of what is unacknowledged."""

    #: Claims counted for the late share.
    turns: int
    #: Number of unacknowledged messages, of all queues.
    unacked: int
    #: Some of these: tag, instant at which it was taken, bytes.
    taken: list[tuple[bytes, float, int]]
    #: Number and mean size of the messages in each part.
    sizes: list[int]
    mean_bytes: list[int]


#: A queue in which nothing waits.
EMPTY = QueueSample([], [], None, 0, [], 0, 0)


class QueueReader:
    """Reads queues over one kombu connection. Safe with threads.

    Each question raises :class:`CommandError` if the broker is not Redis, and
    :class:`rts.errors.StoreUnavailable` if it is unavailable.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._settings = settings
        self._ordered = settings.scheduler == "edf"
        self._shared = SharedConnection(app, settings)

    def close(self) -> None:
        """Close the connection, as soon as no thread reads any more."""
        self._shared.close()

    def find(
        self, task_id: str, queues: Iterable[str], arrival: float | None = None
    ) -> Found | None:
        """Return where a task waits in one of *queues*; ``None``: in none. In long lists the
        search starts near *arrival*, if known.

        Raises:
            CommandError: the broker is not Redis, or more messages wait than SEARCHED.
            StoreUnavailable: it is unavailable.
        """
        with self._shared.channel() as (channel, client):
            parts = [
                (queue, number, part)
                for queue in queues
                for number, part in enumerate(self._parts(channel, queue))
            ]
            survey = self._survey(channel, client, [part for _, _, part in parts])
            left = SEARCHED
            each_part = zip(parts, survey.sizes, survey.mean_bytes, strict=True)
            for (queue, number, part), size, mean_bytes in each_part:
                length = affordable(SEARCH_PAGE, mean_bytes)
                pages = list(range(0, size, length))
                if arrival is not None and size > 2 * SEARCH_PAGE and not part.ordered:
                    near = rank_of(client, part, size, arrival) - length / 2
                    pages.sort(key=partial(_distance, near))
                for first in pages:
                    if left <= 0:
                        raise CommandError(
                            f"{task_id} is not among the first {SEARCHED:,} waiting "
                            "messages; name its queue, if there are several"
                        )
                    left -= length
                    page = [task_id, first, first + length - 1]
                    found = FIND_TASK.run(client, [part.name], page)
                    if found:
                        return Found(queue, number, int(found[0]), message_of(found[1]))
        return None

    def read(
        self,
        queue: str,
        target: Found | None = None,
        priority: int = 0,
        level: int | None = None,
        most: int = SAMPLE,
        held: int = HELD,
    ) -> QueueSample:
        """Sample the messages ahead of a task, and in deadline order also those behind it,
        since they may overtake it. The task is *target*; without one, it is one that would be
        published now, with this *priority* or, if given, into the part *level*.

        *most*: waiting messages to read, about; *held*: unacknowledged ones, of all queues.
        """
        with self._shared.channel() as (channel, client):
            parts = self._parts(channel, queue)
            # The latest ones, as messages held for an eta may have been taken long ago.
            survey = self._survey(channel, client, parts, held, "latest", queue)
            sizes = survey.sizes
            if target is not None:
                level, rank = target.part, target.rank
            else:
                level = self._part_of(channel, priority) if level is None else level
                rank = sizes[level]
            ahead, behind = self._strata(sizes, level, rank)
            waiting_bytes = sum(map(mul, sizes, survey.mean_bytes))
            most = affordable(most, waiting_bytes / max(1, sum(sizes)))
            pages = sampled(ahead, behind, most)
            taken = _affordable(survey.taken)[::-1]
            answers, entries = read_messages(
                client,
                [(parts[p.part].name, p.ranks.start, p.ranks.stop - 1) for p in pages],
                channel.global_keyprefix + channel.unacked_key,
                [tag for tag, _, _ in taken],
            )
        messages, weights = _in_order(pages, answers)
        position = None
        if target is not None:
            before = [page for page in pages if (page.part, page.ranks.start) < (level, rank)]
            position = placed(messages, target, sum(len(page.ranks) for page in before))
            if len(messages) > len(weights):
                weights.insert(position, 1.0)
        return QueueSample(
            messages,
            weights,
            position,
            sum(sizes),
            held_of(zip(entries, (at for _, at, _ in taken), strict=True)),
            survey.turns,
            level,
            float(channel.visibility_timeout),
        )

    def _part_of(self, channel: Any, priority: int) -> int:
        """Return the part that a task with this *priority* would be published to."""
        steps = () if self._ordered else channel.priority_steps
        return steps.index(channel.priority(priority)) if steps else 0

    def _strata(
        self, sizes: Sequence[int], level: int, rank: int
    ) -> tuple[list[Stratum], list[Stratum]]:
        """Return the strata up to the message of this rank in the part *level*, itself
        included, and those behind it that may overtake it.
        """
        ahead = [Stratum(part, range(sizes[part])) for part in range(level)]
        ahead.append(Stratum(level, range(min(sizes[level], rank))))
        ahead.append(Stratum(level, range(rank, min(sizes[level], rank + 1))))
        if not self._ordered:
            return ahead, []
        # Once it is hopeless, hopeful and earlier demoted messages overtake it; those in the
        # plain lists will be adopted.
        behind = [Stratum(level, range(rank + 1, sizes[level]))]
        behind += [Stratum(part, range(sizes[part])) for part in range(level + 1, len(sizes))]
        return ahead, behind

    def backlog(self, queue: str, keys: Collection[str]) -> list[tuple[int, list[Message]]]:
        """Return how many messages wait in each part of *queue*, and about how many are held,
        each with a sample of them. *keys*: their routing keys.
        """
        with self._shared.channel() as (channel, client):
            parts = self._parts(channel, queue)
            survey = self._survey(channel, client, parts, BACKLOG, "spread")
            ranges, lengths = [], []
            for part, size, mean_bytes in zip(
                parts, survey.sizes, survey.mean_bytes, strict=True
            ):
                length = min(size, affordable(BACKLOG, mean_bytes))
                # The first ones are mostly short, since they are due soon. (Redis before 6.2
                # has no command for random members.)
                chosen = (
                    [(rank, rank) for rank in _random.sample(range(size), length)]
                    if part.ordered
                    else [(0, length - 1)][:length]
                )
                ranges += [(part.name, first, last) for first, last in chosen]
                lengths.append(len(chosen))
            taken = _affordable(survey.taken)
            unacked = channel.global_keyprefix + channel.unacked_key
            answers, entries = read_messages(
                client, ranges, unacked, [tag for tag, _, _ in taken]
            )
        # Estimate the queue's share of the unacknowledged messages from a few.
        others = ((text, at) for text, (_, at, _) in zip(entries, taken, strict=True))
        held = [each.message for each in held_of(others) if each.routing_key in keys]
        number = survey.unacked * len(held) // max(1, len(entries))
        texts = iter(answers)
        samples = [
            [message_of(text) for _ in range(length) for text in next(texts)]
            for length in lengths
        ]
        return [*zip(survey.sizes, samples, strict=True), (number, held)]

    def waiting(self, queues: Sequence[str]) -> list[int]:
        """Return the number of messages that wait in each of *queues*."""
        with self._shared.channel() as (channel, client):
            parts = [self._parts(channel, queue) for queue in queues]
            flat = [part for of_queue in parts for part in of_queue]
            sizes = iter(self._survey(channel, client, flat).sizes)
            return [sum(next(sizes) for _ in of_queue) for of_queue in parts]

    def _survey(
        self,
        channel: Any,
        client: Any,
        parts: Sequence[Part],
        held: int = 0,
        which: str = "spread",
        queue: str = "",
    ) -> _Survey:
        """Measure *parts*, those of *queue*, and up to *held* unacknowledged messages, the
        "latest" or "spread" over all.
        """
        prefix = channel.global_keyprefix
        keys = [prefix + channel.unacked_key, prefix + channel.unacked_index_key]
        keys += [f"{prefix}{queue}{channel.sep}{TURNS}", *(part.name for part in parts)]
        turns, unacked, taken, *measured = SURVEY.run(client, keys, [held, which])
        return _Survey(
            turns,
            unacked,
            [
                (t, float(at), n)
                for t, at, n in zip(*(taken[i::3] for i in range(3)), strict=True)
            ],
            measured[::2],
            measured[1::2],
        )

    def _parts(self, channel: Any, queue: str) -> list[Part]:
        """Return a queue's parts in the order in which they are consumed."""
        name, sep = f"{channel.global_keyprefix}{queue}", channel.sep
        steps = channel.priority_steps
        lists = [Part(f"{name}{sep}{step}" if step else name, False) for step in steps]
        ordered = [Part(f"{name}{sep}{part}", True) for part in (HOPEFUL, DEMOTED)]
        return [*ordered, *lists] if self._ordered else lists


def _distance(near: float, rank: int) -> float:
    return abs(rank - near)


def _affordable(taken: Sequence[tuple[bytes, float, int]]) -> list[tuple[bytes, float, int]]:
    """Return the first of *taken*, of BYTES together, but at least one."""
    sizes = accumulate(size for _, _, size in taken)
    return [each for each, size in zip(taken, sizes, strict=True) if size - each[2] < BYTES]


def _in_order(
    pages: Sequence[Page], answers: Sequence[list[bytes]]
) -> tuple[list[Message], list[float]]:
    """Return the messages of *pages* in the order of consumption, and their weights."""
    messages: list[Message] = []
    weights: list[float] = []
    for page, texts in zip(pages, answers, strict=True):
        messages += map(message_of, texts)
        weights += [page.weight] * len(texts)
    return messages, weights
