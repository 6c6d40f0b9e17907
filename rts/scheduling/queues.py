"""Looking at the queues of Redis in both forms, and taking them back to plain lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from kombu.exceptions import OperationalError
from kombu.utils.json import loads

from rts.errors import BrokerUnavailable, StoreUnavailable
from rts.ledger.heartbeat import read_heartbeats
from rts.link.link import Link
from rts.link.scripts import pack
from rts.scheduling.channel import DeadlineOrder
from rts.scheduling.layout import DEMOTED, HOPEFUL
from rts.scheduling.places import payload_of, tail_of
from rts.scheduling.rule import OPTION, Rule
from rts.scheduling.scripts import MOVE, ScriptByHash
from rts.scheduling.switch import stand_in
from rts.settings import Settings
from rts.urls import shown_url
from rts.validation import finite
from rts.views.vitals import counts

#: Seconds for the broker to take a connection and to answer.
CONNECT_TIMEOUT_S, TIMEOUT_S = 2.0, 5.0
#: Messages that are moved between two looks.
BATCH = 500
#: Messages that are asked whether they are hopeless: so many that are first in the order,
#: where the hopeless gather, and so many of all others. Redis is held for some milliseconds.
COUNTED, SAMPLED = 500, 500

HOPELESS = ScriptByHash("hopeless")


@dataclass(frozen=True)
class QueueState:
    """What waits in one queue, in messages."""

    name: str
    #: In deadline order, not known to be hopeless.
    ordered: int
    #: Hopeless, behind the others.
    demoted: int
    #: On kombu's plain lists, to be adopted by the next worker in deadline order.
    plain: int
    #: Epoch seconds; of the message that is first in the order.
    next_deadline: float | None

    @property
    def waiting(self) -> int:
        """All messages that wait."""
        return self.ordered + self.demoted + self.plain


@dataclass(frozen=True)
class WaitingTask:
    """One message that waits. Instants in epoch seconds; ``None`` where it has no plan."""

    #: ``ordered``, ``demoted`` or ``plain``.
    place: str
    task_id: str
    name: str
    task_type: str | None
    tau: float | None
    arrival: float | None
    deadline: float | None


@dataclass(frozen=True)
class FleetQueues:
    """Names of queues that an app need not know."""

    #: From which workers take.
    served: frozenset[str] = frozenset()
    #: To which tasks were sent that have not ended: routing keys, some of no queue.
    used: frozenset[str] = frozenset()


@contextmanager
def queues_of(
    app: Any, settings: Settings, timeout_s: float | None = None
) -> Iterator[DeadlineOrder | None]:
    """Give a channel that knows both forms; ``None`` where the broker is not Redis.

    *timeout_s*: for each of its answers, instead of ``TIMEOUT_S``. A broker that hangs is
    given up after two of them.

    Raises:
        StoreUnavailable: the broker is away.
    """
    stand_in()
    options: dict[str, Any] = {OPTION: Rule.of(settings).as_option()}
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    options.update(
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S), socket_timeout=timeout_s
    )
    with app.connection_for_read(transport_options=options) as connection:
        if connection.transport.driver_type != "redis":
            yield None
            return
        try:
            connection.ensure_connection(max_retries=1, interval_start=0)
            yield connection.default_channel
        except (OperationalError, *connection.connection_errors) as exc:
            raise BrokerUnavailable(
                f"the broker {shown_url(connection.as_uri())} is not usable "
                f"({type(exc).__name__})"
            ) from exc


def names(app: Any, settings: Settings, channel: Any, fleet: FleetQueues) -> list[str]:
    """Return the queues of *app*, those of its routes, those from which workers take (which
    know queues that no configuration names), and others in which open tasks wait.
    """
    known = set(known_queues(app, settings, fleet.served))
    return sorted(known | {name for name in fleet.used - known if _holds_any(channel, name)})


def all_names(app: Any, settings: Settings, channel: Any, fleet: FleetQueues) -> list[str]:
    """Return these, and all others that hold messages in order.

    For that each key of the broker is looked at, its results as well: with millions of them
    it takes seconds. So it is not for what is asked again and again.
    """
    found = set(names(app, settings, channel, fleet))
    beginning = channel.global_keyprefix
    endings = [f"{channel.sep}{part}" for part in (HOPEFUL, DEMOTED)]
    for key in channel.plain.scan_iter(match=f"{beginning}*{endings[0]}*", count=1000):
        for ending in endings:
            name = key.decode(errors="replace")
            if name.endswith(ending):
                found.add(name[len(beginning) : -len(ending)])
    return sorted(found)


def _holds_any(channel: Any, name: str) -> bool:
    """Return whether messages wait in a queue of this name, if it is one."""
    try:
        return state_of(channel, name).waiting > 0
    except redis.ResponseError:  # some other key has that name
        return False


def fleet_queues(link: Link, settings: Settings) -> FleetQueues:
    """Return the queues that the fleet tells of.

    Raises:
        StoreUnavailable: Redis is away.
    """
    keys = settings.keys
    beats, tasks = link.call(pack("HGETALL", keys.workers), pack("HGETALL", keys.open_counts))
    return FleetQueues(
        frozenset(queue for beat in read_heartbeats(beats) for queue in beat.queues or ()),
        frozenset(field.partition(" ")[2] for field, n in counts(tasks).items() if n),
    )


def state_of(channel: Any, name: str) -> QueueState:
    """Return what waits in a queue."""
    hopeful, demoted = channel._names(name, HOPEFUL, DEMOTED)
    lists = channel._full(channel._lists(name))
    with channel.plain.pipeline() as pipe:
        pipe.zcard(hopeful)
        pipe.zcard(demoted)
        pipe.zrange(hopeful, 0, 0)
        for plain in lists:
            pipe.llen(plain)
        ordered, late, first, *lengths = pipe.execute()
    deadline = _waiting("ordered", tail_of(first[0])).deadline if first else None
    return QueueState(name, ordered, late, sum(lengths), deadline)


def hopeless_in(channel: Any, name: str) -> int:
    """Return how many messages that wait in order are hopeless now, by the clock of the
    broker's server, as claims decide it: by what each message says, not by its place in the
    order. What waits past COUNTED + SAMPLED messages is estimated.
    """
    return int(HOPELESS.run(channel.plain, channel._names(name, HOPEFUL), [COUNTED, SAMPLED]))


def first_in_line(channel: Any, name: str, limit: int) -> list[WaitingTask]:
    """Return up to *limit* messages, in the order in which they are to be taken."""
    found: list[WaitingTask] = []
    for place, part in (("ordered", HOPEFUL), ("demoted", DEMOTED)):
        (key,) = channel._names(name, part)
        if len(found) < limit:
            members = channel.plain.zrange(key, 0, limit - len(found) - 1)
            found += [_waiting(place, tail_of(text)) for text in members]
    for key in channel._full(channel._lists(name)):
        if len(found) < limit:  # a list is taken from its right end
            texts = channel.plain.lrange(key, len(found) - limit, -1)
            found += [_waiting("plain", text) for text in reversed(texts)]
    return found


def _waiting(place: str, text: bytes) -> WaitingTask:
    try:
        message = loads(text.decode())
        headers = (message if place == "plain" else message[0]).get("headers")
    except (ValueError, LookupError, AttributeError, TypeError):
        headers = None  # a stranger's message
    if not isinstance(headers, dict):
        headers = {}
    task_type = headers.get("task_type")
    return WaitingTask(
        place,
        str(headers.get("id") or ""),
        str(headers.get("task") or ""),
        task_type if isinstance(task_type, str) else None,
        *(finite(headers.get(f"rts_{name}")) for name in ("tau", "arrival", "deadline")),
    )


def to_plain(channel: Any, name: str) -> int:
    """Move what waits in order to the plain list, where any worker takes it; the
    earliest deadline first, then the hopeless. Returns the number of messages.

    As many as wait now, and no more: workers in order may still be there, which put
    them in order again.
    """
    moved = 0
    (target,) = channel._full([name])
    for source in channel._names(name, HOPEFUL, DEMOTED):
        left = channel.plain.zcard(source)
        while left > 0 and (members := channel.plain.zrange(source, 0, min(BATCH, left) - 1)):
            left -= len(members)
            for text in members:
                moved += MOVE.run(channel.plain, [source, target], [text, payload_of(text)])
    return moved


def known_queues(app: Any, settings: Settings, served: Iterable[str] = ()) -> list[str]:
    """Return the queues in which tasks of *app* may wait: its own ones, then those of its
    routes, then *served*, from which workers take.
    """
    routed = (queue for queues in settings.routes.values() for queue in queues)
    return list(dict.fromkeys([*app.amqp.queues, *routed, *served]))


def left_in_order(
    app: Any, settings: Settings, served: Iterable[str], timeout_s: float
) -> dict[str, int]:
    """Return how many messages wait in deadline order, by queue, where the app does not
    have that order, so that its workers do not see them. *served*: queues that its
    workers take from, beside those that the app knows. *timeout_s*: for each answer of the
    broker; of one that hangs, nothing is told.
    """
    if settings.scheduler == "edf":
        return {}
    try:
        with queues_of(app, settings, timeout_s) as channel:
            if channel is None:
                return {}
            known = known_queues(app, settings, served)
            states = [state_of(channel, name) for name in known]
    except StoreUnavailable:
        return {}
    waiting = {state.name: state.ordered + state.demoted for state in states}
    return {name: count for name, count in waiting.items() if count}
