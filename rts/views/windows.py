"""Ends of windows as people write them: ``24h``, ``7d``, or an ISO 8601 instant."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", re.ASCII)


def parse(text: str) -> timedelta | datetime:
    """Return a duration or an aware instant; without a zone it is UTC.

    Raises:
        ValueError: it is neither.
        OverflowError: it is beyond the calendar.

    >>> parse("90s"), parse("1.5h")
    (datetime.timedelta(seconds=90), datetime.timedelta(seconds=5400))
    """
    text = text.strip()
    match = _DURATION.fullmatch(text)
    if match:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    if text[-1:] in ("Z", "z"):  # unknown to Python 3.10
        text = text[:-1] + "+00:00"
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
