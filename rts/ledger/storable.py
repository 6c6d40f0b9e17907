"""Makes records storable: each field of its type, bounded, and valid BSON.

Pure functions. A record may hold an untrusted task id or queue. The usual record passes a
cheap check (:func:`is_storable`), and only one that fails it is cleaned field by field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rts.fields import MAX_TEXT, text
from rts.load.sample import FIGURES
from rts.records import Execution, Learned
from rts.validation import finite

#: Keys of ``load_at_start``, and items of a list in it; no host has as many GPUs.
MAX_ITEMS = 64
#: Nesting of ``load_at_start``: a mapping with a list of mappings.
MAX_DEPTH = 3

#: The keys of a reading of a host without a GPU, which needs no cleaning.
_LOAD_KEYS = frozenset({*FIGURES, "age_s"})

#: What a datetime can hold, in epoch seconds, whole milliseconds.
LEAST_INSTANT, GREATEST_INSTANT = -62135596800.0, 253402300799.999
_INT64 = 2**63


def is_storable(e: Execution, learned: Learned | None) -> bool:
    """Return whether a record can be stored as it is: the usual case, checked quickly.

    All strings are joined, which fails for what is not a string. A sum is finite only if
    every number in it is.

    Raises:
        TypeError, AttributeError, OverflowError: a field is not of its type.
    """
    joined = "".join(
        (
            e.run_id, e.task_id, e.name, e.task_type, e.type_source, e.arrival_source,
            e.worker, e.instance, e.state,
            "" if e.queue is None else e.queue, "" if e.cause is None else e.cause,
            "" if e.parent_id is None else e.parent_id,
            "" if e.root_id is None else e.root_id,
        )
    )  # fmt: skip
    if len(joined) > MAX_TEXT or not joined.isascii():
        return False
    total = (
        e.tau + e.k + e.arrival + e.deadline + e.retries + e.priority
        + (0.0 if e.started_at is None else e.started_at)
        + (0.0 if e.completed_at is None else e.completed_at)
        + (0.0 if e.runtime_s is None else e.runtime_s)
        + (0.0 if e.cpu_s is None else e.cpu_s)
        + (0 if e.max_rss_bytes is None else e.max_rss_bytes)
        + (0 if e.pid is None else e.pid)
        + (0.0 if e.again_at is None else e.again_at)
        + (0.0 if e.published_at is None else e.published_at)
    )  # fmt: skip
    if learned is not None:
        total += (
            learned.tau_before + learned.tau_after
            + (0.0 if learned.name_tau_before is None else learned.name_tau_before)
            + (0.0 if learned.name_tau_after is None else learned.name_tau_after)
        )  # fmt: skip
    load = e.load_at_start
    if load is not None:
        if not _LOAD_KEYS.issuperset(load):
            return False
        for value in load.values():
            if type(value) is not float and value is not None:
                return False
    # Then no term exceeds 64 bits, unless another one cancels it out. In a record of rts all
    # are positive; in any other record, such a term fails when it is encoded.
    return -1e18 < total < 1e18


def integer(value: object) -> int | None:
    """Return *value* if it is an integer of at most 64 bits, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -_INT64 <= value < _INT64 else None


def cleaned(execution: Execution) -> Execution:
    """Return the record with every field of its type, bounded and storable."""
    changes: dict[str, Any] = {
        name: kind(getattr(execution, name)) for name, kind in _KINDS.items()
    }
    for name in ("arrival", "deadline", "tau", "k"):
        if changes[name] is None:
            changes[name] = math.nan
    # An infinite instant still tells before from after.
    for name in _INSTANTS:
        if getattr(execution, name) in (math.inf, -math.inf):
            changes[name] = math.copysign(GREATEST_INSTANT, getattr(execution, name))
    for name in ("retries", "priority"):
        changes[name] = changes[name] or 0
    return execution._replace(**changes)


def cleaned_learned(learned: Learned | None) -> Learned | None:
    """Return what was learned with finite numbers; ``None`` if the type's are not."""
    if learned is None:
        return None
    before, after = finite(learned.tau_before), finite(learned.tau_after)
    if before is None or after is None:
        return None
    return Learned(
        before, after, finite(learned.name_tau_before), finite(learned.name_tau_after)
    )


def _optional_text(value: object) -> str | None:
    return None if value is None else text(value)


def _load(value: object, depth: int = MAX_DEPTH) -> Any:
    """Return a load reading without what cannot be stored."""
    if isinstance(value, Mapping):
        if depth == 0:
            return None
        items = list(value.items())[:MAX_ITEMS]
        return {_key(key): _load(item, depth - 1) for key, item in items}
    if isinstance(value, list | tuple):
        return [_load(item, depth - 1) for item in value[:MAX_ITEMS]] if depth else None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return finite(value)
    return text(value)


def _mapping(value: object) -> Any:
    return _load(value) if isinstance(value, Mapping) else None


def _key(key: object) -> str:
    """Return *key* as a field name, without dots, dollars and null bytes."""
    name = text(key, 64)
    for bad in ".$\0":
        name = name.replace(bad, "_")
    return name or "_"


_TEXTS = (
    *("run_id", "task_id", "name", "task_type", "type_source", "arrival_source"),
    *("worker", "instance", "state"),
)
_INSTANTS = (
    *("arrival", "deadline", "started_at", "completed_at", "again_at", "published_at"),
)
#: How each field is cleaned.
_KINDS: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(_TEXTS, text),
    **dict.fromkeys(("queue", "parent_id", "root_id", "cause"), _optional_text),
    **dict.fromkeys((*_INSTANTS, "tau", "k", "runtime_s", "cpu_s"), finite),
    **dict.fromkeys(("retries", "pid", "max_rss_bytes", "priority"), integer),
    "load_at_start": _mapping,
    "ran": bool,
}
