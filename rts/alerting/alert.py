"""One alert: what is wrong, from when on, and how it reads in a message."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from rts.validation import json_object

#: Version of the JSON document that webhooks get. Fields may be added to it.
VERSION = 1
#: States of an alert.
FIRING, RESOLVED = "firing", "resolved"
#: Characters of a summary, and of a label: names of queues are strangers' texts.
MAX_SUMMARY, MAX_LABEL = 500, 200


@dataclass(frozen=True, slots=True)
class Condition:
    """What is wrong now. An alert fires for each *key* that there is one of."""

    #: Stays the same while the trouble lasts.
    key: str
    #: One of ``rts.webhooks.EVENTS``.
    kind: str
    #: ``page`` or ``ticket``.
    severity: str
    summary: str
    labels: Mapping[str, str]
    values: Mapping[str, float]
    #: Key of a condition that says the same more urgently: while there is one, no alert
    #: begins with this one.
    covered_by: str | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that begins or ends. Instants are epoch seconds by the fleet's clock."""

    #: The same when it begins and when it ends; another one when it comes again.
    id: str
    key: str
    kind: str
    #: ``firing`` or ``resolved``.
    state: str
    severity: str
    summary: str
    labels: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    started_at: float = 0.0
    #: When this message was made.
    at: float = 0.0

    @classmethod
    def of(cls, condition: Condition, alert_id: str, now: float) -> Alert:
        """Return the alert that begins with *condition*."""
        return cls(
            alert_id,
            condition.key,
            condition.kind,
            FIRING,
            condition.severity,
            one_line(condition.summary)[:MAX_SUMMARY],
            {name: one_line(text)[:MAX_LABEL] for name, text in condition.labels.items()},
            dict(condition.values),
            now,
            now,
        )

    def to_json(self) -> str:
        """Return it as it stands in Redis."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Alert:
        """Read what :meth:`to_json` wrote; fields of newer versions are ignored.

        Raises:
            ValueError: it is no such text.
        """
        values = json_object(text, "an alert")
        try:
            alert = cls(**{name: values[name] for name in cls.__slots__ if name in values})
            float(alert.started_at), float(alert.at)
        except TypeError as exc:
            raise ValueError(f"not an alert: {exc}") from exc
        return alert


def json_document(alert: Alert, link: str | None) -> dict[str, Any]:
    """Return what a webhook of format ``json`` gets."""
    return {
        "version": VERSION,
        "id": alert.id,
        "key": alert.key,
        "kind": alert.kind,
        "state": alert.state,
        "severity": alert.severity,
        "summary": alert.summary,
        "labels": dict(alert.labels),
        "values": dict(alert.values),
        "started_at": _iso(alert.started_at),
        "ended_at": _iso(alert.at) if alert.state == RESOLVED else None,
        "links": {} if link is None else {"overview": link},
    }


def slack_document(alert: Alert, link: str | None) -> dict[str, Any]:
    """Return what a webhook of format ``slack`` gets.

    >>> slack_document(Alert("1", "k", "task_overdue", FIRING, "page", "<b> & @all"), None)
    {'text': ':red_circle: *firing* (page): &lt;b&gt; &amp; @all'}
    """
    icon = ":red_circle:" if alert.state == FIRING else ":white_check_mark:"
    text = f"{icon} *{alert.state}* ({alert.severity}): {escaped(alert.summary)}"
    return {"text": text if link is None else f"{text} <{link}|Look>"}


def body_of(alert: Alert, webhook_format: str, link: str | None) -> bytes:
    """Return the body of a message about *alert*."""
    make = slack_document if webhook_format == "slack" else json_document
    return json.dumps(make(alert, link), allow_nan=False).encode()


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of ``X-Rts-Signature``: HMAC-SHA256 of ``timestamp.body``."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return "sha256=" + digest.hexdigest()


def escaped(text: str) -> str:
    """Return *text* so that Slack shows it as text: no links, mentions or lines of it.

    >>> escaped("<!channel> & <http://evil|ok>")
    '&lt;!channel&gt; &amp; &lt;http://evil|ok&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def one_line(text: str) -> str:
    """Return *text* without what breaks lines or has no shape.

    >>> one_line("a" + chr(10) + "b" + chr(0x202e))
    'a b '
    """
    return "".join(c if c.isprintable() else " " for c in text)


def _iso(at: float) -> str:
    instant = datetime.fromtimestamp(at, timezone.utc)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
