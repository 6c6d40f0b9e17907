"""How the deadlines were met over time: the tallies of a report, interval by interval.

The intervals are aligned to the clock (``…:00``, ``…:10``); the first and the last are clipped
to the window. Their tallies add up to those of the window, and a busy window uses the sums that
are stored for reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pymongo.database import Database

from rts.keys import ASSIGNMENTS, TASKS
from rts.ledger.connection import translate_errors
from rts.ledger.rollups import WIDTHS
from rts.views.aggregation import THREADS, direct_by_interval
from rts.views.intervals import Interval, Window, cut, is_busy
from rts.views.rollups import stored_sums, sum_up
from rts.views.tally import GROUPS, Tallies, add_all

#: Lengths of an interval in seconds; the first that gives at most ``MAX_POINTS`` is used.
LENGTHS_S = (10, 60, 600, 3600, 4 * 3600, 86400)
MAX_POINTS = 180

_EPOCH = datetime.fromtimestamp(0, timezone.utc)


@dataclass(frozen=True)
class Point:
    """One interval."""

    #: Start of the interval, aware; the window may begin later.
    start: datetime
    width_s: int
    #: By key.
    tallies: Tallies


def length_for(window: Window) -> int:
    """Return the length in seconds of the intervals of a window.

    >>> length_for((_EPOCH, _EPOCH + timedelta(days=1)))
    600
    """
    span_s = (window[1] - window[0]).total_seconds()
    return next((s for s in LENGTHS_S if span_s / s <= MAX_POINTS), LENGTHS_S[-1])


def series(database: Database[dict[str, Any]], window: Window, by: str = "type") -> list[Point]:
    """Return the tallies of *window* (aware) by interval, oldest first, including intervals in
    which nothing ended.

    Raises:
        ValueError: *by* is none of ``GROUPS``, or an instant is naive.
        StoreUnavailable: the server did not answer.
    """
    if by not in GROUPS:
        raise ValueError(f"by = {by!r} is not one of {', '.join(GROUPS)}")
    if window[0].tzinfo is None or window[1].tzinfo is None:
        raise ValueError("the window needs a time zone")
    width = length_for(window)
    first = int((window[0] - _EPOCH) // timedelta(seconds=width)) * width
    last = -int(-(window[1] - _EPOCH) // timedelta(seconds=width)) * width
    found: dict[int, Tallies] = {start: {} for start in range(first, last, width)}
    with translate_errors(), ThreadPoolExecutor(THREADS) as pool:
        for collection in (ASSIGNMENTS, TASKS):
            for start, more in _tallies_of(database, collection, window, by, width, pool):
                add_all(found[start - start % width], more)
    return [
        Point(_EPOCH + timedelta(seconds=start), width, found[start]) for start in sorted(found)
    ]


def _tallies_of(
    database: Database[dict[str, Any]],
    collection: str,
    window: Window,
    by: str,
    width: int,
    pool: ThreadPoolExecutor,
) -> list[tuple[int, Tallies]]:
    """Return the tallies of one collection, with the epoch second at which each begins."""
    base = next((w for w in WIDTHS if width % w == 0), None)
    rest: Sequence[Window] = [window]
    intervals: list[Interval] = []
    if base and is_busy(database, collection, window):
        intervals, rest = cut(collection, window, (base,))
    kept = stored_sums(database, intervals, by)
    jobs = [pool.submit(direct_by_interval, database, collection, w, by, width) for w in rest]
    missing = [interval for interval in intervals if interval.id not in kept]
    sums = [(s, pool.submit(sum_up, database, s, by)) for s in missing]
    found = [(s.start, kept[s.id]) for s in intervals if s.id in kept]
    found += [(interval.start, job.result()) for interval, job in sums]
    for job in jobs:
        found += job.result().items()
    return found
