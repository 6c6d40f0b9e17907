"""What a worker tells of itself once a second, through its companion: the one record of
it, for all that write and read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rts.ledger.received import decode_marks
from rts.link.link import replies_as_text
from rts.validation import finite

#: Seconds between heartbeats.
BEAT_S = 1.0
#: Seconds without a heartbeat after which a worker counts as gone: ten beats, so
#: that a busy host is not mistaken for a dead one.
LOST_AFTER_S = 10 * BEAT_S
#: Slots that are believed; no pool has more, and what is simulated grows with them.
MAX_SLOTS = 100_000
#: The figures of a load: fractions of what the worker may use.
FIGURES = ("load", "cpu", "memory", "gpu")


class Heartbeat(NamedTuple):
    """The last beat of one life of a worker.

    In JSON it is an object. Versions meet in one fleet, and anybody may write to Redis: a
    field that another one does not tell, or not in a way that is known here, has the value
    of one that is not told, and what it tells besides is passed over.
    """

    #: One life of the worker's main process: the field of the hash, not in the JSON.
    instance: str
    #: Epoch seconds, by the fleet's clock.
    seen_at: float
    #: Node name (``celery@host``); where it is not told, that in the instance.
    worker: str
    #: :data:`FIGURES` at least 0, those that are known; and what else there is of a sample.
    load: Mapping[str, Any]
    host: str | None = None
    pid: int | None = None
    #: Tasks that it may run at a time, 0 to :data:`MAX_SLOTS`; in JSON ``concurrency``.
    slots: int | None = None
    #: Those that it takes from, in the order of its command line; ``None``: it may be any.
    queues: tuple[str, ...] | None = None
    #: Tasks that it takes when no slot is free, at most: at least 0, may be infinite (in
    #: JSON ``null``).
    ahead: float = 0.0
    #: The last tasks that it has received, as :mod:`rts.ledger.received` tells them.
    received: str | None = None

    def to_json(self) -> str:
        """Return what is written into the hash."""
        told = self._asdict()
        del told["instance"]
        told["concurrency"] = told.pop("slots")
        told["ahead"] = None if math.isinf(self.ahead) else self.ahead
        return json.dumps(told)

    @classmethod
    def from_json(cls, instance: str, text: str) -> Heartbeat | None:
        """Read what :meth:`to_json` wrote, of any version; ``None``: it is no heartbeat, or
        does not say of when. Never raises.
        """
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return None
        seen_at = finite(told.get("seen_at")) if isinstance(told, dict) else None
        if seen_at is None:
            return None
        queues, received = told.get("queues"), told.get("received")
        return cls(
            instance,
            seen_at,
            _text(told.get("worker")) or instance.rpartition("/")[0] or instance,
            _load(told.get("load")),
            _text(told.get("host")),
            _whole(told.get("pid")),
            _whole(told.get("concurrency"), MAX_SLOTS),
            tuple(filter(None, map(_text, queues))) if isinstance(queues, list) else None,
            _ahead(told.get("ahead", 0.0)),
            received if isinstance(received, str) else None,
        )

    def age_s(self, now: float) -> float:
        """Return for how long it has been silent at *now*: seconds, at least 0."""
        return max(0.0, now - self.seen_at)

    def is_silent(self, now: float) -> bool:
        """Return whether it counts as gone at *now*."""
        return self.age_s(now) > LOST_AFTER_S

    def takes_from(self, queue: str) -> bool:
        """Return whether it takes tasks from *queue*, or may."""
        return self.queues is None or queue in self.queues

    def marks(self) -> frozenset[int] | None:
        """Return the marks of the tasks that it has received last; ``None``: not told."""
        try:
            return None if self.received is None else frozenset(decode_marks(self.received))
        except ValueError:
            return None


def read_heartbeats(reply: Sequence[bytes]) -> list[Heartbeat]:
    """Return the heartbeats in an answer to HGETALL, also of workers that are gone."""
    beats = (Heartbeat.from_json(*item) for item in replies_as_text(reply).items())
    return [beat for beat in beats if beat is not None]


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    # Half of a surrogate pair, as of a host's odd name, would end a scrape or a page.
    return value.encode("utf-8", "replace").decode()


def _whole(value: object, most: float = math.inf) -> int | None:
    number = finite(value)
    return None if number is None or not 0 <= number <= most else int(number)


def _ahead(value: object) -> float:
    number = math.inf if value is None else finite(value)
    return 0.0 if number is None else max(0.0, number)


def _load(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    figures = {name: finite(value.get(name)) for name in FIGURES}
    known = {name: n for name, n in figures.items() if n is not None and n >= 0}
    return {**known, **{name: told for name, told in value.items() if name not in FIGURES}}
