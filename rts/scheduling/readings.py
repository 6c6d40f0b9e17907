"""What waits in the broker, for the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rts.scheduling.queues import hopeless_in, names, queues_of, state_of
from rts.settings import Settings
from rts.views.readings import QueueReading


def queue_readings(app: Any, settings: Settings) -> Callable[[], Sequence[QueueReading]]:
    """Return what asks the broker of *app* for its queues; of none where it is not Redis.

    What it returns raises :class:`rts.errors.StoreUnavailable`: the broker is away.
    """

    def ask() -> Sequence[QueueReading]:
        with queues_of(app, settings) as channel:
            if channel is None:
                return ()
            return [_reading(channel, name) for name in names(app, channel)]

    return ask


def _reading(channel: Any, name: str) -> QueueReading:
    state = state_of(channel, name)
    hopeless = state.demoted + (hopeless_in(channel, name) if state.ordered else 0)
    return QueueReading(name, state.ordered, state.demoted, state.plain, hopeless)
