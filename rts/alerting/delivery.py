"""Brings the messages of one webhook to its receiver, in order, until they are there."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from rts import health
from rts.alerting.alert import Alert, body_of, signature
from rts.alerting.post import NotDelivered, post
from rts.clock import FleetClock
from rts.errors import StoreUnavailable
from rts.keys import Keys
from rts.link.link import Link
from rts.link.scripts import pack
from rts.webhooks import Webhook

logger = logging.getLogger("rts.alerts")

#: Seconds between looks for a new message.
POLL_S = 0.5
#: Seconds before the second attempt, and the longest wait before a later one.
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
#: Seconds after which a message is given up.
GIVE_UP_S = 86400.0


class WebhookDelivery:
    """One webhook's thread: what it waits for delays nothing else.

    A message is taken off its list only once it was received, so it is sent again by
    the next companion if this one is killed in between: at least once, in order.
    """

    def __init__(
        self,
        hook: Webhook,
        link: Link,
        keys: Keys,
        clock: FleetClock,
        may_send: Callable[[], bool],
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._hook = hook
        self._link = link
        self._waiting = keys.webhook(hook.id)
        self._clock = clock
        self._may_send = may_send
        self._jitter = jitter
        self._stop = threading.Event()
        #: Attempts that failed in a row.
        self._failures = 0

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="rts-webhook", daemon=True).start()

    def stop(self) -> None:
        """End after the message that is on its way; waits for nothing."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = POLL_S
            try:
                wait_s = self.step()
            except StoreUnavailable:
                pass  # logged already
            except Exception as exc:  # noqa: BLE001  the next message may go better
                health.count("webhook_errors")
                health.warn_once(
                    f"webhook:{type(exc).__name__}", "rts: a webhook failed", exc_info=True
                )
            self._stop.wait(wait_s)

    def step(self) -> float:
        """Try to deliver the oldest message; return the seconds to wait before the next.

        Raises:
            StoreUnavailable: Redis is away.
        """
        (text,) = self._link.call(pack("LINDEX", self._waiting, 0))
        if text is None:
            return POLL_S
        try:
            alert = Alert.from_json(text)
        except ValueError:
            alert = None
        if alert is None or self._clock.now() - alert.at > GIVE_UP_S:
            health.count("webhook_dropped")
            logger.error(
                "rts: a message for the webhook at %s is given up: it could not be delivered "
                "for a day",
                self._hook.shown,
            )
            return self._done(text, 0.0)
        if not self._may_send():
            return POLL_S
        try:
            self._send(alert)
        except NotDelivered as exc:
            health.count("webhook_failures")
            if not self._failures:  # one line per outage
                logger.warning(
                    "rts: the webhook at %s does not take a message: %s. It is tried again "
                    "for a day",
                    self._hook.shown,
                    exc,
                )
            self._failures += 1
            longest = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(self._failures - 1, 10))
            return longest * (0.5 + 0.5 * self._jitter())
        if self._failures:
            logger.warning("rts: the webhook at %s takes messages again", self._hook.shown)
        self._failures = 0
        health.count("webhook_delivered")
        return self._done(text, self._hook.min_interval_s)

    def _send(self, alert: Alert) -> None:
        body = body_of(alert, self._hook.format, self._hook.link)
        timestamp = str(int(self._clock.now()))
        headers = {"X-Rts-Id": alert.id, "X-Rts-Timestamp": timestamp}
        if self._hook.secret is not None:
            headers["X-Rts-Signature"] = signature(self._hook.secret, timestamp, body)
        post(self._hook, body, headers)

    def _done(self, text: bytes, wait_s: float) -> float:
        self._link.call(pack("LREM", self._waiting, 1, text))
        return wait_s
