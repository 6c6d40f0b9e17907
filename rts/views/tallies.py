"""Counts and buckets of the ledger over a window of time, made by the server.

A window is cut into whole days, hours, tens of minutes, and what is left at its ends.
Where it holds many records, the sums of whole intervals are kept in a private
collection (:mod:`rts.views.rollups`), so that the next question costs little.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from pymongo.database import Database

from rts.keys import ASSIGNMENTS, TASKS
from rts.ledger.rollups import DAY, HOUR
from rts.views.aggregation import THREADS, direct
from rts.views.intervals import Interval, Window, cut, is_busy, occupied
from rts.views.rollups import kept_packed, kept_sums, sum_up
from rts.views.tally import CLASSES, Tallies, add_all


def tally(database: Database[dict[str, Any]], window: Window, by: str) -> Tallies:
    """Count the runs that ended in *window* and the verdicts that fell in it, by *by* (of
    ``GROUPS``, or ``CLASSES``).

    Raises:
        PyMongoError: the server did not answer.
    """
    total: Tallies = {}
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = []
        for collection in _collections(by):
            intervals: list[Interval] = []
            rest = [window]
            if is_busy(database, collection, window):
                intervals, rest = cut(collection, occupied(database, collection, window))
            kept = kept_sums(database, intervals, by)
            jobs += [pool.submit(direct, database, collection, w, by) for w in rest]
            for interval in intervals:
                if interval.id in kept:
                    add_all(total, kept[interval.id])
                else:
                    jobs.append(pool.submit(sum_up, database, interval, by))
        for job in jobs:
            add_all(total, job.result())
    return total


def keep(
    database: Database[dict[str, Any]],
    until: datetime,
    by: str = "type",
    seconds: float = 86400.0,
) -> int:
    """Sum up the whole days and hours of the *seconds* before *until* that a report
    would find slow, one after the other.

    For a process that has the time, every few minutes: then even the first report
    on a very busy day answers at once. Returns the number of intervals summed up.

    Raises:
        PyMongoError: the server did not answer.
    """
    summed = 0
    for collection in _collections(by):
        window = until - timedelta(seconds=seconds), until
        if not is_busy(database, collection, window):
            continue
        intervals, _ = cut(collection, window, (DAY, HOUR))
        kept = kept_packed(database, intervals, by)
        for interval in intervals:
            if interval.id not in kept:
                sum_up(database, interval, by)
                summed += 1
    return summed


def _collections(by: str) -> tuple[str, ...]:
    return (TASKS,) if by == CLASSES else (ASSIGNMENTS, TASKS)
