"""Inspecting queues on Redis, in deadline order or on plain lists, and moving between both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from kombu.exceptions import OperationalError

from rts.errors import BrokerUnavailable, unusable
from rts.fields import text as storable
from rts.rule import OPTION, Rule
from rts.scheduling.activation import register_transports
from rts.scheduling.channel import DeadlineOrder
from rts.scheduling.encoding import headers_of, message_of, payload_of, tau_of
from rts.scheduling.layout import DEMOTED, HOPEFUL, keys_of, list_keys, message_keys
from rts.scheduling.scripts import BYTES, HOPELESS, MOVE, read_messages
from rts.settings import Settings
from rts.urls import shown_url
from rts.validation import finite
from rts.views.queue_state import QueueState

#: Seconds for connecting to the broker, and for each reply.
CONNECT_TIMEOUT_S, TIMEOUT_S = 2.0, 5.0
#: Messages that are read at a time to be moved, at most.
BATCH = 500
#: How hopeless messages are counted: exactly among the first ones, where they accumulate,
#: and in a sample of the rest. That blocks Redis for a few milliseconds.
COUNTED, SAMPLED = 500, 500


@dataclass(frozen=True)
class WaitingTask:
    """A waiting message. Instants in epoch seconds; ``None`` without (valid) headers of rts."""

    #: ``ordered``, ``demoted`` or ``plain``.
    place: str
    task_id: str
    name: str
    task_type: str | None
    tau: float | None
    arrival: float | None
    deadline: float | None


@contextmanager
def ordered_channel(
    app: Any, settings: Settings, timeout_s: float | None = None
) -> Iterator[DeadlineOrder | None]:
    """Open a channel in deadline order; ``None`` if the broker is not Redis.

    *timeout_s*: for each reply, instead of ``TIMEOUT_S``. A broker that hangs costs twice
    that time.

    Raises:
        StoreUnavailable: the broker is unavailable.
    """
    register_transports()
    options: dict[str, Any] = {OPTION: Rule.of(settings).as_option()}
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    options.update(
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S), socket_timeout=timeout_s
    )
    with app.connection_for_read(transport_options=options) as connection:
        if connection.transport.driver_type != "redis":
            yield None
            return
        with broker_errors(connection):
            connection.ensure_connection(max_retries=1, interval_start=0)
            yield connection.default_channel


@contextmanager
def broker_errors(connection: Any) -> Iterator[None]:
    """Raise :class:`BrokerUnavailable` where the broker of a kombu *connection* fails."""
    try:
        yield
    # Also where it refuses a command: its user may not use the key, or others do.
    except (OperationalError, redis.RedisError, *connection.connection_errors) as exc:
        server = f"the broker {shown_url(connection.as_uri())}"
        raise BrokerUnavailable(unusable(server, exc.__cause__ or exc)) from exc


def state_of(channel: Any, name: str) -> QueueState:
    """Return how many messages wait in a queue, and where."""
    hopeful, demoted, *lists = message_keys(channel, name)
    with channel.plain.pipeline(transaction=False) as pipe:  # see QueueLayout
        pipe.zcard(hopeful)
        pipe.zcard(demoted)
        pipe.zrange(hopeful, 0, 0)
        for plain in lists:
            pipe.llen(plain)
        ordered, late, first, *lengths = pipe.execute()
    deadline = _waiting("ordered", first[0]).deadline if first else None
    return QueueState(name, ordered, late, sum(lengths), deadline)


def hopeless_in(channel: Any, name: str) -> int:
    """Return how many messages that wait in order and are not demoted are hopeless now.

    By the clock of the broker's Redis and each message's latest hopeful start, as in a
    claim. An estimate if more than COUNTED + SAMPLED messages wait, or they are large.
    """
    return int(
        HOPELESS.run(channel.plain, keys_of(channel, name, HOPEFUL), [COUNTED, SAMPLED, BYTES])
    )


def next_waiting(channel: Any, name: str, limit: int) -> list[WaitingTask]:
    """Return the first messages, at most *limit*, in the order in which they will be taken."""
    found: list[WaitingTask] = []
    places = ["ordered", "demoted", *("plain" for _ in channel.priority_steps)]
    for place, key in zip(places, message_keys(channel, name), strict=True):
        if len(found) < limit:
            part = [(key, 0, limit - len(found) - 1)]
            ((texts,), _) = read_messages(channel.plain, part, most_bytes=2**53)
            found += [_waiting(place, text) for text in texts]
    return found


def _waiting(place: str, text: bytes) -> WaitingTask:
    headers = headers_of(message_of(text))
    task_type = headers.get("task_type")
    return WaitingTask(
        place,
        storable(headers.get("id") or ""),
        storable(headers.get("task") or ""),
        storable(task_type) if isinstance(task_type, str) else None,
        tau_of(headers),
        *(finite(headers.get(f"rts_{name}")) for name in ("arrival", "deadline")),
    )


def move_to_lists(channel: Any, name: str) -> int:
    """Move the messages of a queue in deadline order to its plain list, for workers without
    that order: the earliest deadline first, the demoted last. Return their number.

    At most as many as wait now: workers still in deadline order move them back meanwhile.
    """
    moved = 0
    target = list_keys(channel, name)[0]
    for source in keys_of(channel, name, HOPEFUL, DEMOTED):
        left, count = channel.plain.zcard(source), 1
        while left > 0 and (members := channel.plain.zrange(source, 0, min(count, left) - 1)):
            left -= len(members)
            # By their size, no more than BYTES at a time.
            fit = BYTES * len(members) // sum(map(len, members))
            count = max(1, min(BATCH, 8 * count, fit))
            for text in members:
                moved += MOVE.run(channel.plain, [source, target], [text, payload_of(text)])
    return moved
