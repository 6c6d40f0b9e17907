"""Messages in Redis: their parsing, and sampling of long queues."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis

from rts.scheduling.encoding import Message, message_of
from rts.scheduling.scripts import BYTES
from rts.validation import finite

#: Size of the sample of a queue, in messages.
SAMPLE = 500
#: Pages that a stratum is sampled in, evenly spread.
PAGES = 100
#: Least share of a sample for the messages ahead of the one in question.
AHEAD_SHARE = 0.75
#: Messages that one call of the search examines, at most.
SEARCH_PAGE = 500


class Part(NamedTuple):
    """One of a queue's keys."""

    name: str
    #: Whether it is a sorted set; else it is a list, consumed from its right end.
    ordered: bool


class Stratum(NamedTuple):
    """A range of ranks in a part."""

    #: Number of the part.
    part: int
    ranks: range


class Page(NamedTuple):
    """Consecutive messages that are read together."""

    #: Number of the part.
    part: int
    ranks: range
    #: How many messages each of them stands for, itself included.
    weight: float


class Found(NamedTuple):
    """A waiting task: its queue, the number of the part, its rank there."""

    queue: str
    part: int
    rank: int
    message: Message


class Held(NamedTuple):
    """An unacknowledged message."""

    routing_key: str
    message: Message
    #: Epoch seconds by the clock of the worker's host.
    taken_at: float


def id_of(message: Message) -> str | None:
    """Return the task id in a message; ``None`` if it is not a task."""
    headers = message.get("headers")
    task_id = headers.get("id") if isinstance(headers, dict) else None
    return task_id if isinstance(task_id, str) else None


def affordable(most: int, mean_bytes: float) -> int:
    """Return how many messages of this mean size to read, at most *most*, at least one."""
    return max(1, min(most, int(BYTES / max(1.0, mean_bytes))))


def sampled(ahead: Sequence[Stratum], behind: Sequence[Stratum], most: int) -> list[Page]:
    """Return the pages to read, about *most* messages: evenly spread over each stratum, with
    its last one.

    The strata *ahead* get at least AHEAD_SHARE of them, if they need that many.
    """
    room = max(int(AHEAD_SHARE * most), most - _size(behind))
    found: list[Page] = []
    for strata, share_of in ((ahead, room), (behind, most - min(room, _size(ahead)))):
        share = min(1.0, share_of / max(1, _size(strata)))
        for stratum in strata:
            pages = _spread(stratum.ranks, share) if stratum.ranks else []
            weight = len(stratum.ranks) / max(1, sum(map(len, pages)))
            found += [Page(stratum.part, page, weight) for page in pages]
    return found


def _size(strata: Sequence[Stratum]) -> int:
    return sum(len(stratum.ranks) for stratum in strata)


def _spread(ranks: range, share: float) -> list[range]:
    if share == 1.0:
        return [ranks]
    size = len(ranks)
    pages = max(1, min(PAGES, int(size * share)))
    each = max(1, int(size * share / pages))
    starts = [size * page // pages for page in range(pages)]
    found = [ranks[start : min(start + each, size - 1)] for start in starts]
    return [*(page for page in found if page), ranks[-1:]]


def held_of(entries: Iterable[tuple[bytes | None, float]]) -> list[Held]:
    """Return the messages in *entries* of ``unacked``, given with the instant at which it
    was taken; an entry is ``None`` if it has been acknowledged since.
    """
    found: list[Held] = []
    for text, taken_at in entries:
        try:
            message, _, routing_key = json.loads(text or b"")
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(message, dict):
            found.append(Held(str(routing_key), message, taken_at))
    return found


def placed(messages: list[Message], target: Found, position: int) -> int:
    """Return the position of *target* among *messages*, which was *position* by its rank
    before others may have been taken. If it is gone itself, insert it: it was next.
    """
    task_id = id_of(target.message)
    for index, message in enumerate(messages):
        if id_of(message) == task_id:
            return index
    position = max(0, min(position, len(messages)))
    messages.insert(position, target.message)
    return position


def rank_of(client: redis.Redis, part: Part, size: int, arrival: float) -> int:
    """Return the approximate rank in a list of what has arrived at *arrival*, by bisection:
    lists are ordered by arrival, except for requeued messages.
    """
    low, high = 0, size
    while high - low > SEARCH_PAGE // 2:
        middle = (low + high) // 2
        text: Any = client.lindex(part.name, -1 - middle)
        headers = message_of(text or b"").get("headers")
        there = finite(headers.get("rts_arrival")) if isinstance(headers, dict) else None
        if there is None:
            break
        low, high = (middle, high) if there <= arrival else (low, middle)
    return (low + high) // 2
