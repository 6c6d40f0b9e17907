"""The lengths of the broker's queues, for the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rts.errors import StoreUnavailable
from rts.link.link import Link
from rts.scheduling.discovery import FleetQueues, fleet_queues, queue_names
from rts.scheduling.queues import hopeless_in, ordered_channel, state_of
from rts.settings import Settings
from rts.views.queue_state import WaitingQueue

#: Seconds for connecting to Redis, and for a reply: short, since the broker has to reply within
#: the rest of the scrape's timeout.
CONNECT_TIMEOUT_S, TIMEOUT_S = 0.25, 0.5
#: Queues that are remembered, at most, besides those that workers consume now.
MAX_REMEMBERED = 1000


def queue_readings(app: Any, settings: Settings) -> Callable[[], Sequence[WaitingQueue]]:
    """Return a function that reads the queues of *app*'s broker; none if it is not Redis.

    The function remembers queues that workers have consumed, since the most messages wait
    in those that no worker consumes any more. It raises
    :class:`rts.errors.StoreUnavailable` if the broker is unavailable.
    """
    link = Link.with_timeouts(settings, CONNECT_TIMEOUT_S, TIMEOUT_S)
    remembered: dict[str, None] = {}
    fleet = FleetQueues()

    def read() -> Sequence[WaitingQueue]:
        nonlocal fleet
        with ordered_channel(app, settings) as channel:
            if channel is None:
                return ()
            try:
                fleet = fleet_queues(link, settings)
            except StoreUnavailable:
                pass  # rts_up is 0
            remembered.update(dict.fromkeys(sorted(fleet.served)))
            while len(remembered) > MAX_REMEMBERED:
                del remembered[next(iter(remembered))]
            known = replace(fleet, served=fleet.served.union(remembered))
            found = queue_names(app, settings, channel, known)
            return [_waiting_queue(channel, name) for name in found]

    return read


def _waiting_queue(channel: Any, name: str) -> WaitingQueue:
    state = state_of(channel, name)
    return state, state.demoted + (hopeless_in(channel, name) if state.ordered else 0)
