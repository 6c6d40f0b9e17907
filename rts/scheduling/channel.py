"""A kombu Redis channel whose queues are in deadline order.

Publishing inserts a message at its position. Consuming runs the claim script, which
picks the next message, removes it and marks it as unacknowledged in one step. The poller
sends a claim where kombu sends ``BRPOP``; if nothing could be claimed it blocks in
``BRPOP`` on the queues' bells (see :mod:`rts.scheduling.layout`) before the next claim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from redis.exceptions import NoScriptError

from rts import health
from rts.deadlines import HOPE
from rts.headers import DROPPED
from rts.link.link import MAX_IDLE_S
from rts.scheduling.encoding import is_task, member, payload_of, place_of, tag_of, tail_of
from rts.scheduling.layout import (
    BELL,
    BELL_TTL_MS,
    DEMOTED,
    HOPEFUL,
    MOST_REFUSED,
    REFUSED,
    TURNS,
    QueueLayout,
)
from rts.scheduling.qos import QoS, UnemulatedQoS
from rts.scheduling.rule import OPTION, Rule, SlotGauge
from rts.scheduling.scripts import CLAIM, PUT, RING

#: Messages that one claim examines at most: bounds how long the script blocks Redis.
SCAN_LIMIT = 200
#: Seconds between claims while only demoted tasks wait and this worker may take no more.
CAPPED_POLL_S = 0.02
#: Seconds between claims while clients without the deadline order, who ring no bell, push
#: to the plain lists: their producers, and their workers that reply to remote control.
MIXED_POLL_S = 0.2
#: Seconds after the last message from such a producer for which that polling continues.
MIXED_FOR_S = 600.0
#: The ``expires`` of a dropped task: any time in the past makes Celery revoke it.
DROPPED_EXPIRES = "1970-01-01T00:00:00+00:00"


class DeadlineOrder(QueueLayout):
    """Mixin for kombu's Redis channels: what differs from them.

    *self* is annotated as ``Any`` since kombu's attributes are used throughout.
    """

    QoS = QoS
    from_transport_options = (*stock.Channel.from_transport_options, OPTION)

    #: The transport option: arguments of :class:`Rule`.
    rts: Mapping[str, Any] = {}
    #: Set by a worker's bootstep; ``None`` for other consumers, which have no slots.
    slots: SlotGauge | None = None
    #: TTL in milliseconds of queues that expire (kombu >= 5.7).
    _expires: Mapping[str, int] = {}
    brpop_timeout: float = 1
    #: Whether the poll connection awaits the reply to a claim; else it blocks on a bell.
    _claiming = False
    #: Seconds to block on the bells before the next claim.
    _block_s = 0.0
    #: Only demoted tasks wait and this worker may take no more: bells are of no use.
    _capped = False
    #: Until when to poll for messages from producers without the deadline order.
    _mixed_until = -math.inf
    #: Whether Redis has the script cached, as far as this channel knows.
    _script_cached = False
    #: Since when the poll connection has awaited no reply.
    _idle_since = math.inf

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        #: Queues that are consumed with ``no_ack``.
        self._no_ack_queues: set[str] = set()
        super().__init__(*args, **kwargs)
        self.rule = Rule(**self.rts)
        if not self.ack_emulation:
            self.QoS = UnemulatedQoS

    # Publishing

    def _put(self: Any, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if not is_task(message):
            # Such as a remote control reply, whose reader may not use the deadline order.
            super()._put(queue, message, **kwargs)  # type: ignore[misc]  # kombu's
            if kwargs.get("_publish_batch") is None:
                ttl_ms = min(BELL_TTL_MS, self._expires.get(queue, BELL_TTL_MS))
                RING.run(self.plain, self._keys(queue, BELL), [ttl_ms])
            return
        properties = message["properties"]
        if properties["delivery_info"].get("exchange"):
            # kombu gives the copies for several queues one tag, though each is acknowledged,
            # or put back, by its tag.
            properties["delivery_tag"] = self._next_delivery_tag()
        keys: list[str] = self._keys(queue, HOPEFUL, BELL)
        arguments: list[Any] = [*self._score_and_member(queue, message)]
        if queue in self._expires:
            keys += self._keys(queue, DEMOTED, TURNS) + self._prefixed(self._lists(queue))
            arguments.append(self._expires[queue])
        batch = kwargs.get("_publish_batch")
        if batch is not None:
            batch.add("execute_command", "EVAL", PUT.text, len(keys), *keys, *arguments)
        else:
            PUT.run(self.plain, keys, arguments)

    def _requeue_place(
        self: Any,
        queue: str,
        message: dict[str, Any],
        ordered: bool,
        leftmost: bool,
        behind: bool,
    ) -> tuple[str, object, str]:
        """Return where *message* is requeued: key, score (of a list: the command), member.

        *ordered*: it was taken in deadline order. Another one may belong to an app without
        that order, whose workers see the plain lists only. *behind*: as if it arrived now.
        """
        if ordered and is_task(message):
            (name,) = self._keys(queue, HOPEFUL)
            return name, *self._score_and_member(queue, message, behind)
        priority = self._get_message_priority(message, reverse=False)
        (name,) = self._prefixed([self._q_for_pri(queue, priority)])
        return name, "LPUSH" if leftmost else "RPUSH", stock.dumps(message)

    def _score_and_member(
        self: Any, queue: str, message: dict[str, Any], behind: bool = False
    ) -> tuple[float, str]:
        place = place_of(message, self.rule.horizon(queue), self.rule.work)
        if behind:
            place = place.behind(time.time())
        return place.score, member(message, stock.dumps(message), place, queue)

    # Consuming, over the poller's connection, one message at a time

    def _brpop_start(self: Any, timeout: float | None = None) -> None:
        if time.monotonic() - self._idle_since > min(
            MAX_IDLE_S, self.health_check_interval or MAX_IDLE_S
        ):
            # No slot was free for so long that a firewall may have dropped it. redis-py would
            # send a PING, block the loop until the reply, and (with retry_on_timeout) connect
            # again unknown to the poller.
            self._idle_since = math.inf
            self.connection.cycle.let_go(self)
            self.connection.cycle._register_BRPOP(self)  # which calls this again
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        self._in_poll, self._idle_since = connection, math.inf
        self._brpop_sent_at = time.monotonic()  # for kombu >= 5.7
        if self._block_s > 0:
            self._claiming = False
            bells = [self._part(queue, BELL) for queue in queues]
            if self._capped:
                # Sleep on a key that nobody pushes to; its name matches ACLs for the queue.
                bells = [f"{bells[0]}:none"]
            command = ["BRPOP", *self._prefixed(bells), self._block_s]
            self._block_s = 0.0
        else:
            self._claiming, self._claim_queues = True, queues
            keys, arguments = self._claim_arguments(queues, self._no_ack_queues)
            script = ("EVALSHA", CLAIM.sha) if self._script_cached else ("EVAL", CLAIM.text)
            command = [*script, len(keys), *keys, *arguments]
        connection.send_command(*command, check_health=False)

    def _brpop_read(self: Any, **options: Any) -> bool:
        client = self.client
        self._idle_since = time.monotonic()
        try:
            try:
                # Not "BRPOP", from whose replies kombu's client strips the key prefix.
                command = "EVALSHA" if self._claiming else "EXISTS"
                reply = client.parse_response(client.connection, command, **options)
            except self.connection_errors:
                client.connection.disconnect()
                raise
            except NoScriptError:
                self._script_cached = False
                raise Empty() from None
            if not self._claiming:
                raise Empty()  # a bell or the timeout: the next poll sends a claim
            self._script_cached = True
            self._deliver_claimed(self._claim_queues, reply)
            return True
        finally:
            self._in_poll = None
            if hasattr(self, "_flush_brpop_reauth"):  # kombu >= 5.7
                self._flush_brpop_reauth()

    def _claim_arguments(
        self: Any, queues: list[str], no_ack: Collection[str] = ()
    ) -> tuple[list[str], list[Any]]:
        """Return KEYS and ARGV of a claim from *queues*, in that order; see ``claim.lua``.

        *no_ack*: queues whose messages will not be acknowledged.
        """
        rule, slots = self.rule, self.slots
        keys = [self.unacked_key, self.unacked_index_key]
        may = slots is None or slots.may_take_demoted(rule.hopeless_slots)
        arguments = [time.time(), rule.hopeless, int(may), rule.late_every, rule.work, HOPE]
        arguments += [SCAN_LIMIT, len(self.priority_steps)]
        for queue in queues:
            keys += [
                self._part(queue, part) for part in (HOPEFUL, DEMOTED, BELL, TURNS, REFUSED)
            ]
            keys += self._lists(queue)
            tracked = self.ack_emulation and queue not in no_ack
            arguments += [int(tracked), rule.horizon(queue), queue]
        return self._prefixed(keys), arguments

    def _deliver_claimed(self: Any, queues: list[str], reply: list[Any]) -> None:
        """Deliver the message in the *reply* to a claim from *queues*.

        Raises:
            Empty: there is none.
        """
        queue, payload = self._parse_claim(queues, reply)
        if queue is None:
            raise Empty()
        self._queue_cycle.rotate(queue)
        transport = self.connection  # a callback may close this channel
        if queue not in self._no_ack_queues:
            transport.claimed_tag = payload["properties"]["delivery_tag"]
        try:
            transport._deliver(payload, queue)
        except Exception:
            # Unless it is about a message that cannot be built, which this refuses.
            if self._message(queue, payload, reply[3]) is not None:
                raise
        finally:
            transport.claimed_tag = None

    def _parse_claim(self: Any, queues: list[str], reply: list[Any]) -> tuple[str | None, Any]:
        """Return the queue and the raw message of a claim's *reply*. If there is none, return
        (``None``, ``None``) and set how long to block before the next claim.
        """
        state, index, fate, text, adopted, refused = reply
        now = time.monotonic()
        if adopted:
            self._mixed_until = now + MIXED_FOR_S
        if refused:
            _report_refused(refused)
        if state != b"message":
            self._capped = state == b"capped"
            # Only while such a queue is consumed: at its start a worker reads replies once.
            replies = not self._no_ack_queues.isdisjoint(self._active_queues)
            mixed = replies or now < self._mixed_until
            idle_s = MIXED_POLL_S if mixed else self.brpop_timeout or 1
            self._block_s = CAPPED_POLL_S if self._capped else idle_s
            if state == b"again":
                self._block_s = 0.0
            return None, None
        queue = queues[index]
        try:
            payload = stock.loads(tail_of(text).decode())[0]
        except Exception:  # noqa: BLE001  Redis parses some JSON that Python does not
            self._refuse(queue, text)
            return None, None
        headers = payload.get("headers") or {}
        if fate == b"demoted" and self.slots is not None:
            self.slots.claimed_demoted(headers.get("id"))
        elif fate == b"drop":
            # Celery revokes an expired task: it acknowledges it, sends the event and stores
            # the result.
            headers.update({"expires": DROPPED_EXPIRES, DROPPED: True})
        return queue, payload

    def _message(self: Any, queue: str, payload: Any, text: bytes) -> Any:
        """Return kombu's message; ``None``, and refuse the payload, if it cannot be built."""
        try:
            return self.Message(payload, channel=self)
        except Exception:  # noqa: BLE001  anybody may have pushed anything
            self._refuse(queue, text)
            return None

    def _refuse(self: Any, queue: str, text: bytes) -> None:
        """Move a claimed message that cannot be parsed to the queue's list of refused ones."""
        tag = tag_of(text)
        unacked, index = self._prefixed([self.unacked_key, self.unacked_index_key])
        (refused,) = self._keys(queue, REFUSED)
        with self.plain.pipeline() as pipe:
            pipe.lpush(refused, payload_of(text)).ltrim(refused, 0, MOST_REFUSED - 1)
            pipe.hdel(unacked, tag).zrem(index, tag).execute()
        _report_refused(1)

    def _claim_message(self: Any, queue: str, no_ack: bool) -> Any:
        """Claim a message synchronously, without the poller.

        Raises:
            Empty: there is none to take.
        """
        if queue in self._expires:
            self._renew(queue, self._expires[queue])
        while True:
            arguments = self._claim_arguments([queue], [queue] if no_ack else [])
            reply = CLAIM.run(self.plain, *arguments)
            found, payload = self._parse_claim([queue], reply)
            if found is not None:
                message = self._message(queue, payload, reply[3])
                if message is not None:
                    return message
            elif reply[0] not in (b"again", b"message"):
                raise Empty()

    def _get(self: Any, queue: str, timeout: float | None = None) -> Any:
        return self._claim_message(queue, no_ack=True)._raw

    def basic_get(self: Any, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return the next message of *queue*; ``None`` if there is none."""
        try:
            message = self._claim_message(queue, no_ack)
        except Empty:
            return None
        if not no_ack:
            self.connection.claimed_tag = message.delivery_tag
            self.qos.append(message, message.delivery_tag)
            self.connection.claimed_tag = None
        return message

    def basic_consume(self: Any, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Start consuming from *queue*."""
        (self._no_ack_queues.add if no_ack else self._no_ack_queues.discard)(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)  # type: ignore[misc]  # kombu's


def _report_refused(count: int) -> None:
    health.count("messages_refused", count)
    health.warn_once(
        "messages_refused",
        "rts: a queue in Redis holds something that is not a Celery message; it was moved "
        "to the list whose name ends in %s",
        REFUSED,
    )


class Channel(DeadlineOrder, stock.Channel):  # type: ignore[misc]  # kombu has no type information
    """A channel in deadline order."""


class SentinelChannel(DeadlineOrder, stock.SentinelChannel):  # type: ignore[misc]  # kombu has no type information
    """A channel in deadline order, on a Redis behind Sentinel."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, OPTION)
