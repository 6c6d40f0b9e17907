"""Messages as they wait in Redis: reading a fair sample of many, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import redis

from rts.scheduling.places import tail_of
from rts.validation import finite

#: Messages that are read of one queue at most, and bytes of them, about; further
#: ones count as alike.
SAMPLE, BYTES = 500, 4 << 20
#: Messages that are read at first, which tells how large they are.
FIRST = 20
#: Of messages that cannot be read all, so many pages are, evenly spread.
PAGES = 10
#: Messages that one call of the search looks at.
SEARCH_PAGE = 500

Message = dict[str, Any]


class Part(NamedTuple):
    """A key of a queue."""

    name: str
    #: A sorted set of the deadline order; else a plain list, taken from its right end.
    ordered: bool


class Found(NamedTuple):
    """Where a task waits: its queue, the number of the part, its rank there."""

    queue: str
    part: int
    rank: int
    message: Message


def id_of(message: Message) -> object:
    """Return the id of a task's message."""
    headers = message.get("headers")
    return headers.get("id") if isinstance(headers, dict) else None


def ask_size(pipe: Any, part: Part) -> None:
    """Ask, in the pipeline *pipe*, for the number of messages."""
    (pipe.zcard if part.ordered else pipe.llen)(part.name)


def ask_range(pipe: Any, part: Part, first: int, last: int) -> None:
    """Read by rank, in the order of being taken; of a list the answer is reversed."""
    if part.ordered:
        pipe.zrange(part.name, first, last)
    else:
        pipe.lrange(part.name, -1 - last, -1 - first)


def affordable(firsts: Sequence[Sequence[bytes]]) -> int:
    """Return how many messages of such a size may be read."""
    texts = [text for page in firsts for text in page]
    mean = sum(map(len, texts)) / len(texts) if texts else 1.0
    return max(FIRST, min(SAMPLE, int(BYTES / mean)))


def spread(wanted: Sequence[int], most: int) -> list[list[range]]:
    """Return the ranks to read of each part of a queue of so many wanted messages.

    At most about *most*, evenly spread, and the last one wanted of each part.
    """
    share = min(1.0, most / max(1, sum(wanted)))
    found: list[list[range]] = []
    for size in wanted:
        if share == 1.0:
            found.append([range(size)] if size else [])
            continue
        pages = max(1, min(PAGES, size // PAGES))
        each = max(1, int(size * share / pages))
        starts = [size * page // pages for page in range(pages)]
        ranges = [range(start, min(start + each, size - 1)) for start in starts]
        found.append([*(r for r in ranges if r), range(size - 1, size)] if size else [])
    return found


def message_of(text: bytes) -> Message:
    """Return a message as it waits in either form; empty where it is none."""
    try:
        message = json.loads(text) if text.startswith(b"{") else json.loads(tail_of(text))[0]
    except (ValueError, LookupError):
        return {}
    return message if isinstance(message, dict) else {}


def noted_of(noted: Mapping[bytes, bytes], index: Sequence[bytes]) -> list[tuple[str, Message]]:
    """Return what is noted as unacknowledged, the earliest first."""
    ranks = {tag: rank for rank, tag in enumerate(index)}
    found: list[tuple[str, Message]] = []
    for tag in sorted(noted, key=lambda tag: ranks.get(tag, len(ranks))):
        try:
            message, _, routing_key = json.loads(noted[tag])
        except ValueError:
            continue
        if isinstance(message, dict):
            found.append((str(routing_key), message))
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
