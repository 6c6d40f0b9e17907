"""Settings: read from the app's configuration, validated once, handed down.

Each is an ordinary Celery setting (``app.conf.rts_…``), so it can stand in a
``celeryconfig.py``, in Django's settings under the app's namespace, or be set on
``app.conf``. Nothing reads the environment on import.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import SequenceMatcher
from typing import Any, TypeVar

from rts import validation as checks
from rts.deadlines import HOPELESS_SLOTS, HORIZON_S, LATE_SHARE
from rts.errors import ConfigurationError
from rts.keys import Keys
from rts.mongo_urls import mongo_url
from rts.tasktypes import DEFAULT_TASK_TYPES, TaskType
from rts.urls import is_redis, place_of, redacted_host, redis_url, with_tls
from rts.webhooks import Webhook, read_webhooks

#: The environment variable that overrides ``rts_sla_multiplier``.
MULTIPLIER_VARIABLE = "SCHED_SLA_MULTIPLIER"

DEFAULT_REDIS_URL = "redis://localhost:6379/0"

_T = TypeVar("_T")


def _setting(default: _T, check: Callable[[str, Any], _T], *, secret: bool = False) -> _T:
    """Return a field of :class:`Settings`. *check* reads values from outside (see
    :mod:`rts.validation`). All share one *default* object, which nobody changes. *secret*: the
    value may contain passwords or tokens.
    """
    return field(default_factory=lambda: default, repr=not secret, metadata={"check": check})


@dataclass(frozen=True)
class Settings:
    """All settings, validated. Field ``x`` is setting ``rts_x``."""

    enabled: bool = _setting(True, checks.boolean)
    #: Redis for taus and the outbox. Default: the broker's or the result
    #: backend's URL where that is Redis, else localhost.
    redis_url: str = _setting(DEFAULT_REDIS_URL, redis_url, secret=True)
    #: MongoDB for the ledger; the path names the database.
    mongo_url: str = _setting("mongodb://localhost:27017/rts", mongo_url, secret=True)
    #: Prefix of every key in Redis; installations with different prefixes can
    #: share a server without seeing each other.
    key_prefix: str = _setting("rts:", checks.key_prefix)
    #: k of ``deadline = arrival + k·tau``, 1.5 to 2.5.
    sla_multiplier: float = _setting(2.0, checks.multiplier)
    #: k by message priority, e.g. ``{9: 1.5}``.
    priority_multipliers: Mapping[int, float] = _setting({}, checks.priority_multipliers)
    #: The six default types and the app's own.
    task_types: Mapping[str, TaskType] = _setting(DEFAULT_TASK_TYPES, checks.task_types)
    #: ``multiplier``: a fixed k; ``quantile``: the learned quantile of runtime over tau.
    deadline_policy: str = _setting("multiplier", checks.choice("multiplier", "quantile"))
    #: With ``quantile``: the share of runs that should be on time on an idle system.
    quantile: float = _setting(
        0.95, checks.number(0.5, "a share from 0.5 to 0.999", most=0.999)
    )
    #: Whether tasks published inside a task get no later deadline than it has, and the
    #: members of a chain one end-to-end deadline.
    propagate_deadline: bool = _setting(False, checks.boolean)
    #: λ of ``tau_new = λ·actual + (1 − λ)·tau_old``, above 0 to 1.
    learning_rate: float = _setting(
        0.2, checks.number(0, "a number above 0, at most 1", above=True, most=1)
    )
    #: Seconds that a deadline leaves beyond tau, at least.
    min_slack: float = _setting(1.0, checks.number(0, "seconds, at least 0"))
    #: ``name``: the tau of (type, task name) once it has ``min_samples`` runs;
    #: ``type``: the type's only.
    tau_scope: str = _setting("name", checks.choice("name", "type"))
    min_samples: int = _setting(5, checks.integer(1))
    #: Most fields in the tau hash; bounds Redis and metrics.
    max_types: int = _setting(1000, checks.integer(len(DEFAULT_TASK_TYPES)))
    #: Seconds that the ledger keeps a record; 0 keeps for ever.
    ledger_ttl: float = _setting(
        30 * 86400.0, checks.number(0, "seconds, at least 0 (0 keeps for ever)")
    )
    #: Most records in the outbox; beyond that the oldest are dropped.
    outbox_max: int = _setting(1_000_000, checks.integer(1))
    #: Most tasks that are tracked as published and not ended, and as many of those that
    #: are overdue.
    open_max: int = _setting(1_000_000, checks.integer(0))
    #: Folder for records that wait while Redis is away.
    spool_dir: str = _setting("", checks.directory)
    #: Most bytes in the spool; beyond that the oldest are dropped.
    spool_max_bytes: int = _setting(1 << 30, checks.integer(1))
    #: Seconds to wait for a connection to Redis, in producers and workers.
    connect_timeout: float = _setting(0.25, checks.seconds)
    #: Seconds to wait for a reply from Redis, in producers and workers.
    timeout: float = _setting(0.5, checks.seconds)
    #: Seconds without a new attempt after Redis failed.
    breaker_period: float = _setting(5.0, checks.seconds)
    #: Whether each worker drains the outbox into MongoDB. Turn it off where
    #: ``celery -A proj rts drain`` does it elsewhere.
    drain: bool = _setting(True, checks.boolean)
    #: ``edf``: earliest deadline first, on Redis; ``priority``: deadlines as the
    #: priorities of other brokers; ``None``: the broker's own order.
    scheduler: str | None = _setting(None, checks.choice("edf", "priority", None))
    #: What happens to a waiting task that can no longer be on time: ``demote``
    #: (behind all that still can), ``keep`` (plain EDF) or ``drop`` (revoked).
    hopeless: str = _setting("demote", checks.choice("demote", "keep", "drop"))
    #: Share of a worker's slots that demoted tasks may hold, at least one slot.
    hopeless_slots: float = _setting(
        HOPELESS_SLOTS, checks.number(0, "a share above 0, at most 1", above=True, most=1)
    )
    #: Share of claims that serve the demoted task that has waited longest.
    late_share: float = _setting(LATE_SHARE, checks.number(0, "a share from 0 to 1", most=1))
    #: ``deadline``, or ``deadline+work``: by deadline + 2·tau, for deep overload.
    order: str = _setting("deadline", checks.choice("deadline", "deadline+work"))
    #: Queues that ``rts.route`` may choose from, by task type.
    routes: Mapping[str, tuple[str, ...]] = _setting({}, checks.routes)
    #: Relative deadline, seconds, of messages without one, by queue; ``*``: all others.
    queue_horizons: Mapping[str, float] = _setting({"*": HORIZON_S}, checks.queue_horizons)
    #: Objectives: the share of tasks that should be on time, by task name, queue or task
    #: type (a name takes precedence over a queue, that over a type); ``*``: all others.
    slo: Mapping[str, float] = _setting({"*": 0.95}, checks.objectives)
    #: Seconds of the error budget; what the ledger no longer keeps does not count.
    slo_window: float = _setting(
        30 * 86400.0, checks.number(3600, "seconds, from 3600 to 1e9", most=1e9)
    )
    #: Verdicts that an alert needs in its long window.
    slo_min_events: int = _setting(10, checks.integer(1))
    #: Where to send alerts, with credentials.
    webhooks: tuple[Webhook, ...] = _setting((), read_webhooks, secret=True)

    @property
    def keys(self) -> Keys:
        """The names of all keys in Redis."""
        return Keys(self.key_prefix)

    @property
    def budget_window_s(self) -> float:
        """Seconds of the error budget: at most what the ledger keeps."""
        return min(self.slo_window, self.ledger_ttl or self.slo_window)

    @classmethod
    def from_conf(
        cls, conf: Mapping[str, Any], environ: Mapping[str, str] | None = None
    ) -> Settings:
        """Read and validate the ``rts_…`` settings of a Celery configuration.

        *environ* is ``os.environ`` unless given.

        Raises:
            ConfigurationError: a setting is invalid or unknown; the message names
                the setting, the value and what is allowed.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for key, value in _given(conf).items():
            check = CHECKS.get(key)
            if check is None:
                raise _unknown(key, value)
            if value is not None:
                values[key.removeprefix("rts_")] = check(key, value)
        if given := environ.get(MULTIPLIER_VARIABLE):  # Compose sets empty ones
            values["sla_multiplier"] = checks.multiplier(MULTIPLIER_VARIABLE, given)
        values.setdefault("redis_url", _redis_of(conf, environ))
        settings = cls(**values)
        for task_type in settings.routes:
            if task_type not in settings.task_types:
                allowed = f"the task types {', '.join(settings.task_types)}"
                raise ConfigurationError("rts_routes, key", task_type, allowed)
        if not settings.spool_dir:
            settings = replace(settings, spool_dir=_default_spool_dir(settings))
        return settings

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Settings:
        """Build settings from the ``dataclasses.asdict`` of others, as read from JSON, without
        validating them again.
        """
        values = dict(plain)
        values["task_types"] = {
            name: TaskType(**kind) for name, kind in values["task_types"].items()
        }
        values["webhooks"] = tuple(
            Webhook(**{**hook, "events": tuple(hook["events"])}) for hook in values["webhooks"]
        )
        values["priority_multipliers"] = {
            int(priority): k for priority, k in values["priority_multipliers"].items()
        }
        values["routes"] = {t: tuple(queues) for t, queues in values["routes"].items()}
        return cls(**values)


#: The check of each setting, by its name.
CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    f"rts_{each.name}": each.metadata["check"] for each in fields(Settings)
}


def _unknown(key: str, value: object) -> ConfigurationError:
    """Return the error for a setting that there is not."""
    # The most similar name first: it is probably a typo.
    names = sorted(CHECKS, key=lambda name: -SequenceMatcher(None, key, name).ratio())
    # The value may be a URL with a password, or a webhook's.
    return ConfigurationError(key, redacted_host(value), f"the settings {', '.join(names)}")


def _given(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rts settings in *conf*, by their plain lower-case names.

    With ``config_from_object(…, namespace="CELERY")`` Celery keeps the keys as
    they were written (``CELERY_RTS_REDIS_URL``) and knows the namespace.
    """
    keys = list(conf)  # loads a configuration that is still lazy
    # What is set in code comes last and so wins, as with Celery >= 5.7. It may be spelled in
    # another way.
    changes = getattr(conf, "changes", {})
    keys = [*(key for key in keys if key not in changes), *changes]
    namespace = getattr(conf, "prefix", None) or ""
    given = {}
    for key in keys:
        if namespace and key.startswith(namespace):
            name = key.removeprefix(namespace).lower()
        elif not namespace and key.lower() in CHECKS:
            name = key.lower()  # together with Celery's old, upper-case names
        else:
            name = key
        if name.startswith("rts_"):
            given[name] = conf[key]
    return given


#: Celery's settings that may name a Redis, with the setting for TLS that goes with each.
_URLS = {
    **dict.fromkeys(("broker_url", "broker_write_url", "broker_read_url"), "broker_use_ssl"),
    "result_backend": "redis_backend_use_ssl",
}

#: Environment variables that take precedence over an app's settings: ours, and Celery's.
OVERRIDING = (MULTIPLIER_VARIABLE, *(f"CELERY_{key.upper()}" for key in _URLS))


def _redis_of(conf: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the app's own Redis: its broker or result backend, else localhost.

    Like Celery, the environment first, which ``celery -b URL`` sets too.
    """
    for key, tls in _URLS.items():
        variable = f"CELERY_{key.upper()}"
        given = environ.get(variable)
        url = given or conf.get(key)
        if isinstance(url, list | tuple):
            url = url[0] if url else None
        if isinstance(url, str):
            url = url.split(";")[0]
            if is_redis(url):
                url = redis_url(variable if given else key, url)
                return with_tls(url, conf.get(tls))
    return DEFAULT_REDIS_URL


def _default_spool_dir(settings: Settings) -> str:
    """Return a folder of this user for this installation, below the system's /tmp."""
    # Without the password: records that wait while it changes must be found with the new one.
    identity = f"{place_of(settings.redis_url)}\n{settings.key_prefix}".encode()
    try:  # not from the environment, where sudo -E and --uid leave another user's name
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user need not have a name
        user = str(os.geteuid())
    name = f"rts-spool-{user}-{hashlib.sha256(identity).hexdigest()[:12]}"
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # a container whose file systems are all read-only
        folder = "/tmp"  # the spool logs that it cannot write there, and is bypassed
    return os.path.join(folder, name)
