"""A message's position in the deadline order, and its encoding in Redis.

A queue in deadline order is two sorted sets: hopeful messages scored by deadline,
demoted ones by arrival. Both have the same member, which holds all that a claim needs
(written here with spaces between the fields)::

    ARRIVAL LATEST TAGLENGTH TAG [payload,"","queue"]

``ARRIVAL`` is 16 hexadecimal digits of microseconds, so that of two equal deadlines the
earlier arrival comes first; ``LATEST`` is the latest hopeful start in epoch seconds, 14
characters; ``TAGLENGTH`` is four hexadecimal digits. What follows the tag is what kombu's
Redis transport stores for an unacknowledged message that was published to this queue by
its name, so kombu's workers and tools can read it. The message's own exchange is not in it:
requeued by that, it could go to other queues besides, or to none if the worker that requeues
it has not declared the exchange.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from json import dumps, loads
from typing import Any, NamedTuple

from rts.deadlines import MAX_INSTANT, MAX_TAU, hopeful_until
from rts.validation import finite

#: Top-level key of a raw message without a deadline that keeps its arrival.
ARRIVAL = "rts_arrival"

#: The greatest latest start that fits a member, in the year 2286: never hopeless.
NEVER = 9_999_999_999.999

#: Length of the fields before the tag in a member.
HEAD = 34

#: What follows the payload in a member. No entry that kombu itself writes has it: there a
#: space follows each comma.
AFTER_PAYLOAD = b',"",'

#: A raw kombu message.
Message = dict[str, Any]


class Place(NamedTuple):
    """A message's position in the deadline order. Instants are epoch seconds."""

    #: The deadline; ``deadline + 2·tau`` with ``rts_order`` "deadline+work".
    score: float
    #: The latest hopeful start; :data:`NEVER` for a message without a deadline.
    latest: float
    arrival: float

    def behind(self, now: float) -> Place:
        """Return the position as if the message had arrived *now*. It turns hopeless no later.

        >>> Place(120.0, 111.0, 100.0).behind(105.0)
        Place(score=125.0, latest=111.0, arrival=105.0)
        >>> Place(120.0, 111.0, 100.0).behind(95.0)  # such as before its eta
        Place(score=120.0, latest=111.0, arrival=100.0)
        """
        return Place(
            self.score + max(0.0, now - self.arrival), self.latest, max(now, self.arrival)
        )


def is_task(message: Mapping[str, Any]) -> bool:
    """Return whether a raw kombu message is a Celery task (message protocol 2)."""
    headers = message.get("headers")
    return isinstance(headers, Mapping) and bool(headers.get("task"))


def place_of(message: dict[str, Any], horizon_s: float, work: float) -> Place:
    """Return the position of a raw kombu message, the same on every call.

    A message without a valid deadline is ordered as if its deadline were *horizon_s*
    seconds after its arrival, which is stored in the message if it is not there yet.
    *work*: weight of tau in the order.
    """
    headers = message.get("headers")
    if isinstance(headers, Mapping):
        deadline = _instant(headers.get("rts_deadline"))
        arrival = _instant(headers.get("rts_arrival"))
        tau = tau_of(headers)
        if deadline is not None and arrival is not None and tau is not None:
            return Place(deadline + work * tau, hopeful_until(deadline, tau), arrival)
    arrival = _instant(message.get(ARRIVAL))
    if arrival is None:
        arrival = message[ARRIVAL] = time.time()
    return Place(arrival + horizon_s, NEVER, arrival)


def tau_of(headers: Mapping[str, Any]) -> float | None:
    """Return the tau in a message's *headers*, seconds; ``None`` if workers ignore it."""
    tau = finite(headers.get("rts_tau"))
    return tau if tau is not None and 0 < tau < MAX_TAU else None


def member(message: Mapping[str, Any], payload: str, place: Place, queue: str) -> str:
    """Return the sorted set member for *message* in *queue*, whose JSON is *payload*."""
    tag = str(message["properties"]["delivery_tag"])
    latest = min(max(place.latest, 0.0), NEVER)
    head = f"{int(place.arrival * 1e6):016x}{latest:014.3f}{len(tag.encode()):04x}"
    return f'{head}{tag}[{payload},"",{dumps(queue)}]'


def tail_of(text: bytes) -> bytes:
    """Return the JSON list at the end of a member."""
    return text[HEAD + _tag_length(text) :]


def message_of(text: bytes) -> Message:
    """Return the message in a sorted set member or list element; empty if it is invalid."""
    try:
        message = loads(text) if text.startswith(b"{") else loads(tail_of(text))[0]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def headers_of(message: Message) -> dict[str, Any]:
    """Return the headers of a raw message; empty if there are none, or if they are invalid."""
    headers = message.get("headers")
    return headers if isinstance(headers, dict) else {}


def tag_of(text: bytes) -> bytes:
    """Return the delivery tag in a member."""
    return text[HEAD : HEAD + _tag_length(text)]


def payload_of(text: bytes) -> bytes:
    """Return the bytes of the raw message in a member, which need not be valid JSON."""
    return tail_of(text)[1:].rpartition(AFTER_PAYLOAD)[0]


def _tag_length(text: bytes) -> int:
    return int(text[HEAD - 4 : HEAD], 16)


def _instant(value: object) -> float | None:
    number = finite(value)
    return number if number is not None and 0 < number <= MAX_INSTANT else None
