"""Acknowledgements (kombu's QoS): limited by the free slots, and requeued in place."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual

from rts.scheduling.encoding import AFTER_PAYLOAD, NEVER
from rts.scheduling.layout import BELL, BELL_TTL_MS, keys_of, unacked_keys
from rts.scheduling.scripts import REQUEUE

#: Messages restored between two reads of the index. Workers start at a random rank below
#: SPREAD, so that those which restore at the same time share the messages.
BATCH, SPREAD = 100, 1000


class _SlotLimit:
    """Mixin: nothing is consumed beyond the worker's free slots, nor while it rests."""

    channel: Any

    def can_consume(self) -> bool:
        """Return whether another message may be taken."""
        channel = self.channel
        if channel.slots is not None and (not channel.slots.free() or channel.rests()):
            return False
        return bool(super().can_consume())  # type: ignore[misc]  # kombu's


class QoS(_SlotLimit, stock.QoS):  # type: ignore[misc]  # kombu has no type information
    """kombu's, for messages that their claim has already marked as unacknowledged."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Track a delivered message."""
        if delivery_tag == self.channel.connection.claimed_tag:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def _remove_from_indices(self, delivery_tag: str) -> Any:
        """Return a pipeline, not yet executed, that forgets an unacknowledged message.

        Not a transaction like kombu's: Redis refuses those when it is out of memory, and
        a queue whose workers cannot acknowledge never shrinks. If only half of it is
        applied, restoring ignores the remainder.
        """
        unacked, index = unacked_keys(self.channel)
        pipe = self.channel.plain.pipeline(transaction=False)
        return pipe.hdel(unacked, delivery_tag).zrem(index, delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """Requeue messages that were claimed longer than ``visibility_timeout`` ago.

        Takes no lock across workers, unlike kombu, whose lock outlives a worker that dies
        holding it by minutes: restoring a message twice has no effect.
        """
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        latest, left = time.time() - self.visibility_timeout, num or math.inf
        while left > 0 and (tags := self._claimed_before(latest, min(left, BATCH))):
            for tag in tags:
                self._requeue(tag, latest)
            left -= len(tags)

    def _claimed_before(self, latest: float, count: float) -> list[Any]:
        """Return the tags of at most *count* messages claimed at or before *latest*."""
        _, index = unacked_keys(self.channel)
        for first in (random.randrange(SPREAD), 0):
            found: list[Any] = self.channel.plain.zrangebyscore(index, 0, latest, first, count)
            if found:
                break
        return found

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Requeue a message at its old position; *leftmost*: since it is rejected."""
        self._requeue(tag, NEVER, leftmost)

    def _requeue(self, tag: Any, latest: float, leftmost: bool = False) -> None:
        """Requeue a message, unless it was claimed after *latest*.

        A message that a worker rejects for the second time goes behind the others. Else a task
        that always kills its process would be taken again and again, and the others never.

        One script, like a claim. kombu uses an optimistic transaction, which any other
        claim or acknowledgement aborts, so it hardly ever succeeds on a busy server.
        """
        channel = self.channel
        keys = unacked_keys(channel)
        entry, places = channel.plain.hget(keys[0], tag), []
        try:
            if entry is not None:
                payload, exchange, routing_key = stock.loads(entry.decode())
                ordered = AFTER_PAYLOAD in entry
                again = _mark_redelivered(payload)
                behind = again and leftmost and channel.slots is not None
                for queue in channel._lookup(exchange, routing_key):
                    key, *place = channel._requeue_place(
                        queue, payload, ordered, leftmost, behind
                    )
                    keys += [key, *keys_of(channel, queue, BELL)]
                    places += place
        except channel.connection_errors:
            raise  # the message stays unacknowledged
        except Exception:  # noqa: BLE001  as kombu does
            stock.crit("Could not restore message: %r", entry, exc_info=True)
        REQUEUE.run(channel.plain, keys, [tag, entry or "", latest, BELL_TTL_MS, *places])


def _mark_redelivered(payload: dict[str, Any]) -> bool:
    """Mark a raw message as redelivered, as kombu does; return whether it was already."""
    again = False
    try:
        again = bool(payload["headers"].get("redelivered"))
        payload["headers"]["redelivered"] = True
        payload["properties"]["delivery_info"]["redelivered"] = True
    except (KeyError, TypeError, AttributeError):
        pass  # not as kombu writes it
    return again


class UnemulatedQoS(_SlotLimit, virtual.QoS):  # type: ignore[misc]  # kombu has no type information
    """For channels with ``ack_emulation`` off: nothing is tracked in Redis."""
