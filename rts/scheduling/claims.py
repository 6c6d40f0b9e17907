"""Claims: what a channel sends to take the next message, and what the reply means.

The script picks the next message, removes it and marks it as unacknowledged in one step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from queue import Empty
from typing import TYPE_CHECKING, Any

from kombu.transport import redis as stock

from rts import health
from rts.deadlines import HOPE
from rts.headers import DROPPED_HEADER
from rts.rule import Rule
from rts.scheduling.encoding import payload_of, tag_of, tail_of
from rts.scheduling.layout import (
    BELL,
    DEMOTED,
    HOPEFUL,
    MOST_REFUSED,
    REFUSED,
    TURNS,
    QueueLayout,
    keys_of,
    list_keys,
    unacked_keys,
)
from rts.scheduling.scripts import CLAIM, REFUSE

if TYPE_CHECKING:
    from rts.scheduling.slots import Slots

#: Messages that one claim examines at most: bounds how long the script blocks Redis.
SCAN_LIMIT = 200
#: Seconds between claims while only demoted tasks wait and this worker may take no more, unless
#: one that it runs ends: how long a hopeful one may wait.
CAPPED_POLL_S = 0.05
#: Seconds between claims while clients without the deadline order, who ring no bell, push to
#: the plain lists: producers, and workers that reply to remote control.
MIXED_POLL_S = 0.2
#: Seconds after the last message from such a producer for which that polling continues.
MIXED_FOR_S = 600.0
#: The ``expires`` of a dropped task: any time in the past makes Celery revoke it.
DROPPED_EXPIRES = "1970-01-01T00:00:00+00:00"


class Claims(QueueLayout):
    """Mixin for kombu's Redis channels: sends claims, and reads the replies."""

    rule: Rule
    #: Set by a worker's bootstep; ``None`` for other consumers, which have no slots.
    slots: Slots | None = None
    #: Queues that are consumed with ``no_ack``.
    _no_ack_queues: set[str]
    #: TTL in milliseconds of queues that expire (kombu >= 5.7).
    _expires: Mapping[str, int] = {}
    #: Seconds to block on the bells where nothing waits.
    brpop_timeout: float = 1
    #: Seconds to block on the bells before the next claim.
    _block_s = 0.0
    #: Until when to claim nothing, unless a demoted task of this worker ends.
    _rest_until = -math.inf
    #: Until when to poll for messages from producers without the deadline order.
    _mixed_until = -math.inf

    def _claim_arguments(
        self: Any, queues: list[str], no_ack: Collection[str] = ()
    ) -> tuple[list[str], list[Any]]:
        """Return KEYS and ARGV of a claim from *queues*, in that order; see ``claim.lua``.

        *no_ack*: queues whose messages will not be acknowledged.
        """
        rule, slots, keys = self.rule, self.slots, unacked_keys(self)
        may = slots is None or slots.may_take_demoted(rule.hopeless_slots)
        arguments = [time.time(), rule.hopeless, int(may), rule.late_every, rule.work, HOPE]
        arguments += [SCAN_LIMIT, len(self.priority_steps)]
        for queue in queues:
            keys += keys_of(self, queue, HOPEFUL, DEMOTED, BELL, TURNS, REFUSED)
            keys += list_keys(self, queue)
            tracked = self.ack_emulation and queue not in no_ack
            arguments += [int(tracked), rule.horizon(queue), queue]
        return keys, arguments

    def _parse_claim(self: Any, queues: list[str], reply: list[Any]) -> tuple[str | None, Any]:
        """Return the queue and the raw message of a claim's *reply*; (``None``, ``None``) if
        there is none to take.
        """
        state, index, fate, text, adopted, refused = reply
        self._rest_until = -math.inf
        if adopted:
            self._mixed_until = time.monotonic() + MIXED_FOR_S
        if refused:
            _report_refused(refused)
        if state != b"message":
            self._wait_after(state)
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
            headers.update({"expires": DROPPED_EXPIRES, DROPPED_HEADER: True})
        return queue, payload

    def _wait_after(self: Any, state: bytes) -> None:
        """Set how long to block before the next claim, after one that took no message. If there
        is more to examine, it stays as it is: not at all.
        """
        if state == b"capped":
            # Bells ring for other workers. And Redis looks only ten times a second whether the
            # timeout of a client that it blocks has passed.
            self._rest_until = time.monotonic() + CAPPED_POLL_S
            self.connection.cycle.wake_in(CAPPED_POLL_S)
        elif state != b"again":
            # Replies to remote control, which a worker awaits only while it starts.
            replies = not self._no_ack_queues.isdisjoint(self._active_queues)
            mixed = replies or time.monotonic() < self._mixed_until
            self._block_s = MIXED_POLL_S if mixed else self.brpop_timeout or 1

    def rests(self: Any) -> bool:
        """Return whether only demoted tasks wait, as of the last claim, and this worker may
        take no more.
        """
        share = self.rule.hopeless_slots
        return time.monotonic() < self._rest_until and not self.slots.may_take_demoted(share)

    def _message(self: Any, queue: str, payload: Any, text: bytes) -> Any:
        """Return kombu's message; ``None``, and refuse the payload, if it cannot be built."""
        try:
            return self.Message(payload, channel=self)
        except Exception:  # noqa: BLE001  anybody may have pushed anything
            self._refuse(queue, text)
            return None

    def _refuse(self: Any, queue: str, text: bytes) -> None:
        """Move a claimed message that cannot be parsed to the queue's list of refused ones."""
        keys = [*unacked_keys(self), *keys_of(self, queue, REFUSED)]
        REFUSE.run(self.plain, keys, [tag_of(text), payload_of(text), MOST_REFUSED])
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


def _report_refused(count: int) -> None:
    health.count("messages_refused", count)
    health.warn_once(
        "messages_refused",
        "rts: a queue in Redis holds something that is not a Celery message; it was moved "
        "to the list whose name ends in %s",
        REFUSED,
    )
