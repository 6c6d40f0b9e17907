"""One alert: what is wrong, since when, and how it reads in a message."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from rts.health import one_line
from rts.validation import json_object
from rts.views.json_values import plain, utc

#: Version of the JSON document that webhooks get. New fields do not change it.
VERSION = 1
#: States of an alert.
FIRING, RESOLVED = "firing", "resolved"
#: Maximum length of a summary, and of a label: names of queues are untrusted text.
MAX_SUMMARY, MAX_LABEL = 500, 200
#: What the code relies on in an alert that another version may have stored.
_KINDS = {"severity": str, "summary": str, "labels": dict, "values": dict}


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now. One alert fires for each *key*."""

    #: Stays the same while the condition lasts.
    key: str
    #: One of ``rts.webhooks.EVENTS``.
    kind: str
    #: ``page`` or ``ticket``.
    severity: str
    summary: str
    labels: Mapping[str, str]
    values: Mapping[str, float]
    #: Key of a more urgent condition that says the same: while that one holds, no alert starts
    #: for this one.
    covered_by: str | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that starts firing or ends. Instants: epoch seconds by the fleet's clock."""

    #: The same when it fires and when it is resolved; a new one when it recurs.
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
    #: When this message was created.
    at: float = 0.0

    @classmethod
    def of(cls, condition: Condition, alert_id: str, now: float) -> Alert:
        """Return the alert that *condition* starts."""
        return cls(
            id=alert_id,
            key=condition.key,
            kind=condition.kind,
            state=FIRING,
            severity=condition.severity,
            summary=one_line(condition.summary, MAX_SUMMARY),
            labels={n: one_line(text, MAX_LABEL) for n, text in condition.labels.items()},
            values=dict(condition.values),
            started_at=now,
            at=now,
        )

    def to_json(self) -> str:
        """Return it as stored in Redis."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Alert:
        """Read what :meth:`to_json` wrote; fields of newer versions are ignored.

        Raises:
            ValueError: *text* is not such a document.
        """
        values = json_object(text, "an alert")
        try:
            alert = cls(**{name: values[name] for name in cls.__slots__ if name in values})
            instants = utc(alert.started_at), utc(alert.at)
        except TypeError as exc:
            raise ValueError(f"not an alert: {exc}") from exc
        if None in instants:
            raise ValueError("not an alert: its instants are none")
        for name, kind in _KINDS.items():
            if not isinstance(getattr(alert, name), kind):
                raise ValueError(f"not an alert: {name} is no {kind.__name__}")
        return alert


def json_document(alert: Alert, link: str | None) -> dict[str, Any]:
    """Return the document for a webhook of format ``json``."""
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
        "started_at": utc(alert.started_at),
        "ended_at": utc(alert.at) if alert.state == RESOLVED else None,
        "links": {} if link is None else {"overview": link},
    }


def slack_document(alert: Alert, link: str | None) -> dict[str, Any]:
    """Return the document for a webhook of format ``slack``, with what Slack would take for a
    link or a mention escaped.

    >>> slack_document(Alert("1", "k", "task_overdue", FIRING, "page", "<b> & @all"), None)
    {'text': ':red_circle: *firing* (page): &lt;b&gt; &amp; @all'}
    """
    summary = escape(alert.summary, quote=False)
    if alert.state == FIRING:
        text = f":red_circle: *firing* ({alert.severity}): {summary}"
    else:  # the summary is of when it began
        text = f":white_check_mark: *resolved* ({alert.severity}), was: {summary}"
    return {"text": text if link is None else f"{text} <{link}|Details>"}


def body_of(alert: Alert, webhook_format: str, link: str | None) -> bytes:
    """Return the body of a message about *alert*."""
    make = slack_document if webhook_format == "slack" else json_document
    return json.dumps(plain(make(alert, link)), allow_nan=False).encode()


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of ``X-Rts-Signature``: HMAC-SHA256 of ``timestamp.body``."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return "sha256=" + digest.hexdigest()
