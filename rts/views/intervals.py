"""Whole intervals of time, and the records that ended in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pymongo import ASCENDING, DESCENDING

from rts.keys import TASKS
from rts.ledger.connection import LedgerDatabase
from rts.ledger.rollups import DAY, WIDTHS, rollup_id

EPOCH = datetime.fromtimestamp(0, timezone.utc)

#: A window with at most so many records is aggregated directly, in a fraction of a second.
DIRECT = 50_000

#: Start and end (exclusive), both aware.
Window = tuple[datetime, datetime]


@dataclass(frozen=True)
class Interval:
    """One whole day, hour or ten minutes of one collection."""

    collection: str
    #: Seconds, among ``WIDTHS``.
    width: int
    #: Epoch seconds.
    start: int

    @property
    def window(self) -> Window:
        """Its start and end."""
        begin = EPOCH + timedelta(seconds=self.start)
        return begin, begin + timedelta(seconds=self.width)

    @property
    def id(self) -> str:
        """The ``_id`` of its stored sums."""
        return rollup_id(self.collection, self.width, self.start)


def cut(
    collection: str, window: Window, widths: Sequence[int] = WIDTHS
) -> tuple[list[Interval], list[Window]]:
    """Cut *window* into whole intervals, long ones first, and what is left over.

    *widths* are among ``WIDTHS``.
    """
    intervals: list[Interval] = []
    left = [window]
    for width in widths:
        rest: list[Window] = []
        for begin, end in left:
            first = -(-(begin - EPOCH) // timedelta(seconds=width)) * width
            last = (end - EPOCH) // timedelta(seconds=width) * width
            if first >= last:
                rest.append((begin, end))
                continue
            intervals += [Interval(collection, width, s) for s in range(first, last, width)]
            at = [EPOCH + timedelta(seconds=s) for s in (first, last)]
            rest += [w for w in ((begin, at[0]), (at[1], end)) if w[0] < w[1]]
        left = rest
    return intervals, left


def count(database: LedgerDatabase, collection: str, window: Window, limit: int = 0) -> int:
    """Return the number of records that ended in *window*, at most *limit* (0: all)."""
    options: dict[str, Any] = {"limit": limit} if limit else {}
    # One query per part, which the server answers from the index alone.
    return sum(
        database[collection].count_documents(part, **options)
        for part in parts(collection, window).values()
    )


def is_busy(database: LedgerDatabase, collection: str, window: Window) -> bool:
    """Return whether *window* holds more than ``DIRECT`` records."""
    return count(database, collection, window, DIRECT + 1) > DIRECT


def is_large(database: LedgerDatabase, collection: str) -> bool:
    """Return whether *collection* holds more than ``DIRECT`` records, by the server's estimate,
    which costs nothing.
    """
    return database[collection].estimated_document_count() > DIRECT


def trimmed(database: LedgerDatabase, collection: str, window: Window) -> Window:
    """Return *window* without the empty whole days at its ends.

    A window may begin long before the ledger and end far ahead: each day of it would be
    counted, and its sums stored.
    """
    instants = []
    for field, part in parts(collection, window).items():
        for direction in (ASCENDING, DESCENDING):
            # Not a list of instants, as others may write.
            one = {**part, "$nor": [{field: {"$type": "array"}}]}
            found = database[collection].find_one(one, {field: 1}, sort=[(field, direction)])
            instants += [] if found is None else [found[field]]
    if not instants:
        return window[0], window[0]
    day = timedelta(seconds=DAY)
    first = EPOCH + (min(instants) - EPOCH) // day * day
    last = EPOCH + ((max(instants) - EPOCH) // day + 1) * day
    return max(window[0], first), min(window[1], last)


def parts(collection: str, window: Window) -> dict[str, dict[str, Any]]:
    """Return disjoint queries for what lies in *window*: runs by their end, tasks by their
    verdict. The key of each is the field of that instant.
    """
    during = {"$gte": window[0], "$lt": window[1]}
    if collection != TASKS:
        return {"completed_at": {"completed_at": during}}
    return {
        "verdict_at": {"verdict_at": during},
        # Documents that others have written, without ``verdict_at``.
        "completed_at": {"verdict_at": None, "completed_at": during},
    }


def in_window(collection: str, window: Window) -> dict[str, Any]:
    """Return the query for the runs, or the verdicts, of a window."""
    found = list(parts(collection, window).values())
    return found[0] if len(found) == 1 else {"$or": found}
