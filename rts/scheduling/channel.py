"""A channel of kombu's whose queues are in deadline order.

A message is put at its place, and taken by a claim: a script that looks for what is next
and notes it as unacknowledged, all in one step. The poller sends a claim where it would
send ``BRPOP``, and waits for the queues' bells where there was nothing to claim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from redis.exceptions import NoScriptError

from rts import health
from rts.deadlines import HOPE
from rts.headers import DROPPED
from rts.scheduling.acknowledging import QoS, UnnotedQoS
from rts.scheduling.layout import BELL, DEMOTED, HOPEFUL, REFUSED, TURNS, QueueLayout
from rts.scheduling.places import is_task, member, payload_of, place_of, tag_of, tail_of
from rts.scheduling.rule import OPTION, Rule, SlotGauge
from rts.scheduling.scripts import CLAIM, PUT, RING

#: Messages that one claim looks at: bounds how long Redis is held.
LOOKS = 200
#: Seconds between claims where only demoted work waits and may not be taken now.
HELD_S = 0.02
#: Seconds between claims where others use the queue's plain lists, which ring no
#: bell: producers without the order, and workers without it that answer.
MIXED_S = 0.2
#: Seconds after the last such message during which that goes on.
MIXED_FOR_S = 600.0
#: Milliseconds for which the bell of a plain list is rung.
RING_MS = 10_000

#: When a dropped task expired, for Celery: long ago.
DROPPED_EXPIRES = "1970-01-01T00:00:00+00:00"


class DeadlineOrder(QueueLayout):
    """What a channel does otherwise than kombu's; mixed into it, which is why *self*
    may be used as any of kombu's channels.
    """

    QoS = QoS
    from_transport_options = (*stock.Channel.from_transport_options, OPTION)

    #: The option as given.
    rts: Mapping[str, Any] = {}
    #: Set by a worker's bootstep; other consumers have no slots.
    slots: SlotGauge | None = None
    #: Queues that expire; kombu < 5.7 has none.
    _expires: Mapping[str, int] = {}
    brpop_timeout: float = 1
    #: Tag of the message that is being delivered, if its claim noted it.
    noted: str | None = None
    #: The poll connection waits for a claim's answer, else for a bell.
    _claiming = False
    #: Seconds to wait for a bell before the next claim.
    _patience_s = 0.0
    #: Whether work waits that may not be taken: then a bell says nothing.
    _held = False
    _adopting_until = -math.inf
    #: Whether Redis knows the script, as far as this channel has seen.
    _known = False

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self._unnoted: set[str] = set()
        super().__init__(*args, **kwargs)
        self.rule = Rule(**self.rts)
        if not self.ack_emulation:
            self.QoS = UnnotedQoS

    # Putting: a message gets its place.

    def _put(self: Any, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if not is_task(message):
            # Answers to remote control, for instance: those who wait for them may
            # not know the order.
            super()._put(queue, message, **kwargs)  # type: ignore[misc]  # kombu's
            if kwargs.get("_publish_batch") is None:
                ring_ms = min(RING_MS, self._expires.get(queue, RING_MS))
                RING.run(self.plain, self._names(queue, BELL), [ring_ms])
            return
        keys: list[str] = self._names(queue, HOPEFUL, BELL)
        arguments: list[Any] = [*self._placed(queue, message)]
        if queue in self._expires:
            keys += self._names(queue, DEMOTED, TURNS) + self._full(self._lists(queue))
            arguments.append(self._expires[queue])
        batch = kwargs.get("_publish_batch")
        if batch is not None:
            batch.add("execute_command", "EVAL", PUT.text, len(keys), *keys, *arguments)
        else:
            PUT.run(self.plain, keys, arguments)

    def _place_back(
        self: Any, queue: str, message: dict[str, Any], leftmost: bool
    ) -> tuple[str, object, str]:
        """Return the key to put *message* back to, its score (or the command), its text."""
        if is_task(message):
            (name,) = self._names(queue, HOPEFUL)
            return name, *self._placed(queue, message)
        priority = self._get_message_priority(message, reverse=False)
        (name,) = self._full([self._q_for_pri(queue, priority)])
        return name, "LPUSH" if leftmost else "RPUSH", stock.dumps(message)

    def _placed(self: Any, queue: str, message: dict[str, Any]) -> tuple[float, str]:
        place = place_of(message, self.rule.horizon(queue), self.rule.work)
        info = message["properties"].get("delivery_info") or {}
        exchange, key = info.get("exchange") or "", info.get("routing_key") or ""
        return place.score, member(message, stock.dumps(message), place, exchange, key)

    # Claiming: over the poller's connection, one message at a time.

    def _brpop_start(self: Any, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        if self._patience_s > 0:
            self._claiming = False
            bells = [self._part(queue, BELL) for queue in queues]
            if self._held:  # no bell helps: one that nobody rings, named as those are
                bells = [f"{bells[0]}:none"]
            connection.send_command("BRPOP", *self._full(bells), self._patience_s)
            self._patience_s = 0.0
        else:
            self._claiming, self._asked = True, queues
            keys, arguments = self._claim(queues)
            script = ("EVALSHA", CLAIM.sha) if self._known else ("EVAL", CLAIM.text)
            connection.send_command(*script, len(keys), *keys, *arguments)

    def _brpop_read(self: Any, **options: Any) -> bool:
        client = self.client
        try:
            try:
                # kombu's own client takes prefixes off answers of BRPOP.
                command = "EVALSHA" if self._claiming else "EXISTS"
                answer = client.parse_response(client.connection, command, **options)
            except self.connection_errors:
                client.connection.disconnect()
                raise
            except NoScriptError:
                self._known = False
                raise Empty() from None
            if not self._claiming:
                raise Empty()  # a bell, or time to look again
            self._known = True
            return bool(self._take(self._asked, answer))
        finally:
            self._in_poll = None
            if hasattr(self, "_flush_brpop_reauth"):  # kombu >= 5.7
                self._flush_brpop_reauth()

    def _claim(self: Any, queues: list[str], note: bool = True) -> tuple[list[str], list[Any]]:
        """Return the keys and arguments of a claim from *queues*, in that order."""
        rule, slots = self.rule, self.slots
        keys = [self.unacked_key, self.unacked_index_key]
        may = slots is None or slots.demoted_may(rule.hopeless_slots)
        arguments = [time.time(), rule.hopeless, int(may), rule.late_every, rule.work, HOPE]
        arguments += [LOOKS, len(self.priority_steps)]
        for queue in queues:
            keys += [
                self._part(queue, part) for part in (HOPEFUL, DEMOTED, BELL, TURNS, REFUSED)
            ]
            keys += self._lists(queue)
            noted = note and self.ack_emulation and queue not in self._unnoted
            arguments += [int(noted), rule.horizon(queue), queue]
        return self._full(keys), arguments

    def _take(self: Any, queues: list[str], answer: list[Any]) -> bool:
        """Deliver what a claim has brought; plan the next one.

        Raises:
            Empty: it brought nothing.
        """
        queue, payload = self._read(queues, answer)
        if queue is None:
            raise Empty()
        self._queue_cycle.rotate(queue)
        self.noted = None if queue in self._unnoted else payload["properties"]["delivery_tag"]
        try:
            self.connection._deliver(payload, queue)
        except Exception:
            if self._message(queue, payload, answer[3]) is not None:
                raise
        finally:
            self.noted = None
        return True

    def _read(self: Any, queues: list[str], answer: list[Any]) -> tuple[str | None, Any]:
        state, index, fate, text, adopted, refused = answer
        now = time.monotonic()
        if adopted:
            self._adopting_until = now + MIXED_FOR_S
        if refused:
            _tell_refused(refused)
        if state != b"message":
            self._held = state == b"held"
            # Not for what was consumed once: a worker asks others for what they know.
            answered = not self._unnoted.isdisjoint(self._active_queues)
            mixed = now < self._adopting_until or answered
            waits = HELD_S if self._held else MIXED_S if mixed else self.brpop_timeout or 1
            self._patience_s = 0.0 if state == b"again" else waits
            return None, None
        queue = queues[index]
        try:
            payload = stock.loads(tail_of(text).decode())[0]
        except Exception:  # noqa: BLE001  Redis' reader of JSON takes what Python's does not
            self._refuse(queue, text)
            return None, None
        headers = payload.get("headers") or {}
        if fate == b"demoted" and self.slots is not None:
            self.slots.claimed_demoted(headers.get("id"))
        elif fate == b"drop":
            # Celery revokes what has expired: acknowledged, announced, with a result.
            headers.update({"expires": DROPPED_EXPIRES, DROPPED: True})
        return queue, payload

    def _message(self: Any, queue: str, payload: Any, text: bytes) -> Any:
        """Return a message as consumers get it; ``None``, and it is put aside, where
        kombu cannot make one of it.
        """
        try:
            return self.Message(payload, channel=self)
        except Exception:  # noqa: BLE001  whatever a stranger has put there
            self._refuse(queue, text)
            return None

    def _refuse(self: Any, queue: str, text: bytes) -> None:
        """Put aside a message that is taken and cannot be read."""
        tag = tag_of(text)
        unacked, index = self._full([self.unacked_key, self.unacked_index_key])
        with self.plain.pipeline() as pipe:
            pipe.lpush(*self._names(queue, REFUSED), payload_of(text))
            pipe.hdel(unacked, tag).zrem(index, tag).execute()
        _tell_refused(1)

    def _claim_now(self: Any, queue: str, note: bool) -> Any:
        """Claim without the poller. Returns a message as consumers get it.

        Raises:
            Empty: nothing is there to be taken.
        """
        while True:
            answer = CLAIM.run(self.plain, *self._claim([queue], note))
            found, payload = self._read([queue], answer)
            if found is not None:
                message = self._message(queue, payload, answer[3])
                if message is not None:
                    return message
            elif answer[0] not in (b"again", b"message"):
                raise Empty()

    def _get(self: Any, queue: str, timeout: float | None = None) -> Any:
        return self._claim_now(queue, note=False)._raw

    def basic_get(self: Any, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return the next message of *queue*, ``None`` where there is none."""
        try:
            message = self._claim_now(queue, note=not no_ack)
        except Empty:
            return None
        if not no_ack:
            self.noted = message.delivery_tag if self.ack_emulation else None
            self.qos.append(message, message.delivery_tag)
            self.noted = None
        return message

    def basic_consume(self: Any, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Begin to consume from *queue*."""
        (self._unnoted.add if no_ack else self._unnoted.discard)(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)  # type: ignore[misc]  # kombu's


def _tell_refused(count: int) -> None:
    health.count("messages_refused", count)
    health.warn_once(
        "messages_refused",
        "rts: what is in a queue of Redis is no message of Celery's; it is kept in "
        "a list whose name ends in %s",
        REFUSED,
    )


class Channel(DeadlineOrder, stock.Channel):  # type: ignore[misc]  # kombu has no type information
    """A channel in deadline order."""


class SentinelChannel(DeadlineOrder, stock.SentinelChannel):  # type: ignore[misc]  # kombu has no type information
    """A channel in deadline order, on Redis found by Sentinel."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, OPTION)
