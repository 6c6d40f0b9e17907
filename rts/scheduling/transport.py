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

import hashlib
import math
import time
from collections.abc import Mapping
from importlib.resources import files
from queue import Empty
from typing import Any

import redis
from kombu.transport import redis as stock
from kombu.transport import virtual
from redis.exceptions import NoScriptError

from rts import health
from rts.headers import DROPPED
from rts.scheduling.places import HOPE, NEVER, is_task, member, place_of, tail_of
from rts.scheduling.rule import OPTION, Rule, SlotGauge

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
#: Seconds between looks at the slots, in pools without an event loop: the first, and
#: at most. Each waits twice as long as the one before.
FIRST_LOOK_S, FULL_S = 0.0005, 0.01
#: Seconds between looks for what to put back, at least.
RESTORE_S = 0.5

#: When a dropped task expired, for Celery: long ago.
DROPPED_EXPIRES = "1970-01-01T00:00:00+00:00"

#: What makes up a queue, behind its name and the separator.
HOPEFUL, DEMOTED, BELL, TURNS, REFUSED = (
    "edf",
    "edf:demoted",
    "edf:bell",
    "edf:turns",
    "edf:refused",
)


class ScriptByHash:
    """A script, to be called by its hash and sent whole where Redis does not know it."""

    def __init__(self, name: str) -> None:
        self.text = files("rts.lua").joinpath(f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: list[str], arguments: list[Any]) -> Any:
        """Call it. *client* must not prefix keys."""
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.execute_command("EVAL", self.text, len(keys), *keys, *arguments)


CLAIM, PUT, RING, MOVE, BACK = (
    ScriptByHash(name) for name in ("claim", "put", "ring", "move", "back")
)


class _SlotGate:
    """Acknowledgements that let nothing be taken past the worker's free slots."""

    channel: Any

    def can_consume(self) -> bool:
        """Return whether a message may be taken."""
        slots = self.channel.slots
        return (slots is None or slots.free()) and bool(super().can_consume())  # type: ignore[misc]


class QoS(_SlotGate, stock.QoS):  # type: ignore[misc]  # kombu has no type information
    """Acknowledgements; a claim has noted its message already."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message that is delivered."""
        if delivery_tag == self.channel.noted:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """Put back what was claimed too long ago (``visibility_timeout``).

        Without kombu's lock among workers, which one that dies with it would keep
        for minutes: each message goes back once, whoever else is at it.
        """
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        client, latest = self.channel.plain, time.time() - self.visibility_timeout
        (index,) = self.channel._full([self.unacked_index_key])
        for tag in client.zrangebyscore(index, 0, latest, start, num or -1):
            self._give_back(tag, latest)

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
    except KeyError:
        pass


class UnnotedQoS(_SlotGate, virtual.QoS):  # type: ignore[misc]
    """Where acknowledgements are not emulated (``ack_emulation`` off)."""


class DeadlineOrder:
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
    _plain: Any = None

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
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            if kwargs.get("_publish_batch") is None:
                ring_ms = min(RING_MS, self._expires.get(queue, RING_MS))
                RING.run(self.plain, self._names(queue, BELL), [ring_ms])
            return
        score, text = self._placed(queue, message)
        keys = self._names(queue, HOPEFUL, BELL)
        batch = kwargs.pop("_publish_batch", None)
        if batch is not None:
            batch.add("execute_command", "EVAL", PUT.text, 2, *keys, score, text)
        else:
            PUT.run(self.plain, keys, [score, text])
        if queue in self._expires:
            for name in self._parts(queue):
                if batch is not None:
                    batch.add("pexpire", name, self._expires[queue])
                else:
                    self.plain.pexpire(self.global_keyprefix + name, self._expires[queue])

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
            # Where no bell helps, one that nobody rings.
            bells = [f"{BELL}:none"] if self._held else [self._part(q, BELL) for q in queues]
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
            arguments += [int(noted), rule.horizon(queue)]
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
        finally:
            self.noted = None
        return True

    def _read(self: Any, queues: list[str], answer: list[Any]) -> tuple[str | None, Any]:
        state, index, fate, text, adopted, refused = answer
        now = time.monotonic()
        if adopted:
            self._adopting_until = now + MIXED_FOR_S
        if refused:
            health.count("messages_refused", refused)
            health.warn_once(
                "messages_refused",
                "rts: what is in a queue of Redis is no message of Celery's; it is kept in "
                "a list whose name ends in %s",
                REFUSED,
            )
        if state != b"message":
            self._held = state == b"held"
            mixed = now < self._adopting_until or bool(self._unnoted)
            waits = HELD_S if self._held else MIXED_S if mixed else self.brpop_timeout or 1
            self._patience_s = 0.0 if state == b"again" else waits
            return None, None
        queue = queues[index]
        payload = stock.loads(tail_of(text).decode())[0]
        headers = payload.get("headers") or {}
        if fate == b"demoted" and self.slots is not None:
            self.slots.claimed_demoted(headers.get("id"))
        elif fate == b"drop":
            # Celery revokes what has expired: acknowledged, announced, with a result.
            headers.update({"expires": DROPPED_EXPIRES, DROPPED: True})
        return queue, payload

    def _claim_now(self: Any, queue: str, note: bool) -> Any:
        """Claim without the poller. Returns the raw message.

        Raises:
            Empty: nothing is there to be taken.
        """
        while True:
            answer = CLAIM.run(self.plain, *self._claim([queue], note))
            found, payload = self._read([queue], answer)
            if found is not None:
                return payload
            if answer[0] != b"again":
                raise Empty()

    def _get(self: Any, queue: str, timeout: float | None = None) -> Any:
        return self._claim_now(queue, note=False)

    def basic_get(self: Any, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return the next message of *queue*, ``None`` where there is none."""
        try:
            message = self.Message(self._claim_now(queue, note=not no_ack), channel=self)
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
        return super().basic_consume(queue, no_ack, *args, **kwargs)  # type: ignore[misc]

    # The queue as a whole: kombu's lists and the sorted sets.

    def _size(self: Any, queue: str) -> int:
        with self.plain.pipeline(transaction=False) as pipe:
            for name in self._names(queue, HOPEFUL, DEMOTED):
                pipe.zcard(name)
            there: int = super()._size(queue)  # type: ignore[misc]
            return there + int(sum(pipe.execute()))

    def _has_queue(self: Any, queue: str, **kwargs: Any) -> bool:
        there = self.plain.exists(*self._names(queue, HOPEFUL, DEMOTED))
        return bool(there) or bool(super()._has_queue(queue, **kwargs))  # type: ignore[misc]

    def _purge(self: Any, queue: str) -> int:
        with self.plain.pipeline() as pipe:
            for name in self._names(queue, HOPEFUL, DEMOTED):
                pipe.zcard(name)
            pipe.delete(*self._names(queue, HOPEFUL, DEMOTED, BELL, TURNS))
            waiting = int(sum(pipe.execute()[:2]))
        plain: int = super()._purge(queue)  # type: ignore[misc]
        return waiting + plain

    def _delete(self: Any, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)  # type: ignore[misc]
        self.plain.delete(*self._names(queue, HOPEFUL, DEMOTED, BELL, TURNS))

    # Names in Redis. Scripts get them whole; kombu's clients add the prefix themselves.

    def _part(self: Any, queue: str, part: str) -> str:
        return f"{queue}{self.sep}{part}"

    def _lists(self: Any, queue: str) -> list[str]:
        return [self._q_for_pri(queue, step) for step in self.priority_steps]

    def _full(self: Any, names: list[str]) -> list[str]:
        prefix: str = self.global_keyprefix
        return [prefix + name for name in names]

    def _names(self: Any, queue: str, *parts: str) -> list[str]:
        names: list[str] = self._full([self._part(queue, part) for part in parts])
        return names

    def _parts(self: Any, queue: str) -> list[str]:
        lists: list[str] = self._lists(queue)
        return [self._part(queue, part) for part in (HOPEFUL, DEMOTED, BELL, TURNS)] + lists

    @property
    def plain(self: Any) -> Any:
        """A client of kombu's pool that takes names as they are."""
        pool = self.pool
        if self._plain is None or self._plain.connection_pool is not pool:
            self._plain = redis.Redis(connection_pool=pool)
        return self._plain


class Channel(DeadlineOrder, stock.Channel):  # type: ignore[misc]
    """A channel in deadline order."""


class SentinelChannel(DeadlineOrder, stock.SentinelChannel):  # type: ignore[misc]
    """A channel in deadline order, on Redis found by Sentinel."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, OPTION)


class Poller(stock.MultiChannelPoller):  # type: ignore[misc]
    """Waits for messages where there is no event loop (threads, gevent, solo)."""

    #: Looks in a row that found no free slot.
    _looks = 0
    _restored_at = -math.inf

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for an event; not long while slots may become free at any moment.

        Raises:
            socket.timeout: that moment is over. Celery's loop then does what its threads
                have left to it, acknowledgements for instance, without which kombu
                lets nothing more be taken.
        """
        full = any(
            channel.slots is not None and not channel.qos.can_consume()
            for channel in self._channels
        )
        if not full:
            self._looks = 0
            return super().get(callback, timeout)
        wait_s = min(FULL_S, FIRST_LOOK_S * 2 ** min(self._looks, 10))
        self._looks += 1
        try:
            return super().get(callback, wait_s if timeout is None else min(timeout, wait_s))
        except Empty:
            raise TimeoutError() from None

    def maybe_restore_messages(self) -> None:
        """Count a look for what to put back, however often :meth:`get` is called."""
        now = time.monotonic()
        if now - self._restored_at >= RESTORE_S:
            self._restored_at = now
            super().maybe_restore_messages()


class Transport(stock.Transport):  # type: ignore[misc]
    """kombu's, whose channels are in deadline order where the option says so."""

    ordered: type = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if OPTION in (client.transport_options or {}):
            self.Channel = self.ordered
            self.cycle = Poller()


class SentinelTransport(Transport, stock.SentinelTransport):  # type: ignore[misc]
    """The same for Redis found by Sentinel."""

    ordered = SentinelChannel
