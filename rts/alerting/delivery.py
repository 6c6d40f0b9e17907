"""Delivers the messages of one webhook in order, and retries until they are received."""

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
from rts.webhooks import GIVE_UP_S, Webhook

logger = logging.getLogger("rts.alerts")

#: Seconds between polls for a new message.
POLL_S = 0.5
#: Back-off before the second attempt, and its maximum, in seconds.
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0


class WebhookDelivery:
    """The thread of one webhook, so that a slow receiver delays nothing else.

    A message is removed from its list only after it was received, so the next leader sends it
    again if this one is killed in between: at least once, in order.
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
        #: Consecutive attempts that failed.
        self._failures = 0

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="rts-webhook", daemon=True).start()

    def stop(self) -> None:
        """Stop after the message in flight, without waiting for it."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = POLL_S
            try:
                wait_s = self.step()
            except StoreUnavailable:
                pass  # logged already
            except Exception as exc:  # noqa: BLE001  the next message may succeed
                health.count("webhook_errors")
                health.warn_once(
                    f"webhook:{type(exc).__name__}",
                    "rts: a webhook failed and is tried again. This is a bug in rts: please "
                    "report it with the traceback",
                    exc_info=True,
                )
            self._stop.wait(wait_s)

    def step(self) -> float:
        """Try to deliver the oldest message; return the seconds to wait before the next."""
        (text,) = self._link.call(pack("LINDEX", self._waiting, 0))
        if text is None:
            return POLL_S
        try:
            alert = Alert.from_json(text)
        except ValueError:
            return self._drop(text, "is not an alert")
        if self._clock.now() - alert.at > GIVE_UP_S:
            return self._drop(text, "could not be delivered for a day")
        if not self._may_send():
            return POLL_S
        try:
            self._send(alert)
        except NotDelivered as exc:
            return self._failed(exc)
        if self._failures:
            logger.warning("rts: the webhook at %s accepts messages again", self._hook.shown)
        self._failures = 0
        health.count("webhook_delivered")
        self._remove(text)
        return self._hook.min_interval_s

    def _drop(self, text: bytes, why: str) -> float:
        health.count("webhook_dropped")
        logger.error(
            "rts: dropped a message for the webhook at %s: it %s", self._hook.shown, why
        )
        self._remove(text)
        return 0.0

    def _failed(self, exc: NotDelivered) -> float:
        """Count and log a failed attempt; return the seconds until the next one."""
        health.count("webhook_failures")
        if not self._failures:  # one line per outage
            logger.warning(
                "rts: the webhook at %s does not accept a message: %s. Retrying for up to "
                "a day",
                self._hook.shown,
                exc,
            )
        self._failures += 1
        longest = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(self._failures - 1, 10))
        return longest * (0.5 + 0.5 * self._jitter())

    def _send(self, alert: Alert) -> None:
        body = body_of(alert, self._hook.format, self._hook.link)
        timestamp = str(int(self._clock.now()))
        headers = {"X-Rts-Id": alert.id, "X-Rts-Timestamp": timestamp}
        if self._hook.secret is not None:
            headers["X-Rts-Signature"] = signature(self._hook.secret, timestamp, body)
        post(self._hook, body, headers)

    def _remove(self, text: bytes) -> None:
        self._link.call(pack("LREM", self._waiting, 1, text))
