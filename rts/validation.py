"""Checks of values from outside: of JSON, of numbers, and of settings.

A check of a setting takes its name and a value, and returns the valid value; an invalid one
fails with what is allowed.
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
from rts.fields import plain
from rts.objectives import MAX_TARGET, MIN_TARGET
from rts.tasktypes import DEFAULT_TASK_TYPES, TYPE_NAME, TaskType

#: The longest duration, seconds: timeouts of sockets and dates overflow some way beyond it.
_MOST_S = 1e9
_K_RANGE = f"a number from {MIN_MULTIPLIER} to {MAX_MULTIPLIER}"
_TYPES_RANGE = (
    "a dict of type name (a to z, A to Z, 0 to 9, - and _; at most 64, the first no - or _) to "
    "tau in seconds > 0, or to "
    '{"tau": seconds, "sla_multiplier": ' + f"{MIN_MULTIPLIER} to {MAX_MULTIPLIER}" + "}"
)
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


def number(
    least: float, allowed: str, *, above: bool = False, most: float = math.inf
) -> Callable[[str, object], float]:
    """Return a check for a number of at least (or *above*) *least*, at most *most*."""

    def check(key: str, value: object) -> float:
        x = finite(value)
        if x is None or x > most or x < least or (above and x == least):
            raise ConfigurationError(key, value, allowed)
        return x

    return check


def integer(least: int) -> Callable[[str, object], int]:
    """Return a check for a whole number of at least *least*."""

    def check(key: str, value: object) -> int:
        if not _is_whole(value) or value < least:
            raise ConfigurationError(key, value, f"a whole number, at least {least}")
        return value

    return check


def boolean(key: str, value: object) -> bool:
    """Return *value*, True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(key, value, "True or False")
    return value


def choice(*allowed: str | None) -> Callable[[str, object], str]:
    """Return a check for one of *allowed*. ``None``, meaning the default, is never checked: it
    is only named in the message.
    """

    def check(key: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ConfigurationError(key, value, " or ".join(repr(a) for a in allowed))
        return plain(value)

    return check


def key_prefix(key: str, value: object) -> str:
    """Return *value*, a prefix of keys in Redis."""
    if not isinstance(value, str) or not 1 <= len(value) <= 64 or not value.isprintable():
        raise ConfigurationError(key, value, "1 to 64 printable characters")
    return plain(value)


def directory(key: str, value: object) -> str:
    """Return the path of a folder."""
    if not isinstance(value, str | os.PathLike) or not os.path.isabs(value):
        raise ConfigurationError(key, value, "an absolute path of a folder")
    # Path drops a slash at the end, after which the folder would be taken for its own parent,
    # and keeps each "..", which after a symbolic link leads elsewhere than its name says.
    return str(Path(value))


multiplier = number(MIN_MULTIPLIER, _K_RANGE, most=MAX_MULTIPLIER)
_tau = number(0, _TYPES_RANGE, above=True, most=_MOST_S)
seconds = number(0, "seconds, above 0, at most 1e9", above=True, most=_MOST_S)


def task_types(key: str, value: object) -> dict[str, TaskType]:
    """Return the default types, with those of *value* added or replacing them."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, value, _TYPES_RANGE)
    types = dict(DEFAULT_TASK_TYPES)
    for name, spec in value.items():
        if not isinstance(name, str) or not TYPE_NAME.fullmatch(name):
            raise ConfigurationError(f"{key}, key", name, _TYPES_RANGE)
        name = plain(name)
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
        found = {}
        for name, each in value.items():
            if not is_key(name):
                raise ConfigurationError(f"{key}, key", name, allowed)
            known = plain(name) if isinstance(name, str) else name
            found[known] = check_value(f"{key}[{name!r}]", each)
        return found

    return check


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _queues(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(map(_is_name, value)):
        raise ConfigurationError(key, value, _ROUTES)
    return tuple(map(plain, value))


priority_multipliers = _mapping(_PRIORITIES, _is_whole, multiplier)
queue_horizons = _mapping(_HORIZONS, _is_name, number(0, _HORIZONS, above=True, most=_MOST_S))
routes = _mapping(_ROUTES, _is_name, _queues)
objectives = _mapping(_OBJECTIVES, _is_name, number(MIN_TARGET, _OBJECTIVES, most=MAX_TARGET))
