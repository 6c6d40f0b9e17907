"""A kombu Redis channel whose queues are in deadline order.

Publishing inserts a message at its position; consuming claims the next one (see
:mod:`rts.scheduling.claims`). The poller sends a claim where kombu sends ``BRPOP``; if nothing
could be claimed it blocks in ``BRPOP`` on the queues' bells (see
:mod:`rts.scheduling.layout`) before the next claim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from redis.exceptions import NoScriptError

from rts.link.link import MAX_IDLE_S
from rts.rule import OPTION, Rule
from rts.scheduling.claims import Claims
from rts.scheduling.encoding import is_task, member, place_of
from rts.scheduling.layout import BELL, BELL_TTL_MS, DEMOTED, HOPEFUL, TURNS, keys_of, list_keys
from rts.scheduling.qos import QoS, UnemulatedQoS
from rts.scheduling.scripts import CLAIM, PUT, RING


class DeadlineOrder(Claims):
    """Mixin for kombu's Redis channels: what differs from them.

    *self* is annotated as ``Any`` since kombu's attributes are used throughout.
    """

    QoS = QoS
    from_transport_options = (*stock.Channel.from_transport_options, OPTION)

    #: The transport option: arguments of :class:`Rule`.
    rts: Mapping[str, Any] = {}
    #: The queues of the claim whose reply the poll connection awaits; ``None``: it blocks on
    #: their bells.
    _claim_queues: list[str] | None = None
    #: Whether Redis has the script cached, as far as this channel knows.
    _script_cached = False
    #: Since when the poll connection has awaited no reply.
    _idle_since = math.inf

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
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
                RING.run(self.plain, keys_of(self, queue, BELL), [ttl_ms])
            return
        properties = message["properties"]
        if properties["delivery_info"].get("exchange"):
            # kombu gives one tag to the copies for several queues, though each is acknowledged,
            # or requeued, by its tag.
            properties["delivery_tag"] = self._next_delivery_tag()
        keys = keys_of(self, queue, HOPEFUL, BELL)
        arguments: list[Any] = [*self._score_and_member(queue, message)]
        if queue in self._expires:
            keys += keys_of(self, queue, DEMOTED, TURNS) + list_keys(self, queue)
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

        *ordered*: it was taken in deadline order. (One that was not may be of an app without
        that order, whose workers see the plain lists only.) *behind*: as if it arrived now.
        """
        if ordered and is_task(message):
            (key,) = keys_of(self, queue, HOPEFUL)
            return key, *self._score_and_member(queue, message, behind)
        priority = self._get_message_priority(message, reverse=False)
        key = (self.global_keyprefix or "") + self._q_for_pri(queue, priority)
        return key, "LPUSH" if leftmost else "RPUSH", stock.dumps(message)

    def _score_and_member(
        self: Any, queue: str, message: dict[str, Any], behind: bool = False
    ) -> tuple[float, str]:
        place = place_of(message, self.rule.horizon(queue), self.rule.work)
        if behind:
            seconds, micros = self.plain.time()  # the clock that claims go by
            place = place.behind(seconds + micros / 1e6)
        return place.score, member(message, stock.dumps(message), place, queue)

    # Consuming, over the poller's connection, one message at a time

    def _brpop_start(self: Any, timeout: float | None = None) -> None:
        if time.monotonic() - self._idle_since > min(
            MAX_IDLE_S, self.health_check_interval or MAX_IDLE_S
        ):
            # No slot was free for so long that a firewall may have dropped the connection. Left
            # to itself, redis-py would send a PING, block the loop until the reply, and (with
            # retry_on_timeout) connect again without telling the poller.
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
            self._claim_queues = None
            bells = [key for queue in queues for key in keys_of(self, queue, BELL)]
            command = ["BRPOP", *bells, self._block_s]
            self._block_s = 0.0
        else:
            self._claim_queues = queues
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
                command = "EVALSHA" if self._claim_queues else "EXISTS"
                reply = client.parse_response(client.connection, command, **options)
            except self.connection_errors:
                client.connection.disconnect()
                raise
            except NoScriptError:
                self._script_cached = False
                raise Empty() from None
            if self._claim_queues is None:
                raise Empty()  # a bell or the timeout: the next poll sends a claim
            self._script_cached = True
            self._deliver_claimed(self._claim_queues, reply)
            return True
        finally:
            self._in_poll = None
            if hasattr(self, "_flush_brpop_reauth"):  # kombu >= 5.7
                self._flush_brpop_reauth()

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

    def close(self: Any) -> None:
        """Close the channel, also if its server is gone.

        kombu first reads the reply that it waits for. If that fails, the channel stays open.
        Closing it once more, on a transport that has let go of its connection, then raises an
        AttributeError, at which Celery's worker exits.
        """
        if self._in_poll:
            with suppress(Empty, *self.connection_errors):
                self._brpop_read()
        super().close()  # type: ignore[misc]  # kombu's

    # Consuming, without the poller

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


class Channel(DeadlineOrder, stock.Channel):  # type: ignore[misc]  # kombu has no type information
    """A channel in deadline order."""


class SentinelChannel(DeadlineOrder, stock.SentinelChannel):  # type: ignore[misc]  # kombu has no type information
    """A channel in deadline order, on a Redis behind Sentinel."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, OPTION)
