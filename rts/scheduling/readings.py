"""What waits in the broker, for the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.scheduling.queues import (
    FleetQueues,
    fleet_queues,
    hopeless_in,
    names,
    queues_of,
    state_of,
)
from rts.settings import Settings
from rts.views.readings import QueueReading

#: Seconds for Redis to take a connection and to answer, and between attempts. The broker's
#: own answer has to come in the time that is left of a scrape's.
CONNECT_TIMEOUT_S, TIMEOUT_S, BREAKER_S = 0.25, 0.5, 1.0
#: Queues of workers that are remembered.
MOST_SERVED = 1000


def queue_readings(app: Any, settings: Settings) -> Callable[[], Sequence[QueueReading]]:
    """Return what asks the broker of *app* for its queues; of none where it is not Redis.

    It knows the queues of workers from when they were first there, also while none takes
    from them: then most waits in them.

    What it returns raises :class:`rts.errors.StoreUnavailable`: the broker is away.
    """

    link = Link.with_timeouts(settings, CONNECT_TIMEOUT_S, TIMEOUT_S, BREAKER_S)
    served: dict[str, None] = {}
    fleet = FleetQueues()

    def ask() -> Sequence[QueueReading]:
        nonlocal fleet
        with queues_of(app, settings) as channel:
            if channel is None:
                return ()
            try:
                fleet = fleet_queues(link, settings)
            except StoreUnavailable:
                pass  # the metrics say so: rts_up is 0
            served.update(dict.fromkeys(sorted(fleet.served)))
            while len(served) > MOST_SERVED:
                del served[next(iter(served))]
            known = replace(fleet, served=frozenset(served))
            found = names(app, settings, channel, known)
            return [_reading(channel, name) for name in found]

    return ask


def _reading(channel: Any, name: str) -> QueueReading:
    state = state_of(channel, name)
    hopeless = state.demoted + (hopeless_in(channel, name) if state.ordered else 0)
    return QueueReading(name, state.ordered, state.demoted, state.plain, hopeless)
