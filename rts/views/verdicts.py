"""The verdicts of several windows that all end now, as objectives need them.

The windows overlap, so each slice between the starts of two is counted once, and all stored
sums are fetched in one query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from pymongo.database import Database

from rts.keys import TASKS
from rts.views import intervals
from rts.views.aggregation import direct, threads
from rts.views.intervals import cut
from rts.views.packing import Row, unpack_rows
from rts.views.rollups import stored_packed, sum_up
from rts.views.tally import CLASSES


def slices(
    database: Database[dict[str, Any]], now: datetime, lengths: Sequence[float]
) -> Iterator[tuple[float, Row]]:
    """Yield the verdicts of the longest window as rows (key, verdicts, on time, misses), each
    with the length of the shortest window that contains it: it counts in that and in all longer
    ones. Keys are those of ``CLASSES``; a key may have several rows.

    *lengths* are those of the windows, seconds before *now* (aware), shortest first.

    Raises:
        PyMongoError: the server did not answer.
    """
    # An estimate will do: cutting needlessly costs little.
    busy = database[TASKS].estimated_document_count() > intervals.DIRECT
    cuts = {}
    for shorter, longer in pairwise([0.0, *lengths]):
        window = now - timedelta(seconds=longer), now - timedelta(seconds=shorter)
        cuts[longer] = cut(TASKS, window) if busy else ([], [window])
    kept = stored_packed(database, [s for some, _ in cuts.values() for s in some], CLASSES)
    with threads() as pool:
        jobs = []
        for length, (whole, rest) in cuts.items():
            for window in rest:
                jobs.append((length, pool.submit(direct, database, TASKS, window, CLASSES)))
            for interval in whole:
                if interval.id in kept:
                    for row in unpack_rows(kept[interval.id]):
                        yield length, row
                else:
                    jobs.append((length, pool.submit(sum_up, database, interval, CLASSES)))
        for length, job in jobs:
            for key, tally in job.result().items():
                yield length, (key, tally.verdicts, tally.on_time, tally.misses)
