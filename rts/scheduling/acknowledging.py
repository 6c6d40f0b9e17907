"""Acknowledgements: what is taken counts against the slots, and goes back where it stood."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual

from rts.scheduling.layout import BELL
from rts.scheduling.places import NEVER
from rts.scheduling.scripts import BACK

#: Messages that are put back between two looks at what is left, and the rank, at most, of
#: the first of them: workers that are at it at the same time share what there is.
AT_ONCE, SPREAD = 100, 1000


class _SlotGate:
    """Acknowledgements that let nothing be taken past the worker's free slots."""

    channel: Any

    def can_consume(self) -> bool:
        """Return whether a message may be taken."""
        slots = self.channel.slots
        return (slots is None or slots.free()) and bool(super().can_consume())  # type: ignore[misc]  # kombu's


class QoS(_SlotGate, stock.QoS):  # type: ignore[misc]  # kombu has no type information
    """Acknowledgements; a claim has noted its message already."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message that is delivered."""
        if delivery_tag == self.channel.noted:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def _remove_from_indices(self, delivery_tag: str, pipe: Any = None) -> Any:
        """Return the commands that forget what is done with, to be executed.

        Not as kombu's transaction, which Redis refuses where its memory is used up:
        a queue is never shorter again if its workers cannot acknowledge. What is left
        of half of it means nothing to those who put messages back.
        """
        if pipe is not None:
            return super()._remove_from_indices(delivery_tag, pipe)
        unacked, index = self.channel._full([self.unacked_key, self.unacked_index_key])
        pipe = self.channel.plain.pipeline(transaction=False)
        return pipe.hdel(unacked, delivery_tag).zrem(index, delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """Put back what was claimed too long ago (``visibility_timeout``).

        Without kombu's lock among workers, which one that dies with it would keep
        for minutes: each message goes back once, whoever else is at it.
        """
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        latest, left = time.time() - self.visibility_timeout, num or math.inf
        while left > 0 and (tags := self._claimed(latest, min(left, AT_ONCE))):
            for tag in tags:
                self._give_back(tag, latest)
            left -= len(tags)

    def _claimed(self, latest: float, count: float) -> list[Any]:
        """Return *count* tags at most of what was claimed at *latest* at the latest."""
        (index,) = self.channel._full([self.unacked_index_key])
        for first in (random.randrange(SPREAD), 0):
            found: list[Any] = self.channel.plain.zrangebyscore(index, 0, latest, first, count)
            if found:
                break
        return found

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back where it stood."""
        self._give_back(tag, NEVER, leftmost)

    def _give_back(self, tag: Any, latest: float, leftmost: bool = False) -> None:
        """Put a message back that was claimed at *latest* at the latest.

        One step, as each claim is. kombu's way, a transaction that any other claim
        or acknowledgement breaks off, does not get through where there are many.
        """
        channel = self.channel
        keys: list[str] = channel._full([self.unacked_key, self.unacked_index_key])
        noted, places = channel.plain.hget(keys[0], tag), []
        try:
            if noted is not None:
                payload, exchange, routing_key = stock.loads(noted.decode())
                _mark_redelivered(payload)
                for queue in channel._lookup(exchange, routing_key):
                    key, *place = channel._place_back(queue, payload, leftmost)
                    keys += [key, *channel._names(queue, BELL)]
                    places += place
        except channel.connection_errors:
            raise  # it stays where it is
        except Exception:  # noqa: BLE001  as kombu does
            stock.crit("Could not restore message: %r", noted, exc_info=True)
        BACK.run(channel.plain, keys, [tag, noted or "", latest, *places])


def _mark_redelivered(payload: dict[str, Any]) -> None:
    """Say in a raw message that it was delivered before, as kombu does."""
    try:
        payload["headers"]["redelivered"] = True
        payload["properties"]["delivery_info"]["redelivered"] = True
    except (KeyError, TypeError):
        pass


class UnnotedQoS(_SlotGate, virtual.QoS):  # type: ignore[misc]  # kombu has no type information
    """Where acknowledgements are not emulated (``ack_emulation`` off)."""
