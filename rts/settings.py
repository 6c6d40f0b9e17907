"""Settings: read from the app's configuration, validated once, handed down.

Each is an ordinary Celery setting (``app.conf.rts_…``), so it can stand in a
``celeryconfig.py``, in Django's settings under the app's namespace, or be set on
``app.conf``. Nothing reads the environment on import.
"""

from __future__ import annotations

import getpass
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from rts.deadlines import MAX_MULTIPLIER, MIN_MULTIPLIER
from rts.errors import ConfigurationError
from rts.keys import Keys
from rts.tasktypes import DEFAULT_TASK_TYPES, TYPE_NAME, TaskType

#: The environment variable that overrides ``rts_sla_multiplier``.
MULTIPLIER_VARIABLE = "SCHED_SLA_MULTIPLIER"

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
#: URL schemes that redis-py understands; kombu's sentinel:// is not among them.
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket")

_K_RANGE = f"a number from {MIN_MULTIPLIER} to {MAX_MULTIPLIER}"
_TYPES_RANGE = (
    "a dict of type name (letters, digits, - and _, at most 64) to tau in seconds > 0, or to "
    '{"tau": seconds, "sla_multiplier": ' + f"{MIN_MULTIPLIER} to {MAX_MULTIPLIER}" + "}"
)


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, validated. Field ``x`` is setting ``rts_x``."""

    enabled: bool = True
    #: Redis for taus and the outbox. Default: the broker's or the result
    #: backend's URL where that is Redis, else localhost.
    redis_url: str = field(default=DEFAULT_REDIS_URL, repr=False)
    #: MongoDB for the ledger; the path names the database.
    mongo_url: str = field(default="mongodb://localhost:27017/rts", repr=False)
    #: Start of every key in Redis; two installations with different prefixes
    #: share a server without seeing each other.
    key_prefix: str = "rts:"
    #: k of ``deadline = arrival + k·tau``, 1.5 to 2.5.
    sla_multiplier: float = 2.0
    #: k by message priority, e.g. ``{9: 1.5}``.
    priority_multipliers: Mapping[int, float] = field(default_factory=dict)
    #: The six default types and the app's own.
    task_types: Mapping[str, TaskType] = field(default_factory=lambda: dict(DEFAULT_TASK_TYPES))
    #: ``multiplier``: a fixed k; ``quantile``: the learned quantile of runtime over tau.
    deadline_policy: str = "multiplier"
    #: The share of runs that shall be in time on an idle system, with ``quantile``.
    quantile: float = 0.95
    #: Whether tasks published inside a task get no later deadline than it has, and the
    #: members of a chain one end-to-end deadline.
    propagate_deadline: bool = False
    #: λ of ``tau_new = λ·actual + (1 − λ)·tau_old``, above 0 to 1.
    learning_rate: float = 0.2
    #: Seconds that a deadline leaves beyond tau at least.
    min_slack: float = 1.0
    #: ``name``: the tau of (type, task name) once it has ``min_samples`` runs;
    #: ``type``: the type's only.
    tau_scope: str = "name"
    min_samples: int = 5
    #: Fields that are ever made in the tau hash; bounds Redis and metrics.
    max_types: int = 1000
    #: Seconds that the ledger keeps a record; 0 keeps for ever.
    ledger_ttl: float = 30 * 86400.0
    #: Records that the outbox holds at most; past that the oldest go.
    outbox_max: int = 1_000_000
    #: Folder for records that wait while Redis is away.
    spool_dir: str = ""
    #: Bytes that the spool holds at most; past that the oldest go.
    spool_max_bytes: int = 1 << 30
    #: Seconds to wait for a connection to Redis, in producers and workers.
    connect_timeout: float = 0.25
    #: Seconds to wait for an answer of Redis, in producers and workers.
    timeout: float = 0.5
    #: Seconds without a new attempt after Redis failed.
    breaker_period: float = 5.0
    #: Whether each worker drains the outbox into MongoDB. Turn it off where
    #: ``celery -A app rts drain`` does it elsewhere.
    drain: bool = True
    #: ``edf``: earliest deadline first, on Redis; ``priority``: deadlines as the
    #: priorities of other brokers; ``None``: the broker's own order.
    scheduler: str | None = None
    #: What happens to a waiting task that can no longer be in time: ``demote``
    #: (behind all that still can), ``keep`` (plain EDF) or ``drop`` (revoked).
    hopeless: str = "demote"
    #: Share of a worker's slots that demoted tasks may hold, at least one slot.
    hopeless_slots: float = 0.75
    #: Share of claims that serve the demoted task that has waited longest.
    late_share: float = 0.05
    #: ``deadline``, or ``deadline+work``: by deadline + 2·tau, under deep overload.
    order: str = "deadline"
    #: Queues that ``rts.route`` may choose from, by task type.
    routes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Seconds that stand in for a missing deadline, by queue; ``*``: all others.
    queue_horizons: Mapping[str, float] = field(default_factory=lambda: {"*": 20.0})

    @property
    def keys(self) -> Keys:
        """The names of everything in Redis."""
        return Keys(self.key_prefix)

    @classmethod
    def from_conf(
        cls, conf: Mapping[str, Any], environ: Mapping[str, str] | None = None
    ) -> Settings:
        """Read and validate the ``rts_…`` settings of a Celery configuration.

        *environ* is ``os.environ`` unless given.

        Raises:
            ConfigurationError: a setting is invalid or is not known; the message
                names the setting, the value and what is allowed.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for key, value in _given(conf).items():
            check = _CHECKS.get(key)
            if check is None:
                raise ConfigurationError(key, value, f"one of {', '.join(sorted(_CHECKS))}")
            if value is not None:
                values[key.removeprefix("rts_")] = check(key, value)
        if MULTIPLIER_VARIABLE in environ:
            values["sla_multiplier"] = _multiplier(
                MULTIPLIER_VARIABLE, environ[MULTIPLIER_VARIABLE]
            )
        values.setdefault("redis_url", _redis_of(conf))
        settings = cls(**values)
        if not settings.spool_dir:
            object.__setattr__(settings, "spool_dir", _default_spool_dir(settings))
        return settings

    def as_dict(self) -> dict[str, Any]:
        """Return plain values from which :meth:`from_dict` builds an equal object."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["task_types"] = {
            t.name: {"tau": t.tau, "sla_multiplier": t.sla_multiplier}
            for t in self.task_types.values()
        }
        plain["queue_horizons"] = dict(self.queue_horizons)
        plain["routes"] = dict(self.routes)
        plain["priority_multipliers"] = {
            str(priority): k for priority, k in self.priority_multipliers.items()
        }
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Settings:
        """Build settings from :meth:`as_dict`; they were validated before."""
        values = dict(plain)
        values["task_types"] = {
            name: TaskType(name, spec["tau"], spec["sla_multiplier"])
            for name, spec in values["task_types"].items()
        }
        values["priority_multipliers"] = {
            int(priority): k for priority, k in values["priority_multipliers"].items()
        }
        return cls(**values)


def _given(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rts settings that *conf* holds, by their plain lower-case names.

    With ``config_from_object(…, namespace="CELERY")`` Celery keeps the keys as
    they were written (``CELERY_RTS_REDIS_URL``) and knows the namespace.
    """
    keys = list(conf)  # loads what is still pending
    namespace = getattr(conf, "prefix", None) or ""
    given = {}
    for key in keys:
        if namespace and key.startswith(namespace):
            name = key.removeprefix(namespace).lower()
        else:
            name = key
        if name.startswith("rts_"):
            given[name] = conf[key]
    return given


def _redis_of(conf: Mapping[str, Any]) -> str:
    """Return the app's own Redis: its broker or result backend, else localhost."""
    for key in ("broker_url", "result_backend"):
        url = conf.get(key)
        if isinstance(url, list | tuple):
            url = url[0] if url else None
        if isinstance(url, str):
            url = url.split(";")[0]
            if urlsplit(url).scheme in REDIS_SCHEMES:
                return _plain_redis_url(url)
    return DEFAULT_REDIS_URL


def _plain_redis_url(url: str) -> str:
    """Return a kombu URL in the form that redis-py takes."""
    if url.startswith("redis+socket://"):
        url = "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    elif url.startswith(("redis:///", "rediss:///")):
        url = url.replace(":///", "://localhost/", 1)
    elif url in ("redis://", "rediss://"):
        url += "localhost"
    if url.startswith("rediss://"):
        # Celery writes ssl_cert_reqs=CERT_NONE, redis-py reads ssl_cert_reqs=none.
        for value in ("NONE", "OPTIONAL", "REQUIRED"):
            url = url.replace(f"=CERT_{value}", f"={value.lower()}")
    return url


def _default_spool_dir(settings: Settings) -> str:
    """Return a folder of this user for this installation, below the system's /tmp."""
    identity = f"{settings.redis_url}\n{settings.key_prefix}".encode()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    name = f"rts-spool-{user}-{hashlib.sha256(identity).hexdigest()[:12]}"
    return os.path.join(tempfile.gettempdir(), name)


def finite(value: object) -> float | None:
    """Return *value* as a finite float, ``None`` where it is no number (or a bool).

    Short strings that spell a number count: other languages send them so.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 32:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number(
    least: float, allowed: str, *, above: bool = False, most: float = math.inf
) -> Callable[[str, object], float]:
    """Return a check for a number of at least (or *above*) *least*, at most *most*."""

    def check(key: str, value: object) -> float:
        number = finite(value)
        if number is None or number > most or number < least or (above and number == least):
            raise ConfigurationError(key, value, allowed)
        return number

    return check


def _integer(least: int) -> Callable[[str, object], int]:
    def check(key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigurationError(key, value, f"a whole number, at least {least}")
        return value

    return check


def _boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(key, value, "True or False")
    return value


def _choice(*allowed: str) -> Callable[[str, object], str]:
    def check(key: str, value: object) -> str:
        if value not in allowed:
            raise ConfigurationError(key, value, " or ".join(repr(a) for a in allowed))
        return str(value)

    return check


def _redis_url(key: str, value: object) -> str:
    if not isinstance(value, str) or urlsplit(value).scheme not in REDIS_SCHEMES:
        raise ConfigurationError(
            key,
            _without_password(value),
            "a URL that begins with redis://, rediss:// or unix://",
        )
    return _plain_redis_url(value)


def _mongo_url(key: str, value: object) -> str:
    allowed = "a URL such as mongodb://host:27017/database (the path names the database)"
    if not isinstance(value, str) or not value.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigurationError(key, _without_password(value), allowed)
    return value


def _without_password(value: object) -> object:
    """Return *value* with what stands before an @ in it hidden."""
    if isinstance(value, str) and "@" in value:
        return "***@" + value.rpartition("@")[2]
    return value


def _key_prefix(key: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64 or not value.isprintable():
        raise ConfigurationError(key, value, "1 to 64 printable characters")
    return value


def _directory(key: str, value: object) -> str:
    if not isinstance(value, str | os.PathLike) or not os.path.isabs(value):
        raise ConfigurationError(key, value, "an absolute path of a folder")
    return os.fspath(value)


_multiplier = _number(MIN_MULTIPLIER, _K_RANGE, most=MAX_MULTIPLIER)
_tau = _number(0, _TYPES_RANGE, above=True, most=1e9)


def _task_types(key: str, value: object) -> dict[str, TaskType]:
    """Return the default types with those of *value* added or put in their place."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, value, _TYPES_RANGE)
    types = dict(DEFAULT_TASK_TYPES)
    for name, spec in value.items():
        if not isinstance(name, str) or not TYPE_NAME.fullmatch(name):
            raise ConfigurationError(key, name, _TYPES_RANGE)
        if isinstance(spec, Mapping):
            if not set(spec) <= {"tau", "sla_multiplier"} or "tau" not in spec:
                raise ConfigurationError(f"{key}[{name!r}]", dict(spec), _TYPES_RANGE)
            tau, k = _tau(f"{key}[{name!r}]", spec["tau"]), spec.get("sla_multiplier")
        else:
            tau, k = _tau(f"{key}[{name!r}]", spec), None
        if k is not None:
            k = _multiplier(f"{key}[{name!r}]['sla_multiplier']", k)
        types[name] = TaskType(name, tau, k)
    return types


def _priority_multipliers(key: str, value: object) -> dict[int, float]:
    allowed = f"a dict of priority (whole number) to {_K_RANGE}"
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, value, allowed)
    for priority in value:
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ConfigurationError(key, priority, allowed)
    return {priority: _multiplier(f"{key}[{priority}]", k) for priority, k in value.items()}


def _routes(key: str, value: object) -> dict[str, tuple[str, ...]]:
    allowed = "a dict of task type to a list of queue names"
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, value, allowed)
    for task_type, queues in value.items():
        fine = isinstance(task_type, str) and isinstance(queues, list | tuple) and queues
        if not fine or not all(isinstance(queue, str) and queue for queue in queues):
            raise ConfigurationError(f"{key}[{task_type!r}]", queues, allowed)
    return {task_type: tuple(queues) for task_type, queues in value.items()}


def _queue_horizons(key: str, value: object) -> dict[str, float]:
    allowed = "a dict of queue name, or '*', to seconds above 0"
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, value, allowed)
    for queue in value:
        if not isinstance(queue, str):
            raise ConfigurationError(key, queue, allowed)
    check = _number(0, allowed, above=True, most=1e9)
    return {queue: check(f"{key}[{queue!r}]", horizon) for queue, horizon in value.items()}


_seconds = "seconds, above 0"
_share = "a share from 0 to 1"
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "rts_enabled": _boolean,
    "rts_redis_url": _redis_url,
    "rts_mongo_url": _mongo_url,
    "rts_key_prefix": _key_prefix,
    "rts_sla_multiplier": _multiplier,
    "rts_priority_multipliers": _priority_multipliers,
    "rts_task_types": _task_types,
    "rts_deadline_policy": _choice("multiplier", "quantile"),
    "rts_quantile": _number(0.5, "a share from 0.5 to 0.999", most=0.999),
    "rts_propagate_deadline": _boolean,
    "rts_learning_rate": _number(0, "a number above 0, at most 1", above=True, most=1),
    "rts_min_slack": _number(0, "seconds, at least 0"),
    "rts_tau_scope": _choice("name", "type"),
    "rts_min_samples": _integer(1),
    "rts_max_types": _integer(len(DEFAULT_TASK_TYPES)),
    "rts_ledger_ttl": _number(0, "seconds, at least 0 (0 keeps for ever)"),
    "rts_outbox_max": _integer(1),
    "rts_spool_dir": _directory,
    "rts_spool_max_bytes": _integer(1),
    "rts_connect_timeout": _number(0, _seconds, above=True),
    "rts_timeout": _number(0, _seconds, above=True),
    "rts_breaker_period": _number(0, _seconds, above=True),
    "rts_drain": _boolean,
    "rts_scheduler": _choice("edf", "priority"),
    "rts_hopeless": _choice("demote", "keep", "drop"),
    "rts_hopeless_slots": _number(0, "a share above 0, at most 1", above=True, most=1),
    "rts_late_share": _number(0, _share, most=1),
    "rts_order": _choice("deadline", "deadline+work"),
    "rts_queue_horizons": _queue_horizons,
    "rts_routes": _routes,
}
