"""The heartbeat of a worker, written once a second by its companion, and its format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rts.link.replies import replies_as_text
from rts.load.sample import FIGURES
from rts.unfinished.received import decode_marks
from rts.validation import finite, json_object

#: Seconds between heartbeats.
BEAT_S = 1.0
#: Seconds without a heartbeat after which a worker counts as gone: ten beats, so
#: that a busy host is not mistaken for a dead one.
LOST_AFTER_S = 10 * BEAT_S
#: The most slots that are believed: no pool has more, and simulations grow with them.
MAX_SLOTS = 100_000


class Heartbeat(NamedTuple):
    """The last heartbeat of one worker instance.

    In JSON it is an object. Versions mix in one fleet, and anybody may write to Redis: a
    field that is missing or invalid counts as unknown, and other fields are ignored.
    """

    #: One life of the worker's main process: the field of the hash, not in the JSON.
    instance: str
    #: Epoch seconds, by the fleet's clock.
    seen_at: float
    #: Node name (``celery@host``); if missing, the one in the instance.
    worker: str
    #: The known ones of :data:`~rts.load.sample.FIGURES`, at least 0, and whatever else the
    #: sample holds.
    load: Mapping[str, Any]
    host: str | None = None
    pid: int | None = None
    #: Its concurrency, 0 to :data:`MAX_SLOTS`; in JSON ``concurrency``.
    slots: int | None = None
    #: Queues that it consumes, in the order of its command line; ``None``: it may be any.
    queues: tuple[str, ...] | None = None
    #: Tasks that it prefetches at most while no slot is free: at least 0, may be infinite
    #: (in JSON ``null``).
    ahead: float = 0.0
    #: The last tasks that it received, as encoded by :mod:`rts.unfinished.received`.
    received: str | None = None
    #: Whether it takes messages that wait in deadline order; ``None``: not reported.
    ordered: bool | None = None

    def to_json(self) -> str:
        """Return the value that is stored in the hash."""
        values = self._asdict()
        del values["instance"]
        values["concurrency"] = values.pop("slots")
        values["ahead"] = None if math.isinf(self.ahead) else self.ahead
        return json.dumps(values)

    @classmethod
    def from_json(cls, instance: str, text: str) -> Heartbeat | None:
        """Read what :meth:`to_json` of any version wrote; ``None`` if it is no heartbeat, or
        one without its instant. Never raises.
        """
        try:
            values = json_object(text, "a heartbeat")
        except ValueError:
            return None
        seen_at = finite(values.get("seen_at"))
        if seen_at is None:
            return None
        queues, received = values.get("queues"), values.get("received")
        ordered = values.get("ordered")
        return cls(
            instance,
            seen_at,
            _text(values.get("worker")) or instance.rpartition("/")[0] or instance,
            _load(values.get("load")),
            _text(values.get("host")),
            _whole(values.get("pid")),
            _whole(values.get("concurrency"), MAX_SLOTS),
            tuple(filter(None, map(_text, queues))) if isinstance(queues, list) else None,
            _ahead(values.get("ahead", 0.0)),
            received if isinstance(received, str) else None,
            ordered if isinstance(ordered, bool) else None,
        )

    def age_s(self, now: float) -> float:
        """Return the seconds from this heartbeat to *now*, at least 0."""
        return max(0.0, now - self.seen_at)

    def is_silent(self, now: float) -> bool:
        """Return whether the worker counts as gone at *now*."""
        return self.age_s(now) > LOST_AFTER_S

    def takes_from(self, queue: str) -> bool:
        """Return whether the worker consumes *queue*, or may."""
        return self.queues is None or queue in self.queues

    def marks(self) -> frozenset[int] | None:
        """Return the marks of the tasks that it received last; ``None`` if unknown."""
        try:
            return None if self.received is None else frozenset(decode_marks(self.received))
        except ValueError:
            return None


def read_heartbeats(reply: Sequence[bytes]) -> list[Heartbeat]:
    """Return the heartbeats in a reply to HGETALL, including those of workers that are gone."""
    beats = (Heartbeat.from_json(*item) for item in replies_as_text(reply).items())
    return [beat for beat in beats if beat is not None]


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    # A lone surrogate, as in an undecodable host name, would break a scrape or a page.
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
    return {**known, **{name: item for name, item in value.items() if name not in FIGURES}}
