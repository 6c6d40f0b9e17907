"""Webhooks: where to send alerts, from ``rts_webhooks``.

Their URLs and secrets are credentials: neither appears in errors, log lines or what a
command prints. :attr:`Webhook.shown` does instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard
from urllib.parse import urlsplit

from rts.errors import ConfigurationError
from rts.fields import plain
from rts.urls import redacted_host

#: What alerts are sent for.
SLO_BURNING, TASK_OVERDUE = EVENTS = ("slo_burning", "task_overdue")
FORMATS = ("json", "slack")
#: Default of ``min_interval``, seconds.
INTERVAL_S = 1.0
#: Age in seconds at which a message is dropped, and so the maximum of ``min_interval``.
GIVE_UP_S = 86400.0
#: More are a mistake: each has a thread and a queue of its own.
MAX_WEBHOOKS = 20
#: Minimum length of a secret: shorter ones can be guessed.
MIN_SECRET = 8

_ALLOWED = (
    'a list of at most 20 dicts {"url": "https://…", "secret": at least 8 characters, '
    '"format": "json" or "slack", "events": a list of "slo_burning" and "task_overdue", '
    '"min_interval": seconds, 0 to 86400, "link": a URL for people}, all but "url" optional'
)


@dataclass(frozen=True, slots=True)
class Webhook:
    """One receiver of alerts."""

    #: ``http://`` or ``https://``; user and password in it are sent as basic
    #: authentication.
    url: str = field(repr=False)
    #: Key of the signature; ``None``: messages are not signed.
    secret: str | None = field(default=None, repr=False)
    format: str = "json"
    events: tuple[str, ...] = EVENTS
    #: Seconds between two messages, at least.
    min_interval_s: float = INTERVAL_S
    #: Page with details for people, such as Flower's overview.
    link: str | None = None

    @property
    def shown(self) -> str:
        """Scheme and host: a path may be as secret as a password (Slack's is)."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def id(self) -> str:
        """Name of its queue in Redis, which does not reveal the URL."""
        return hashlib.sha256(f"{self.format} {self.url}".encode()).hexdigest()[:16]


def read_webhooks(key: str, value: object) -> tuple[Webhook, ...]:
    """Return the webhooks in *value*, of the setting *key*.

    Raises:
        ConfigurationError: it is invalid; the message shows no secret, and of a URL only
            scheme and host.
    """
    if not isinstance(value, list | tuple):
        raise ConfigurationError(key, f"a {type(value).__name__}", _ALLOWED)
    if len(value) > MAX_WEBHOOKS:
        raise ConfigurationError(key, f"{len(value)} webhooks", _ALLOWED)
    hooks = tuple(_webhook(f"{key}[{i}]", given) for i, given in enumerate(value))
    for i, hook in enumerate(hooks):
        if hook.id in (other.id for other in hooks[:i]):
            raise ConfigurationError(
                f"{key}[{i}]['url']", "a URL that is there twice", _ALLOWED
            )
    return hooks


def _webhook(key: str, given: object) -> Webhook:
    if not isinstance(given, Mapping):
        raise ConfigurationError(key, f"a {type(given).__name__}", _ALLOWED)
    for name in given:
        if name not in ("url", "secret", "format", "events", "min_interval", "link"):
            raise ConfigurationError(f"{key}, key", name, _ALLOWED)
    if "url" not in given:
        raise ConfigurationError(key, "a dict without url", _ALLOWED)
    url, secret, link = given.get("url"), given.get("secret"), given.get("link")
    chosen, events = given.get("format", "json"), given.get("events")
    interval = given.get("min_interval", INTERVAL_S)
    if not _is_url(url):
        raise ConfigurationError(f"{key}['url']", redacted_host(url), _ALLOWED)
    if secret is not None and not _is_secret(secret):
        raise ConfigurationError(f"{key}['secret']", "***", _ALLOWED)
    if chosen not in FORMATS:
        raise ConfigurationError(f"{key}['format']", chosen, _ALLOWED)
    if events is not None and not (
        isinstance(events, list | tuple) and events and all(e in EVENTS for e in events)
    ):
        raise ConfigurationError(f"{key}['events']", events, _ALLOWED)
    is_number = isinstance(interval, int | float) and not isinstance(interval, bool)
    if not is_number or not 0 <= interval <= GIVE_UP_S:
        raise ConfigurationError(f"{key}['min_interval']", interval, _ALLOWED)
    if link is not None and not _is_url(link):
        raise ConfigurationError(f"{key}['link']", redacted_host(link), _ALLOWED)
    return Webhook(url, secret, plain(chosen), tuple(events or EVENTS), float(interval), link)


def _is_secret(value: object) -> bool:
    """Return whether *value* can sign messages: not undecodable bytes of the environment."""
    if not isinstance(value, str) or len(value) < MIN_SECRET:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_url(value: object) -> TypeGuard[str]:
    """Return whether *value* is a URL that can be requested over HTTP."""
    if not isinstance(value, str) or len(value) > 2048:
        return False
    if not (value.isascii() and value.isprintable()) or " " in value:
        return False
    try:
        parts = urlsplit(value)
        valid_port = parts.port != 0
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and valid_port
