"""Values as JSON can hold them, for the documents of the commands and of Flower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from typing import Any


def iso(at: datetime) -> str:
    """Return an aware instant in ISO 8601, UTC, to the millisecond.

    >>> iso(datetime(2030, 1, 2, 3, 4, 5, 678000, timezone.utc))
    '2030-01-02T03:04:05.678Z'
    """
    return at.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc(at: float | None) -> datetime | None:
    """Return epoch seconds as an aware instant; ``None`` if there are none, or they are beyond
    the calendar, as in messages of others.

    >>> utc(0.0), utc(1e300)
    (datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc), None)
    """
    try:
        return None if at is None else datetime.fromtimestamp(at, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def plain(value: Any) -> Any:
    """Return *value* as JSON types; NaN and infinity become null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
