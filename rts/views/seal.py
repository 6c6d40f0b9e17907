"""Whether the past of a collection is unchanged, without counting all of it.

Counting a million records takes the server a third of a second, even in the index. But it
always knows the total, and the records outside a span that is nearly everything are few. So a
*seal* is a span and the number of records in it: the total less those outside. While that
number stays the same, nothing was added to the span and nothing removed from it, and what once
agreed with the ledger still does.

The total and the records outside are counted one after the other. If some arrive in between,
the number is known only to within as many, and a change that is not greater goes unseen. Such a
change is always one that others made: what rts itself adds late, or replaces, invalidates the
sums (:mod:`rts.ledger.rollups`).

A span ends before what is still being written, and begins after what the server is about to
expire. Tasks expire by their arrival: one that waited for hours is gone hours before others
that ended when it did. So a task counts as outside once it is about to expire, and the seal
still holds when it is gone. While the server is behind with expiring, as after the time to live
was shortened, there is no seal: counting what should be gone takes longer than a seal saves.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pymongo.errors import PyMongoError

from rts.keys import ASSIGNMENTS, ROLLUPS, TASKS
from rts.ledger.connection import LedgerDatabase
from rts.ledger.rollups import LATE_S, sums_to_keep
from rts.views.intervals import Window, count, parts

#: Time between the end of a span and now, and between its start and what expires now.
MARGIN = timedelta(seconds=2 * LATE_S)
#: Age at which a span is moved forward: half of its distance from what expires.
MOVE_AFTER = MARGIN / 2
#: Maximum age of a span, if records arrived each time that it was due to move.
LONGEST = 12 * MOVE_AFTER
#: Attempts to count without an arrival in between.
ATTEMPTS = 3

_FIRST = datetime(1, 1, 1, tzinfo=timezone.utc)
_LAST = datetime(9999, 1, 1, tzinfo=timezone.utc)
#: The instant by which records expire (:mod:`rts.ledger.schema`).
_EXPIRY = {TASKS: "arrival", ASSIGNMENTS: "completed_at"}


@dataclass(frozen=True)
class Seal:
    """A span of time in which nothing has changed since the seal was made."""

    #: Sums that carry it agreed with the ledger at some time since the seal was made.
    id: str
    #: Start and end (exclusive), aware.
    span: Window

    def covers(self, window: Window) -> bool:
        """Whether *window* lies in the span."""
        return self.span[0] <= window[0] and window[1] <= self.span[1]


def seal_of(
    database: LedgerDatabase, collection: str, now: datetime | None = None
) -> Seal | None:
    """Return the seal that holds, or a new one if none does; ``None`` if it cannot be stored,
    for lack of write access, or if the server is far behind with expiring records.
    """
    now = now or datetime.now(timezone.utc)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as BSON stores it
    kept = database[ROLLUPS].find_one({"_id": _id(collection)})
    if kept is None:
        return _make(database, collection, now)
    age = now - kept["made_at"]
    if not -LONGEST < age < LONGEST:
        return _make(database, collection, now)
    seal = Seal(kept["seal"], (kept["span"][0], kept["span"][1]))
    spans = [seal.span]
    if age > MOVE_AFTER:
        moved = _span(database, collection, now)
        if moved is None:
            return None
        spans.append(moved)
    inside, *inside_moved = _inside(database, collection, spans)
    least, most = kept["inside"]
    if inside[0] > most or inside[1] < least:
        return _make(database, collection, now)
    # Only if both numbers are exact: a new pair would not tell how far off the old one was.
    if inside_moved and least == most and inside == (least, most):
        moved_seal = Seal(seal.id, spans[1])
        return _stored(database, collection, now, moved_seal, *inside_moved) or seal
    return seal


def _make(database: LedgerDatabase, collection: str, now: datetime) -> Seal | None:
    span = _span(database, collection, now)
    if span is None:
        return None
    (inside,) = _inside(database, collection, [span])
    return _stored(database, collection, now, Seal(uuid.uuid4().hex, span), inside)


def _stored(
    database: LedgerDatabase,
    collection: str,
    now: datetime,
    seal: Seal,
    inside: tuple[int, int],
) -> Seal | None:
    """Store *seal* and return it; ``None`` if it cannot be stored: it only saves time."""
    document = {
        "seal": seal.id,
        "made_at": now,
        "span": list(seal.span),
        "inside": list(inside),
    }
    try:
        sums_to_keep(database).replace_one({"_id": _id(collection)}, document, upsert=True)
    except PyMongoError:
        return None
    return seal


def _span(database: LedgerDatabase, collection: str, now: datetime) -> Window | None:
    """Return the span that is old enough to be final, and too young to expire soon; ``None``
    while there are records that should have expired a while ago.
    """
    since = _FIRST
    field = _EXPIRY[collection]
    index = database[collection].index_information().get(f"{field}_1", {})
    if "expireAfterSeconds" in index:
        expired = now - timedelta(seconds=index["expireAfterSeconds"])
        if database[collection].find_one({field: {"$lt": expired - MARGIN}}, {"_id": 1}):
            return None
        since = expired + MARGIN
    until = now - MARGIN
    return min(since, until), until


def _inside(
    database: LedgerDatabase, collection: str, spans: list[Window]
) -> list[tuple[int, int]]:
    """Return the least and the greatest possible number of records in each span."""
    records = database[collection]
    for _ in range(ATTEMPTS):
        before = records.estimated_document_count()
        outside = [_outside(database, collection, span) for span in spans]
        after = records.estimated_document_count()
        if before == after:
            break
    least, most = sorted((before, after))
    return [(least - n, most - n) for n in outside]


def _outside(database: LedgerDatabase, collection: str, span: Window) -> int:
    """Count the records that have not ended, or not in *span*, or are about to expire."""
    open_: Mapping[str, Any] = {"completed_at": None}
    if collection == TASKS:
        open_ = {"verdict_at": None, **open_}
    records = database[collection]
    later = (span[1], _LAST)
    expiring = {
        _EXPIRY[collection]: {"$lt": span[0]},
        "$nor": [open_, *parts(collection, later).values()],  # each is counted once
    }
    return (
        records.count_documents(open_)
        + count(database, collection, later)
        + records.count_documents(expiring)
    )


def _id(collection: str) -> str:
    return f"{collection}:seal"
