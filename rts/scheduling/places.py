"""A message's place in the deadline order, and the form in which it waits in Redis.

A queue that is in deadline order waits in two sorted sets: the hopeful by deadline,
the demoted by arrival. The member of both is the same text, so that a claim needs
nothing else::

    ARRIVAL LATEST TAGLENGTH TAG [payload,"exchange","routing key"]

``ARRIVAL`` is 16 hexadecimal digits of microseconds (of two equal deadlines the
earlier arrival is first), ``LATEST`` the latest hopeful start in seconds (14 letters),
``TAGLENGTH`` four hexadecimal digits, and what follows the tag is just what kombu's
Redis transport notes of an unacknowledged message: its workers and its tools go on
understanding it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from json import dumps
from typing import Any, NamedTuple

from rts.deadlines import MAX_INSTANT, hopeful_until
from rts.validation import finite

#: What a raw message without a deadline keeps its arrival in, beside its headers.
ARRIVAL = "rts_arrival"

#: The latest start that a member has room for: the year 2286, which is never.
NEVER = 9_999_999_999.999

#: Letters before the tag, in a member.
HEAD = 34

#: What follows the payload behind the tag: two texts, as JSON has them; and the bytes
#: among which they are looked for first.
_ROUTE = re.compile(rb',\s*"(?:[^"\\]|\\.)*",\s*"(?:[^"\\]|\\.)*"\]$')
ROUTE = 4096


class Place(NamedTuple):
    """Where a message stands in the order. Instants are epoch seconds."""

    #: The score: the deadline, or ``deadline + 2·tau`` with ``rts_order`` "deadline+work".
    score: float
    #: Later than this it is hopeless; messages without a deadline never are.
    latest: float
    arrival: float


def is_task(message: Mapping[str, Any]) -> bool:
    """Return whether a raw kombu message is a task (by Celery's protocol 2)."""
    headers = message.get("headers")
    return isinstance(headers, Mapping) and bool(headers.get("task"))


def place_of(message: dict[str, Any], horizon_s: float, work: float) -> Place:
    """Return the place of a raw kombu message; it is the same however often it is asked.

    A message without a (possible) deadline of its own stands where one stands whose
    deadline is *horizon_s* after its arrival, which is noted in it. *work*: weight of
    tau in the order.
    """
    headers = message.get("headers")
    if isinstance(headers, Mapping):
        deadline = _instant(headers.get("rts_deadline"))
        arrival = _instant(headers.get("rts_arrival"))
        tau = finite(headers.get("rts_tau"))
        if deadline is not None and arrival is not None and tau is not None and 0 < tau < 1e9:
            return Place(deadline + work * tau, hopeful_until(deadline, tau), arrival)
    arrival = _instant(message.get(ARRIVAL))
    if arrival is None:
        arrival = message[ARRIVAL] = time.time()
    return Place(arrival + horizon_s, NEVER, arrival)


def member(
    message: Mapping[str, Any], payload: str, place: Place, exchange: str, routing_key: str
) -> str:
    """Return the text under which *message* waits; *payload* is its JSON."""
    tag = str(message["properties"]["delivery_tag"])
    latest = min(max(place.latest, 0.0), NEVER)
    noted = f"[{payload},{dumps(exchange)},{dumps(routing_key)}]"
    head = f"{int(place.arrival * 1e6):016x}{latest:014.3f}{len(tag.encode()):04x}"
    return f"{head}{tag}{noted}"


def tail_of(text: bytes) -> bytes:
    """Return the JSON list behind the head and the tag of a member."""
    return text[HEAD + _tag_length(text) :]


def tag_of(text: bytes) -> bytes:
    """Return the tag of a member."""
    return text[HEAD : HEAD + _tag_length(text)]


def payload_of(text: bytes) -> bytes:
    """Return the raw message in a member, byte by byte, whether it can be read or not."""
    tail = tail_of(text)
    route = _ROUTE.search(tail, max(0, len(tail) - ROUTE)) or _ROUTE.search(tail)
    return tail[1 : route.start() if route else None]


def _tag_length(text: bytes) -> int:
    return int(text[HEAD - 4 : HEAD], 16)


def _instant(value: object) -> float | None:
    number = finite(value)
    return number if number is not None and 0 < number <= MAX_INSTANT else None
