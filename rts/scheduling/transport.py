"""kombu's Redis transport, in deadline order if the option ``rts`` is set.

The tasks of a queue wait in sorted sets. One script takes a task and marks it as
unacknowledged. An idle consumer blocks on the queues' bells: lists of at most one
element, pushed by whoever publishes a task or leaves one waiting. Event loop, poller,
exchanges, visibility timeout and fan-out are kombu's; where it sends ``BRPOP`` for
messages a claim is sent, and ``BRPOP`` for the bells only if there was nothing to claim.

Within a queue the deadline order replaces message priorities. Connections without the
option behave exactly like kombu's.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock

from rts.rule import OPTION
from rts.scheduling.channel import Channel, SentinelChannel
from rts.scheduling.poller import Poller

#: The methods of kombu's Redis transport that the deadline order replaces. If a kombu calls
#: them by other names, its own versions would run instead and see the plain lists only.
_REPLACED: dict[type, tuple[str, ...]] = {
    stock.Channel: (
        *("_put", "_get", "_size", "_purge", "_has_queue", "_delete"),
        *("_brpop_start", "_brpop_read", "basic_get", "basic_consume"),
    ),
    stock.QoS: (
        *("can_consume", "append", "_remove_from_indices"),
        *("restore_visible", "restore_by_tag"),
    ),
    stock.MultiChannelPoller: ("get", "on_readable", "maybe_restore_messages"),
}


def missing_methods() -> list[str]:
    """Return those of the replaced methods that the installed kombu does not have."""
    return [
        f"{base.__name__}.{name}"
        for base, names in _REPLACED.items()
        for name in names
        if not hasattr(base, name)
    ]


class Transport(stock.Transport):  # type: ignore[misc]  # kombu has no type information
    """kombu's transport; with the option its channels are in deadline order."""

    ordered_channel: type = Channel
    #: Tag of the message that is being delivered, if its claim marked it unacknowledged.
    claimed_tag: str | None = None

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if OPTION in client.transport_options:
            self.Channel = self.ordered_channel
            self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop read from the connections."""
        super().register_with_event_loop(connection, loop)
        self.cycle.hub = loop
        # Else a pipe that gets the number of a closed connection would be read in its place.
        self.cycle._unregister_from_poll = loop.remove_reader  # type: ignore[method-assign]  # as kombu >= 5.7


class SentinelTransport(Transport, stock.SentinelTransport):  # type: ignore[misc]  # kombu has no type information
    """The same for a Redis behind Sentinel."""

    ordered_channel = SentinelChannel
