"""kombu's Redis transport, in deadline order where the option ``rts`` is set.

The tasks of a queue wait in sorted sets; each is taken by one script, which also
notes it as unacknowledged. An idle consumer waits on the queues' bells: lists of one
element, pushed by whoever puts, or leaves, work. Event loop, poller, exchanges,
acknowledgements, visibility timeout and fan-out stay kombu's: where it sends
``BRPOP`` for messages a claim is sent, and ``BRPOP`` for the bells only when there
was nothing to claim.

Within a queue the order takes the place of message priorities. Connections without
the option are kombu's own in everything.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock

from rts.scheduling.channel import Channel, SentinelChannel
from rts.scheduling.poller import Poller
from rts.scheduling.rule import OPTION


class Transport(stock.Transport):  # type: ignore[misc]  # kombu has no type information
    """kombu's, whose channels are in deadline order where the option says so."""

    ordered: type = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if OPTION in (client.transport_options or {}):
            self.Channel = self.ordered
            self.cycle = Poller()


class SentinelTransport(Transport, stock.SentinelTransport):  # type: ignore[misc]  # kombu has no type information
    """The same for Redis found by Sentinel."""

    ordered = SentinelChannel
