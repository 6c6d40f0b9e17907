"""The alerts that fire now, in Redis: each starts once and ends once, whoever leads."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace

from rts.alerting.alert import RESOLVED, Alert, Condition
from rts.clock import FleetClock
from rts.link.link import Link
from rts.link.scripts import UPDATE_ALERT, pack
from rts.notices import MAX_EVENTS, SloBurning
from rts.settings import Settings
from rts.webhooks import SLO_BURNING

#: Messages that are queued for one webhook at most; past that the oldest are dropped, counted.
MAX_WAITING = 1000
#: Seconds that messages are kept for a webhook, which may have been removed from the settings.
KEEP_S = 2 * 86400
#: Seconds for which an alert keeps firing without a leader: with nobody left to resolve it, it
#: must not fire for ever.
UNLED_S = 86400


class AlertStore:
    """Starts and ends alerts, and queues the messages about them.

    Args:
        quiet_s: by kind, seconds for which a condition must be gone before its alert
            ends, so that a flapping one is reported once.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        clock: FleetClock,
        *,
        quiet_s: dict[str, float],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._keys = settings.keys
        self._hooks = settings.webhooks
        self._clock = clock
        self._quiet_s = quiet_s
        self._now = now
        #: By key of an alert: the monotonic instant since when its condition is gone.
        self._gone: dict[str, float] = {}

    def update(
        self,
        kinds: Collection[str],
        conditions: Sequence[Condition],
        others: Sequence[Condition] = (),
    ) -> int:
        """Start alerts for *conditions*, and end those of *kinds* without one; return how many
        started or ended. *others* start none, but those that they have go on.
        """
        reply, _ = self._link.call(
            pack("HGETALL", self._keys.alerts), pack("EXPIRE", self._keys.alerts, UNLED_S)
        )
        stored = dict(zip(reply[::2], reply[1::2], strict=True))
        changed = 0
        there = (*conditions, *others)
        present = {condition.key.encode() for condition in there}
        holding = present | stored.keys()
        for condition in there:
            self._gone.pop(condition.key, None)
        for condition in conditions:
            covered = (condition.covered_by or "").encode() in holding
            if condition.key.encode() not in stored and not covered:
                alert = Alert.of(condition, secrets.token_hex(16), self._clock.now())
                changed += self._transition(b"", alert.to_json(), alert)
        for key, text in stored.items():
            if key in present:
                continue
            try:
                alert = Alert.from_json(text)
                notice_of(alert)
            except (ValueError, KeyError):  # of another version: it starts again
                self._link.call(pack("HDEL", self._keys.alerts, key))
                continue
            if alert.kind in kinds and self._is_over(alert):
                ended = replace(alert, state=RESOLVED, at=self._clock.now())
                changed += self._transition(text, "", ended)
        return changed

    def _is_over(self, alert: Alert) -> bool:
        now = self._now()
        since = self._gone.setdefault(alert.key, now)
        if now - since < self._quiet_s.get(alert.kind, 0.0):
            return False
        del self._gone[alert.key]
        return True

    def _transition(self, was: bytes, becomes: str, alert: Alert) -> int:
        keys = self._keys
        queues = [keys.webhook(hook.id) for hook in self._hooks if alert.kind in hook.events]
        notice = notice_of(alert)
        call = UPDATE_ALERT.pack(
            [keys.alerts, keys.events, keys.counters, *queues],
            [
                alert.key,
                was,
                becomes,
                alert.to_json(),
                "" if notice is None else json.dumps(asdict(notice)),
                MAX_EVENTS,
                MAX_WAITING,
                KEEP_S,
            ],
        )
        return int(self._link.call(call)[0])


def notice_of(alert: Alert) -> SloBurning | None:
    """Return the notice about an alert for receivers of ``rts.signals.slo_burning``; ``None``
    if it is of another kind.
    """
    if alert.kind != SLO_BURNING:
        return None
    return SloBurning(
        objective=alert.labels["objective"],
        target=alert.values["target"],
        severity=alert.severity,
        state=alert.state,
        burn_rate=alert.values["burn_rate"],
        window=alert.labels["window"],
        budget_left_ratio=alert.values["budget_left_ratio"],
        seen_at=alert.at,
    )


def firing(link: Link, settings: Settings) -> list[Alert]:
    """Return the alerts that fire now, the oldest first."""
    (texts,) = link.call(pack("HVALS", settings.keys.alerts))
    alerts = []
    for text in texts:
        try:
            alerts.append(Alert.from_json(text))
        except ValueError:
            continue  # of another version
    return sorted(alerts, key=lambda alert: (alert.started_at, alert.key))
