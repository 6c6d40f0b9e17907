"""Reading the queues of a broker on Redis, in either order, without consuming."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from rts.errors import CommandError
from rts.predictions.messages import (
    FIRST,
    SAMPLE,
    SEARCH_PAGE,
    Found,
    Held,
    Page,
    Part,
    Stratum,
    affordable,
    ask_range,
    ask_size,
    held_of,
    placed,
    rank_of,
    sampled,
    sizes_of,
)
from rts.predictions.shared_connection import SharedConnection
from rts.scheduling.encoding import Message, message_of
from rts.scheduling.layout import DEMOTED, HOPEFUL, TURNS
from rts.scheduling.scripts import ScriptByHash
from rts.settings import Settings

#: Messages to search for a task, at most.
SEARCHED = 1_000_000
#: Unacknowledged messages to read, at most: those taken last.
HELD = 1000

FIND_TASK = ScriptByHash("find_task")

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
            sizes = sizes_of(client, [part for _, _, part in parts])
            left = SEARCHED
            for (queue, number, part), size in zip(parts, sizes, strict=True):
                pages = list(range(0, size, SEARCH_PAGE))
                if arrival is not None and len(pages) > 2 and not part.ordered:
                    near = rank_of(client, part, size, arrival)
                    pages.sort(key=lambda page: abs(page + SEARCH_PAGE / 2 - near))
                for first in pages:
                    if left <= 0:
                        raise CommandError(
                            f"{task_id} is not among the first {SEARCHED:,} waiting "
                            "messages; name its queue, if there are several"
                        )
                    left -= SEARCH_PAGE
                    page = [task_id, first, first + SEARCH_PAGE - 1]
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
            prefix = channel.global_keyprefix
            with client.pipeline(transaction=False) as pipe:
                for part in parts:
                    ask_size(pipe, part)
                    ask_range(pipe, part, 0, FIRST - 1)
                pipe.get(f"{prefix}{queue}{channel.sep}{TURNS}")
                pipe.zrevrange(prefix + channel.unacked_index_key, 0, held - 1, withscores=True)
                *answers, turns, taken = pipe.execute()
            sizes, firsts = answers[::2], answers[1::2]
            if target is not None:
                level, rank = target.part, target.rank
            else:
                level = self._part_of(channel, priority) if level is None else level
                rank = sizes[level]
            ahead, behind = self._strata(sizes, level, rank)
            pages = sampled(ahead, behind, affordable(firsts, most))
            # The latest ones, as messages held for an eta may have been taken long ago. If
            # nothing waits, estimate the size of messages from the first of these.
            unacked = prefix + channel.unacked_key
            if len(taken) > FIRST and not any(firsts):
                firsts = [client.hmget(unacked, [tag for tag, _ in taken[:FIRST]])]
            taken = taken[affordable(firsts, held) :: -1]
            with client.pipeline(transaction=False) as pipe:
                for page in pages:
                    ask_range(pipe, parts[page.part], page.ranks.start, page.ranks.stop - 1)
                pipe.hmget(unacked, [tag for tag, _ in taken] or [b""])
                *answers, entries = pipe.execute()
        messages, weights = _in_order(parts, pages, answers)
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
            held_of(zip(entries, (at for _, at in taken), strict=False)),
            int(turns or 0),
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
            sizes = sizes_of(client, parts)
            pages = [
                # The first ones are mostly short, since they are due soon. (Redis before 6.2
                # has no command for random members.)
                [(rank, rank) for rank in _random.sample(range(size), min(FIRST, size))]
                if part.ordered
                else [(0, FIRST - 1)]
                for part, size in zip(parts, sizes, strict=True)
            ]
            unacked = channel.global_keyprefix + channel.unacked_key
            with client.pipeline(transaction=False) as pipe:
                for part, of_part in zip(parts, pages, strict=True):
                    for first, last in of_part:
                        ask_range(pipe, part, first, last)
                pipe.hlen(unacked)
                pipe.hscan(unacked, 0, count=FIRST)
                *answers, unsettled, (_, entries) = pipe.execute()
        # Estimate the queue's share of the unacknowledged messages from a few.
        others = ((text, 0.0) for text in entries.values())
        held = [each.message for each in held_of(others) if each.routing_key in keys]
        taken = unsettled * len(held) // max(1, len(entries))
        texts = iter(answers)
        samples = [
            [message_of(text) for _ in of_part for text in next(texts)] for of_part in pages
        ]
        return [*zip(sizes, samples, strict=True), (taken, held)]

    def waiting(self, queues: Sequence[str]) -> list[int]:
        """Return the number of messages that wait in each of *queues*."""
        with self._shared.channel() as (channel, client):
            parts = [self._parts(channel, queue) for queue in queues]
            sizes = iter(sizes_of(client, [part for of_queue in parts for part in of_queue]))
            return [sum(next(sizes) for _ in of_queue) for of_queue in parts]

    def _parts(self, channel: Any, queue: str) -> list[Part]:
        """Return a queue's parts in the order in which they are consumed."""
        name, sep = f"{channel.global_keyprefix}{queue}", channel.sep
        steps = channel.priority_steps
        lists = [Part(f"{name}{sep}{step}" if step else name, False) for step in steps]
        ordered = [Part(f"{name}{sep}{part}", True) for part in (HOPEFUL, DEMOTED)]
        return [*ordered, *lists] if self._ordered else lists


def _in_order(
    parts: Sequence[Part], pages: Sequence[Page], answers: Sequence[list[bytes]]
) -> tuple[list[Message], list[float]]:
    """Return the messages of *pages* in the order of consumption, and their weights."""
    messages: list[Message] = []
    weights: list[float] = []
    for page, texts in zip(pages, answers, strict=True):
        # A list is consumed from its end.
        in_order = texts if parts[page.part].ordered else reversed(texts)
        messages += map(message_of, in_order)
        weights += [page.weight] * len(texts)
    return messages, weights
