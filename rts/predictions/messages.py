"""Messages as they wait in Redis: reading a fair sample of many, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis

from rts.scheduling.places import tail_of
from rts.validation import finite

#: Messages that are read of one queue at most, and bytes of them, about; each stands for
#: as many as were passed over.
SAMPLE, BYTES = 500, 4 << 20
#: Messages that are read at first, which tells how large they are.
FIRST = 20
#: Of messages that cannot be read all, so many pages are, evenly spread.
PAGES = 100
#: Share of what is read that is ahead of the message in question, at least.
AHEAD_SHARE = 0.75
#: Messages that one call of the search looks at.
SEARCH_PAGE = 500

Message = dict[str, Any]


class Part(NamedTuple):
    """A key of a queue."""

    name: str
    #: A sorted set of the deadline order; else a plain list, taken from its right end.
    ordered: bool


class Stratum(NamedTuple):
    """Messages of one part by their ranks."""

    #: The number of the part.
    part: int
    ranks: range


class Page(NamedTuple):
    """Messages that are read at once."""

    #: The number of their part.
    part: int
    ranks: range
    #: How many messages each of them stands for, itself included.
    weight: float


class Found(NamedTuple):
    """Where a task waits: its queue, the number of the part, its rank there."""

    queue: str
    part: int
    rank: int
    message: Message


class Held(NamedTuple):
    """A message that a worker has taken and not acknowledged."""

    routing_key: str
    message: Message
    #: When, epoch seconds of the worker's host.
    taken_at: float


def id_of(message: Message) -> str | None:
    """Return the id of a task's message; ``None`` where it is none."""
    headers = message.get("headers")
    task_id = headers.get("id") if isinstance(headers, dict) else None
    return task_id if isinstance(task_id, str) else None


def ask_size(pipe: Any, part: Part) -> None:
    """Ask, in the pipeline *pipe*, for the number of messages."""
    (pipe.zcard if part.ordered else pipe.llen)(part.name)


def ask_range(pipe: Any, part: Part, first: int, last: int) -> None:
    """Read by rank, in the order of being taken; of a list the answer is reversed."""
    if part.ordered:
        pipe.zrange(part.name, first, last)
    else:
        pipe.lrange(part.name, -1 - last, -1 - first)


def affordable(firsts: Iterable[Iterable[bytes | None]], most: int) -> int:
    """Return how many messages of such a size may be read, at most *most*."""
    texts = [text for page in firsts for text in page if text]
    mean = sum(map(len, texts)) / len(texts) if texts else 1.0
    return max(FIRST, min(most, int(BYTES / mean)))


def sampled(ahead: Sequence[Stratum], behind: Sequence[Stratum], most: int) -> list[Page]:
    """Return what to read, at most about *most* messages, evenly spread in each stratum and
    the last one of each.

    What is *ahead* gets three quarters of them, or what is left by *behind*.
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


def message_of(text: bytes) -> Message:
    """Return a message as it waits in either form; empty where it is none."""
    try:
        message = json.loads(text) if text.startswith(b"{") else json.loads(tail_of(text))[0]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def noted_of(notes: Iterable[tuple[bytes | None, float]]) -> list[Held]:
    """Return the tasks of *notes* of what is unacknowledged, each with the instant at which
    it was taken; of what is settled there is no text.
    """
    found: list[Held] = []
    for text, taken_at in notes:
        try:
            message, _, routing_key = json.loads(text or b"")
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(message, dict):
            found.append(Held(str(routing_key), message, taken_at))
    return found


def placed(messages: list[Message], target: Found, position: int) -> int:
    """Return the position of *target* among *messages*; by its rank it was *position*,
    but some may have been taken since. If it was itself, it is as good as next.
    """
    task_id = id_of(target.message)
    for index, message in enumerate(messages):
        if id_of(message) == task_id:
            return index
    position = max(0, min(position, len(messages)))
    messages.insert(position, target.message)
    return position


def rank_of(client: redis.Redis, part: Part, size: int, arrival: float) -> int:
    """Return about where a list holds what has arrived at *arrival*: it is in that order,
    but for what was put back.
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


def sizes_of(client: redis.Redis, parts: Sequence[Part]) -> list[int]:
    """Return how many messages each of *parts* has."""
    with client.pipeline(transaction=False) as pipe:
        for part in parts:
            ask_size(pipe, part)
        return list(pipe.execute())
