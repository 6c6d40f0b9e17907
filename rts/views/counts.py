"""Counts and buckets of the ledger over windows of time, computed by the server.

A busy window is cut into whole days, hours, tens of minutes, and the rest at its ends. The sums
of whole intervals are stored in a private collection (:mod:`rts.views.rollups`), which makes
the next query cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from rts.keys import ASSIGNMENTS, TASKS
from rts.ledger.connection import LedgerDatabase
from rts.ledger.rollups import DAY, HOUR
from rts.views.aggregation import direct, threads
from rts.views.intervals import Interval, Window, cut, is_busy, is_large, trimmed
from rts.views.packing import Row, unpack, unpack_rows
from rts.views.rollups import stored_packed, sum_up
from rts.views.tally import CLASSES, Tallies, add_all


def tally(database: LedgerDatabase, window: Window, by: str) -> Tallies:
    """Count runs that ended and verdicts that fell in *window*, *by* one of ``FIELDS``."""
    total: Tallies = {}
    with threads() as pool:
        jobs = []
        for collection in (ASSIGNMENTS, TASKS):
            intervals: list[Interval] = []
            rest = [window]
            if is_busy(database, collection, window):
                intervals, rest = cut(collection, trimmed(database, collection, window))
            # Unpacked one at a time: with many keys each takes tens of megabytes.
            kept = stored_packed(database, intervals, by)
            jobs += [pool.submit(direct, database, collection, w, by) for w in rest]
            for interval in intervals:
                if interval.id in kept:
                    add_all(total, unpack(kept.pop(interval.id), by))
                else:
                    jobs.append(pool.submit(sum_up, database, interval, by))
        while jobs:
            add_all(total, jobs.pop(0).result())
    return total


def slices(
    database: LedgerDatabase, now: datetime, lengths: Sequence[float]
) -> Iterator[tuple[float, Row]]:
    """Yield the verdicts of several windows that all end at *now* (aware), as objectives need
    them. *lengths* are those of the windows in seconds, shortest first.

    The windows overlap, so each slice between the starts of two is counted once: its rows (key,
    verdicts, on time, misses) come with the length of the shortest window that contains it, and
    count in that and in all longer ones. Keys are those of ``CLASSES``, each in several rows.
    """
    large = is_large(database, TASKS)  # cutting needlessly costs little
    cuts = {}
    for shorter, longer in pairwise([0.0, *lengths]):
        window = now - timedelta(seconds=longer), now - timedelta(seconds=shorter)
        cuts[longer] = cut(TASKS, window) if large else ([], [window])
    intervals = [(length, each) for length, (whole, _) in cuts.items() for each in whole]
    kept = stored_packed(database, [each for _, each in intervals], CLASSES)
    with threads() as pool:
        jobs = [
            (length, pool.submit(direct, database, TASKS, window, CLASSES))
            for length, (_, rest) in cuts.items()
            for window in rest
        ]
        jobs += [
            (length, pool.submit(sum_up, database, each, CLASSES))
            for length, each in intervals
            if each.id not in kept
        ]
        for length, each in intervals:
            if each.id in kept:
                yield from ((length, row) for row in unpack_rows(kept[each.id]))
        for length, job in jobs:
            for key, found in job.result().items():
                yield length, (key, found.verdicts, found.on_time, found.misses)


def precompute(
    database: LedgerDatabase, until: datetime, by: str = "type", seconds: float = DAY
) -> int:
    """Store the sums of the whole days and hours in the *seconds* before *until*, where a
    report would be slow.

    For a process that has the time, every few minutes: then even the first report on a very
    busy day is fast. Returns the number of intervals summed up.
    """
    summed = 0
    for collection in (TASKS,) if by == CLASSES else (ASSIGNMENTS, TASKS):
        window = until - timedelta(seconds=seconds), until
        if not is_busy(database, collection, window):
            continue
        intervals, _ = cut(collection, window, (DAY, HOUR))
        kept = stored_packed(database, intervals, by)
        for interval in intervals:
            if interval.id not in kept:
                sum_up(database, interval, by)
                summed += 1
    return summed
