"""Numbers, instants and verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rts.deadlines import hopeful_until
from rts.views import selection
from rts.views.plurals import counted

NONE = "–"
#: Between a number and its unit, where a line must not break.
_NBSP = "\u00a0"

#: Rows of a table, and queues whose messages are listed: each takes Flower's event loop a
#: part of a millisecond.
MAX_ROWS, MAX_LISTED = 300, 20


def foremost(
    rows: Sequence[Mapping[str, Any]], key: str, *, least: bool = False, most: int = MAX_ROWS
) -> list[Mapping[str, Any]]:
    """Return the *most* rows with the greatest (*least*: smallest) numbers, in their order.

    >>> foremost([{"n": 1}, {"n": 3}, {"n": None}, {"n": 2}], "n", most=2)
    [{'n': 3}, {'n': 2}]
    """
    sign = -1 if least else 1
    return selection.foremost(rows, most, lambda row: sign * (row.get(key) or 0))


def left_out(rows: Sequence[object]) -> str:
    """Return a note on the rows that :func:`foremost` leaves out.

    >>> left_out(range(300)), left_out(range(1000))
    ('', '700 more are not shown here; the JSON of this page has them.')
    """
    more = len(rows) - MAX_ROWS
    return (
        f"{count(more)} more are not shown here; the JSON of this page has them."
        if more > 0
        else ""
    )


def duration(seconds: float | None) -> str:
    r"""Return a duration with about three digits.

    >>> [duration(s) for s in (0.0042, 0.45, 4.213, 42.1, -2.5)]
    ['4.2\xa0ms', '450\xa0ms', '4.21\xa0s', '42.1\xa0s', '−2.50\xa0s']
    >>> [duration(s) for s in (725.0, 12000.0, 190000.0)]
    ['12\xa0min\xa005\xa0s', '3\xa0h\xa020\xa0min', '2\xa0d\xa05\xa0h']
    """
    if seconds is None or not math.isfinite(seconds):
        return NONE
    sign, s = ("−" if seconds < 0 else ""), abs(seconds)
    if s < 0.00005:
        return f"0{_NBSP}s"
    if s < 0.9995:
        return f"{sign}{s * 1000:.{1 if s < 0.00995 else 0}f}{_NBSP}ms"
    if s < 99.95:
        return f"{sign}{s:.{2 if s < 9.995 else 1}f}{_NBSP}s"
    for unit, part, length, most in (("min", "s", 1, 60), ("h", "min", 60, 24)):
        whole, rest = divmod(round(s / length), 60)
        if whole < most:
            return _NBSP.join((f"{sign}{whole}", unit, f"{rest:02d}", part))
    days, rest = divmod(round(s / 3600), 24)
    return _NBSP.join((f"{sign}{days}", "d", *((f"{rest}", "h") if rest else ())))


def outlook(due_s: float | None, tau: float | None) -> str:
    """Return the outlook of a waiting task that is due in so many seconds.

    >>> outlook(9.5, 10.0), outlook(8.5, 10.0), outlook(-0.1, 10.0)
    ('hopeful', 'hopeless', 'overdue')
    >>> outlook(5.0, None), outlook(None, None)
    ('hopeful', '–')
    """
    if due_s is None:
        return NONE
    if due_s < 0:
        return "overdue"
    return "hopeless" if tau and hopeful_until(due_s, tau) < 0 else "hopeful"


def percent(ratio: float | None, digits: int = 1) -> str:
    r"""Return a share in percent; only exactly 1 is shown as 100 %.

    >>> percent(0.99996), percent(1.0), percent(0.5, 0), percent(-1e-16)
    ('99.9\xa0%', '100\xa0%', '50\xa0%', '0.0\xa0%')
    """
    if ratio is None or not math.isfinite(ratio):
        return NONE
    if ratio == 1:
        return f"100{_NBSP}%"
    shown = round(ratio * 100, digits) + 0.0  # never −0
    if ratio < 1 <= shown / 100:
        shown = 100 - 10.0**-digits
    return f"{shown:.{digits}f}{_NBSP}%".replace("-", "−")


def target(share: float) -> str:
    r"""Return the target of an objective, with all its nines.

    >>> target(0.95), target(0.99999)
    ('95\xa0%', '99.999\xa0%')
    """
    return f"{100 * share:g}{_NBSP}%"


def count(number: int | None) -> str:
    """Return a whole number with thin spaces between thousands.

    >>> count(1234567) == "1\u202f234\u202f567"
    True
    """
    return NONE if number is None else f"{number:,}".replace(",", "\u202f")


def times(factor: float | None) -> str:
    r"""Return a factor.

    >>> times(1.234), times(14.4), times(0.0012), times(None)
    ('1.23\xa0×', '14.4\xa0×', '0.0012\xa0×', '–')
    """
    if factor is None or not math.isfinite(factor):
        return NONE
    return f"{factor:.{4 if 0 < factor < 0.00995 else 2 if factor < 9.995 else 1}f}{_NBSP}×"


def multiplier(k: float | None) -> str:
    """Return a k, which has 16 digits where it is learned.

    >>> multiplier(2.0), multiplier(2.0628665744649357), multiplier(None)
    ('2.0', '2.06', '–')
    """
    return NONE if k is None else str(round(k, 2))


def clock(at: datetime | None, *, exact: bool = False) -> str:
    """Return an instant in UTC, to the second, or to the millisecond where *exact*."""
    if at is None:
        return NONE
    at = at.astimezone(timezone.utc).replace(tzinfo=None)
    return at.isoformat(" ", timespec="milliseconds" if exact else "seconds")


def misses(by_cause: Mapping[str, int]) -> str:
    """Return misses by cause.

    >>> misses({"late": 3, "killed": 1})
    '3 late, 1 killed'
    """
    return ", ".join(f"{count(n)} {cause}" for cause, n in by_cause.items()) or NONE


def nothing(document: Mapping[str, Any], text: str) -> str:
    """Return what stands in the place of an empty table: *text*, once all is known."""
    return "Not known yet." if document["trouble"] or document["counting"] else text


def listed(shown: int, most: int, missed: int | None) -> str:
    """Return what a list of missed tasks, of at *most* so many, shows of all that *missed*.

    >>> listed(27, 100, 27), listed(1, 100, None)
    ('27 missed deadlines', '1 missed deadline')
    >>> listed(100, 100, None), listed(100, 100, 412)
    ('The last 100 missed deadlines', 'The last 100 of 412 missed deadlines')
    """
    if shown < most:
        return counted(shown, "missed deadline")
    of_all = f" of {count(missed)}" if missed is not None and missed > shown else ""
    return f"The last {shown}{of_all} missed deadlines"


def verdict(task: Mapping[str, Any]) -> str:
    """Return the verdict on a task, and by how much it was early or late."""
    lateness_s, cause = task.get("lateness_s"), task.get("cause")
    if task.get("sla_success") is None:
        return "no verdict yet"
    if task["sla_success"]:
        return f"met, {duration(abs(lateness_s or 0.0))} early"
    if cause is not None:
        return f"missed: {cause}"
    return f"missed, {duration(lateness_s)} late"


def value(number: float | None, unit: str) -> str:
    """Return a value of a chart: unit is ratio, seconds, count or factor."""
    if number is None:
        return NONE
    if unit == "ratio":
        return percent(number)
    if unit == "seconds":
        return duration(number)
    return times(number) if unit == "factor" else count(round(number))
