"""Messages in Redis, and the tasks in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rts.fields import brief
from rts.headers import instant
from rts.predictions.survey import Taken
from rts.predictions.work import Work
from rts.rule import Rule
from rts.scheduling.encoding import NEVER, Message, headers_of, message_of, place_of, tau_of
from rts.scheduling.layout import unacked_keys
from rts.scheduling.scripts import read_messages
from rts.settings import Settings
from rts.tasktypes import UNTYPED

#: Least seconds that a message of unknown age is assumed to have waited.
AGE_S = 1.0

#: Returns the tau in seconds for a task type and name.
TauOf = Callable[[str, str], float]


class Held(NamedTuple):
    """An unacknowledged message, as it was read."""

    routing_key: str
    message: Message
    #: Epoch seconds by the clock of the worker's host.
    taken_at: float


def read(
    channel: Any,
    ranges: Sequence[tuple[str, int, int]] = (),
    taken: Sequence[Taken] = (),
) -> tuple[list[list[Message]], list[Held]]:
    """Return the messages of *ranges* (see :func:`~rts.scheduling.scripts.read_messages`), and
    those *taken* that are still unacknowledged.
    """
    unacked, _ = unacked_keys(channel)
    texts, entries = read_messages(channel.plain, ranges, unacked, [each.tag for each in taken])
    held = held_of(zip(entries, (each.at for each in taken), strict=True))
    return [[message_of(text) for text in each] for each in texts], held


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


def id_of(message: Message) -> str | None:
    """Return the task id in a message, as records hold it; ``None`` if it is not a task."""
    task_id = headers_of(message).get("id")
    return brief(task_id) if isinstance(task_id, str) else None


class WorkReader:
    """Reads the tasks in messages, as far as workers believe what these say."""

    def __init__(self, settings: Settings, tau_of: TauOf) -> None:
        self._types = settings.task_types
        self._rule = Rule.of(settings)
        self._tau_of = tau_of

    def work(self, message: Message, now: float, number: int = 0, queue: str = "*") -> Work:
        """Return the task of a message in *queue*, which has this *number*."""
        headers = headers_of(message)
        task_type = headers.get("task_type")
        if not isinstance(task_type, str) or task_type not in self._types:
            task_type = UNTYPED
        name = str(headers.get("task"))
        place = place_of(message, self._rule.horizon(queue), 0.0)
        arrival, tau = place.arrival, tau_of(headers)
        if tau is None:
            # From a producer without rts, or one whose plan workers refuse: when it arrived is
            # unknown.
            tau, arrival = self._tau_of(UNTYPED, name), min(arrival, now - AGE_S)
        return Work(
            task_type,
            arrival,
            tau,
            deadline=place.score,
            ready=instant(headers.get("eta")) or 0.0,
            name=name,
            queue=number,
            due=place.latest < NEVER,
        )
