"""Which queues there are: those that an app knows, or workers, or that hold messages."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from rts.fields import plain
from rts.link.link import Link
from rts.link.replies import as_counts
from rts.link.scripts import pack
from rts.scheduling.layout import DEMOTED, HOPEFUL
from rts.scheduling.queues import state_of
from rts.settings import Settings
from rts.unfinished.heartbeat import read_heartbeats


@dataclass(frozen=True)
class FleetQueues:
    """Names of queues that the app's configuration need not contain."""

    #: Queues that workers consume.
    served: frozenset[str] = frozenset()
    #: Routing keys of the open tasks, which need not be names of queues.
    used: frozenset[str] = frozenset()


def fleet_queues(link: Link, settings: Settings) -> FleetQueues:
    """Return the queues of the fleet, by the workers' heartbeats and the open tasks."""
    keys = settings.keys
    beats, tasks = link.call(pack("HGETALL", keys.workers), pack("HGETALL", keys.open_counts))
    return FleetQueues(
        frozenset(queue for beat in read_heartbeats(beats) for queue in beat.queues or ()),
        frozenset(field.partition(" ")[2] for field, n in as_counts(tasks).items() if n),
    )


def known_queues(app: Any, settings: Settings, served: Iterable[str]) -> list[str]:
    """Return the queues in which tasks of *app* may wait: the configured ones, then those of
    ``rts_routes``, then *served*, which workers consume.
    """
    routed = (queue for queues in settings.routes.values() for queue in queues)
    return list(dict.fromkeys([*map(plain, app.amqp.queues), *routed, *served]))


def queue_names(app: Any, settings: Settings, channel: Any, fleet: FleetQueues) -> list[str]:
    """Return the queues that *app* configures or routes to, those that workers consume, and
    others that hold messages of open tasks.
    """
    known = set(known_queues(app, settings, fleet.served))
    return sorted(known | {name for name in fleet.used - known if _is_nonempty(channel, name)})


def all_queue_names(
    app: Any, settings: Settings, channel: Any, fleet: FleetQueues
) -> list[str]:
    """Return :func:`queue_names`, and all other queues that hold messages in order.

    Scans all keys of the broker, results included, which takes seconds with millions of
    them: not for polling.
    """
    found = set(queue_names(app, settings, channel, fleet))
    prefix = channel.global_keyprefix or ""
    suffixes = [f"{channel.sep}{part}" for part in (HOPEFUL, DEMOTED)]
    pattern = f"{glob.escape(prefix)}*{glob.escape(suffixes[0])}*"  # Redis reads [*] alike
    for key in channel.plain.scan_iter(match=pattern, count=1000):
        for suffix in suffixes:
            name = key.decode(errors="replace")
            if name.endswith(suffix):
                found.add(name[len(prefix) : -len(suffix)])
    return sorted(found)


def _is_nonempty(channel: Any, name: str) -> bool:
    """Return whether *name* is a queue in which messages wait."""
    try:
        return state_of(channel, name).waiting > 0
    except redis.ResponseError:  # an unrelated key of that name
        return False


def routing_keys(app: Any, queue: str) -> set[str]:
    """Return the routing keys of the messages in *queue*, as far as *app* knows them."""
    known = app.amqp.queues.get(queue)
    if known is None:
        return {queue}
    # A queue with several bindings has no key of its own.
    bound = [binding.routing_key for binding in known.bindings]
    return {queue, *(bound or [known.routing_key])}
