"""How the deadlines were met over time: the tallies of a report, interval by interval.

The intervals are aligned to the clock (``…:00``, ``…:10``); the first and the last are clipped
to the window. Their tallies add up to those of the window, and a busy window uses the sums that
are stored for reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import chain

from rts.keys import ASSIGNMENTS, TASKS
from rts.ledger.connection import LedgerDatabase
from rts.ledger.rollups import WIDTHS
from rts.views.aggregation import direct_by_interval, threads
from rts.views.intervals import EPOCH, Interval, Window, cut, is_busy, trimmed
from rts.views.packing import unpack
from rts.views.rollups import stored_packed, sum_up
from rts.views.seal import seal_of
from rts.views.tally import Tallies, add_all

#: Lengths of an interval in seconds; the first that gives at most ``MAX_POINTS`` is used.
LENGTHS_S = (10, 60, 600, 3600, 4 * 3600, 86400)
MAX_POINTS = 180
#: Points whose sums are read at a time.
READ_AHEAD = 12


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

    >>> [length_for((EPOCH, EPOCH + timedelta(days=days))) for days in (1, 400)]
    [600, 86400]
    """
    span_s = (window[1] - window[0]).total_seconds()
    return next((s for s in LENGTHS_S if span_s / s <= MAX_POINTS), LENGTHS_S[-1])


def series(
    database: LedgerDatabase, window: Window, by: str = "type", key: str | None = None
) -> Iterator[Point]:
    """Yield the tallies of *window* by interval, oldest first, including intervals in which
    nothing ended. *by* is one of ``FIELDS``; only those of *key* are counted, if it is given.

    One point at a time: with a thousand keys, a day of them takes gigabytes.
    """
    width = length_for(window)
    first = int((window[0] - EPOCH) // timedelta(seconds=width)) * width
    last = -int(-(window[1] - EPOCH) // timedelta(seconds=width)) * width
    starts = range(first, last, width)
    with threads() as pool:
        courses = [
            _course(database, collection, window, by, key, starts, pool)
            for collection in (ASSIGNMENTS, TASKS)
        ]
        for start in starts:
            tallies: Tallies = {}
            for more in chain.from_iterable(map(next, courses)):
                add_all(tallies, more)
            yield Point(EPOCH + timedelta(seconds=start), width, tallies)


def _course(
    database: LedgerDatabase,
    collection: str,
    window: Window,
    by: str,
    key: str | None,
    starts: range,
    pool: ThreadPoolExecutor,
) -> Iterator[Iterator[Tallies]]:
    """Yield an iterator for each point, over the tallies of one collection that add up to it.
    It has to be used up before the next one is taken. No tally is kept once it was yielded.
    """
    width = starts.step
    intervals: list[Interval] = []
    rest = [window]
    widths = [w for w in WIDTHS if width % w == 0]
    if widths and is_busy(database, collection, window):
        intervals, rest = cut(collection, trimmed(database, collection, window), widths)

    def direct(part: Window) -> dict[int, Tallies]:
        return direct_by_interval(database, collection, part, by, width)

    #: What is not in whole intervals, by the second at which its point begins.
    outside: dict[int, list[Tallies]] = {}
    for found in pool.map(direct, rest):
        for start in list(found):
            outside.setdefault(start, []).append(_only(found.pop(start), key))
    find_seal = cache(seal_of)
    for begin in range(0, len(starts), READ_AHEAD):
        some = starts[begin : begin + READ_AHEAD]
        inside = [i for i in intervals if some[0] <= i.start < some[-1] + width]
        kept = stored_packed(database, inside, by, find_seal)
        sums = {i.id: pool.submit(sum_up, database, i, by) for i in inside if i.id not in kept}
        for start in some:
            yield chain(
                outside.pop(start, ()),
                (
                    unpack(kept.pop(i.id), by, key)
                    if i.id in kept
                    else _only(sums.pop(i.id).result(), key)
                    for i in inside
                    if start <= i.start < start + width
                ),
            )


def _only(tallies: Tallies, key: str | None) -> Tallies:
    """Return *tallies*, of *key* alone where it is given."""
    return tallies if key is None else {k: t for k, t in tallies.items() if k == key}
