"""The intervals of time whose sums are stored, and the invalidation of those sums.

The reports store their sums over whole days, hours and tens of minutes in a private
collection (:mod:`rts.views.rollups`). They notice a record that was *added*, as the number
of records no longer agrees, but not one that was *replaced*, such as LOST by a real end:
whoever replaces one calls :func:`invalidate`. So does whoever adds one that ended a while
ago, since the readers do not count all of the past each time (:mod:`rts.views.seal`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pymongo import WriteConcern
from pymongo.collection import Collection

from rts.keys import ROLLUPS
from rts.ledger.connection import LedgerDatabase

#: Lengths of the intervals in seconds, each a multiple of the next, so that a month is
#: few of them. A day that does not start on the hour is 23 hours, some tens of minutes,
#: and at most twenty minutes at its ends that are read record by record.
DAY, HOUR = 86400, 3600
WIDTHS = (DAY, HOUR, 600)

#: Seconds after which a record counts as late. Readers trust only sums of what is twice
#: as old, so the clocks of two hosts may differ by this much.
LATE_S = 300.0


def rollup_id(collection: str, width: int, start: int) -> str:
    """Return the ``_id`` of the sums of *collection* from epoch second *start* on."""
    return f"{collection}:{width}:{start}"


def sums_to_keep(database: LedgerDatabase) -> Collection[dict[str, Any]]:
    """Return the collection of the sums, for readers to write to. They wait for no majority,
    which may be away for long: the sums only save time.
    """
    return database[ROLLUPS].with_options(write_concern=WriteConcern(w=1))


def invalidate(database: LedgerDatabase, collection: str, instants: Iterable[float]) -> None:
    """Drop the sums of those intervals that contain one of *instants*, epoch seconds.

    Call it after the change: sums that are being computed meanwhile are then not stored,
    because ``writes`` is no longer what it was when they were started.
    """
    seconds = set(map(int, instants))
    ids = {rollup_id(collection, w, s - s % w) for s in seconds for w in WIDTHS}
    if ids:
        database[ROLLUPS].update_many(
            {"_id": {"$in": sorted(ids)}}, {"$inc": {"writes": 1}, "$unset": {"tallies": ""}}
        )
