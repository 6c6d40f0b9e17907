"""How the deadlines were met over time: the tallies of a report, interval by interval.

The intervals are aligned to the clock (``…:00``, ``…:10``); the first and the last are clipped
to the window. Their tallies add up to those of the window, and a busy window uses the sums that
are stored for reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from pymongo.database import Database

from rts.keys import ASSIGNMENTS, TASKS
from rts.ledger.connection import translate_errors
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

    >>> length_for((EPOCH, EPOCH + timedelta(days=1)))
    600
    """
    span_s = (window[1] - window[0]).total_seconds()
    return next((s for s in LENGTHS_S if span_s / s <= MAX_POINTS), LENGTHS_S[-1])


def series(
    database: Database[dict[str, Any]], window: Window, by: str = "type", key: str | None = None
) -> Iterator[Point]:
    """Yield the tallies of *window* by interval, oldest first, including intervals in which
    nothing ended. *by* is one of ``FIELDS``; only those of *key* are counted, if it is given.

    One point at a time: with a thousand keys, a day of them takes gigabytes.

    Raises:
        StoreUnavailable: the server did not answer.
    """
    width = length_for(window)
    first = int((window[0] - EPOCH) // timedelta(seconds=width)) * width
    last = -int(-(window[1] - EPOCH) // timedelta(seconds=width)) * width
    starts = range(first, last, width)
    with translate_errors(), threads() as pool:
        collections = [
            _Collection(database, collection, window, by, width, pool)
            for collection in (ASSIGNMENTS, TASKS)
        ]
        for begin in range(0, len(starts), READ_AHEAD):
            some = starts[begin : begin + READ_AHEAD]
            for tallied in collections:
                tallied.read(some[0], some[-1] + width)
            for start in some:
                tallies: Tallies = {}
                for tallied in collections:
                    for more in tallied.take(start, key):
                        add_all(tallies, more)
                yield Point(EPOCH + timedelta(seconds=start), width, tallies)


class _Collection:
    """The tallies of one collection, point by point."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        collection: str,
        window: Window,
        by: str,
        width: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._database, self._by, self._width, self._pool = database, by, width, pool
        widths = [w for w in WIDTHS if width % w == 0]
        rest: Sequence[Window] = [window]
        self._intervals: list[Interval] = []
        if widths and is_busy(database, collection, window):
            kept = trimmed(database, collection, window)
            self._intervals, rest = cut(collection, kept, widths)
        self._find_seal = cache(seal_of)
        self._kept: dict[str, Any] = {}
        self._sums: dict[str, Future[Tallies]] = {}
        jobs = [
            pool.submit(direct_by_interval, database, collection, w, by, width) for w in rest
        ]
        #: What is not in whole intervals, by the second at which its point begins.
        self._rest: dict[int, list[Tallies]] = {}
        for job in jobs:
            for start, more in job.result().items():
                self._rest.setdefault(start - start % width, []).append(more)

    def read(self, start: int, end: int) -> None:
        """Read the sums of the intervals from *start* to *end*, epoch seconds."""
        some = [i for i in self._intervals if start <= i.start < end]
        self._kept = stored_packed(self._database, some, self._by, self._find_seal)
        self._sums = {
            i.id: self._pool.submit(sum_up, self._database, i, self._by)
            for i in some
            if i.id not in self._kept
        }

    def take(self, start: int, key: str | None) -> Iterator[Tallies]:
        """Yield what the point that begins at *start* is made of."""
        found = self._rest.pop(start, [])
        while found:
            yield _of(found.pop(), key)
        for interval in self._intervals:
            if start <= interval.start < start + self._width:
                if interval.id in self._kept:
                    yield unpack(self._kept.pop(interval.id), self._by, key)
                else:
                    yield _of(self._sums.pop(interval.id).result(), key)


def _of(tallies: Tallies, key: str | None) -> Tallies:
    """Return *tallies*, of *key* alone where it is given."""
    return tallies if key is None else {k: t for k, t in tallies.items() if k == key}
