"""Checks of values from outside: of JSON, of numbers, and of each setting, where an invalid
value fails with what is allowed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from rts.deadlines import MAX_MULTIPLIER, MIN_MULTIPLIER
from rts.errors import ConfigurationError
from rts.mongo_urls import mongo_url
from rts.objectives import MAX_TARGET, MIN_TARGET
from rts.tasktypes import DEFAULT_TASK_TYPES, TYPE_NAME, TaskType
from rts.urls import redis_url
from rts.webhooks import read_webhooks

#: The longest duration, seconds: timeouts of sockets and dates overflow some way beyond it.
_MOST_S = 1e9
_K_RANGE = f"a number from {MIN_MULTIPLIER} to {MAX_MULTIPLIER}"
_TYPES_RANGE = (
    "a dict of type name (letters, digits, - and _, at most 64) to tau in seconds > 0, or to "
    '{"tau": seconds, "sla_multiplier": ' + f"{MIN_MULTIPLIER} to {MAX_MULTIPLIER}" + "}"
)
_SECONDS = "seconds, above 0, at most 1e9"
_SHARE = "a share from 0 to 1"
_PRIORITIES = f"a dict of priority (whole number) to {_K_RANGE}"
_HORIZONS = "a dict of queue name, or '*', to seconds above 0"
_ROUTES = "a dict of task type to a list of queue names"
_OBJECTIVES = (
    "a dict of task type, task name, queue or '*' to the share of tasks that should be on "
    f"time, {MIN_TARGET} to {MAX_TARGET}"
)


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the object in *text*, JSON that anybody may have written.

    Raises:
        ValueError: it is not an object; the message names *what* it should be.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} must not be nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be an object")
    return values


def finite(value: object) -> float | None:
    """Return *value* as a finite float; ``None`` where it is not a number, or a bool.

    Short strings that spell a number count: producers in other languages send those.
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
        if not _is_whole(value) or value < least:
            raise ConfigurationError(key, value, f"a whole number, at least {least}")
        return value

    return check


def _boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(key, value, "True or False")
    return value


def _choice(*allowed: str | None) -> Callable[[str, object], str]:
    # ``None``, meaning the default, is never checked: it is only named in the message.
    def check(key: str, value: object) -> str:
        if value not in allowed:
            raise ConfigurationError(key, value, " or ".join(repr(a) for a in allowed))
        return str(value)

    return check


def _key_prefix(key: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64 or not value.isprintable():
        raise ConfigurationError(key, value, "1 to 64 printable characters")
    return value


def _directory(key: str, value: object) -> str:
    if not isinstance(value, str | os.PathLike) or not os.path.isabs(value):
        raise ConfigurationError(key, value, "an absolute path of a folder")
    # Path drops a slash at the end, after which the folder would be taken for its own parent,
    # and keeps each "..", which after a symbolic link leads elsewhere than its name says.
    return str(Path(value))


multiplier = _number(MIN_MULTIPLIER, _K_RANGE, most=MAX_MULTIPLIER)
_tau = _number(0, _TYPES_RANGE, above=True, most=_MOST_S)


def _task_types(key: str, value: object) -> dict[str, TaskType]:
    """Return the default types, with those of *value* added or replacing them."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, value, _TYPES_RANGE)
    types = dict(DEFAULT_TASK_TYPES)
    for name, spec in value.items():
        if not isinstance(name, str) or not TYPE_NAME.fullmatch(name):
            raise ConfigurationError(key, name, _TYPES_RANGE)
        name = str.__str__(name)  # a plain str: an enum member prints differently
        if isinstance(spec, Mapping):
            if not set(spec) <= {"tau", "sla_multiplier"} or "tau" not in spec:
                raise ConfigurationError(f"{key}[{name!r}]", dict(spec), _TYPES_RANGE)
            tau, k = _tau(f"{key}[{name!r}]", spec["tau"]), spec.get("sla_multiplier")
        else:
            tau, k = _tau(f"{key}[{name!r}]", spec), None
        if k is not None:
            k = multiplier(f"{key}[{name!r}]['sla_multiplier']", k)
        types[name] = TaskType(name, tau, k)
    return types


def _mapping(
    allowed: str, is_key: Callable[[object], bool], check_value: Callable[[str, Any], Any]
) -> Callable[[str, object], dict[Any, Any]]:
    """Return a check for a mapping, by its keys and values."""

    def check(key: str, value: object) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise ConfigurationError(key, value, allowed)
        for name in value:
            if not is_key(name):
                raise ConfigurationError(key, name, allowed)
        return {name: check_value(f"{key}[{name!r}]", each) for name, each in value.items()}

    return check


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _queues(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(map(_is_name, value)):
        raise ConfigurationError(key, value, _ROUTES)
    return tuple(value)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "rts_enabled": _boolean,
    "rts_redis_url": redis_url,
    "rts_mongo_url": mongo_url,
    "rts_key_prefix": _key_prefix,
    "rts_sla_multiplier": multiplier,
    "rts_priority_multipliers": _mapping(_PRIORITIES, _is_whole, multiplier),
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
    "rts_open_max": _integer(0),
    "rts_spool_dir": _directory,
    "rts_spool_max_bytes": _integer(1),
    "rts_connect_timeout": _number(0, _SECONDS, above=True, most=_MOST_S),
    "rts_timeout": _number(0, _SECONDS, above=True, most=_MOST_S),
    "rts_breaker_period": _number(0, _SECONDS, above=True, most=_MOST_S),
    "rts_drain": _boolean,
    "rts_scheduler": _choice("edf", "priority", None),
    "rts_hopeless": _choice("demote", "keep", "drop"),
    "rts_hopeless_slots": _number(0, "a share above 0, at most 1", above=True, most=1),
    "rts_late_share": _number(0, _SHARE, most=1),
    "rts_order": _choice("deadline", "deadline+work"),
    "rts_queue_horizons": _mapping(
        _HORIZONS, _is_name, _number(0, _HORIZONS, above=True, most=_MOST_S)
    ),
    "rts_routes": _mapping(_ROUTES, _is_name, _queues),
    "rts_slo": _mapping(
        _OBJECTIVES, _is_name, _number(MIN_TARGET, _OBJECTIVES, most=MAX_TARGET)
    ),
    "rts_slo_window": _number(3600, "seconds, from 3600 to 1e9", most=_MOST_S),
    "rts_slo_min_events": _integer(1),
    "rts_webhooks": read_webhooks,
}
