"""The verdicts of several windows that all end now, as objectives need them.

The windows overlap, so each slice between the starts of two is counted once, and all stored
sums are fetched in one query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from pymongo.database import Database

from rts.keys import TASKS
from rts.views import columns, intervals
from rts.views.aggregation import THREADS, direct
from rts.views.intervals import cut
from rts.views.rollups import stored_packed, sum_up
from rts.views.tally import CLASSES, Tallies


@dataclass(slots=True)
class Verdicts:
    """The counts of one class."""

    valid: int = 0
    on_time: int = 0
    #: By cause.
    misses: dict[str, int] = field(default_factory=dict)

    def add(self, valid: int, on_time: int, misses: Mapping[str, int]) -> None:
        """Add the counts of another interval."""
        self.valid += valid
        self.on_time += on_time
        for cause, n in misses.items():
            self.misses[cause] = self.misses.get(cause, 0) + n


#: By key of ``CLASSES``.
Slice = dict[str, Verdicts]


def slices(
    database: Database[dict[str, Any]], now: datetime, lengths: Sequence[float]
) -> dict[float, Slice]:
    """Count what lies between the starts of two successive windows, by the longer one's length.

    *lengths* are seconds before *now* (aware), shortest first.

    Raises:
        PyMongoError: the server did not answer.
    """
    found: dict[float, Slice] = {length: {} for length in lengths}
    windows = {
        longer: (now - timedelta(seconds=longer), now - timedelta(seconds=shorter))
        for shorter, longer in pairwise([0.0, *lengths])
    }
    # An estimate will do: cutting needlessly costs little.
    busy = database[TASKS].estimated_document_count() > intervals.DIRECT
    cuts = {
        length: cut(TASKS, window) if busy else ([], [window])
        for length, window in windows.items()
    }
    kept = stored_packed(database, [s for some, _ in cuts.values() for s in some], CLASSES)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = []
        for length, (whole, rest) in cuts.items():
            jobs += [
                (length, pool.submit(direct, database, TASKS, window, CLASSES))
                for window in rest
            ]
            jobs += [
                (length, pool.submit(sum_up, database, interval, CLASSES))
                for interval in whole
                if interval.id not in kept
            ]
        for length, (whole, _) in cuts.items():
            for interval in whole:
                if interval.id in kept:
                    _add_packed(found[length], kept[interval.id])
        for length, job in jobs:
            _add_tallies(found[length], job.result())
    return found


def _add_packed(into: Slice, packed: Mapping[str, Any]) -> None:
    for key, valid, on_time, misses in columns.unpack(packed):
        counted = into.get(key)
        if counted is None:
            counted = into[key] = Verdicts()
        counted.add(valid, on_time, misses)


def _add_tallies(into: Slice, more: Tallies) -> None:
    for key, tally in more.items():
        into.setdefault(key, Verdicts()).add(tally.verdicts, tally.on_time, tally.misses)
