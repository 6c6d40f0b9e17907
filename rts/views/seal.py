"""Whether the past of a collection is still what it was, without counting all of it.

A million records take the server a third of a second to count, even in the index. It
always knows how many it holds altogether, though, and those outside a span of time are
few where the span is nearly everything. So a *seal* is a span and the number of records
in it, which is all of them less those outside. While that number stays, nothing was
added to the span and nothing removed from it, and what was once found to agree with the
ledger still does.

The two questions are asked one after the other. Records that come in between blur the
number by as many, so a change of a few may go unseen for as long as many come in. What
rts itself adds late, or replaces, it tells of (:mod:`rts.ledger.rollups`); the seal is
for what other hands do.

A span ends before what is still being written, and begins after what the server is
about to remove for its age.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pymongo.database import Database
from pymongo.errors import PyMongoError

from rts.keys import ROLLUPS, TASKS
from rts.ledger.rollups import LATE_S
from rts.views.intervals import Window, count

#: How far a span keeps from now, and from what is too old to be kept.
MARGIN = timedelta(seconds=2 * LATE_S)
#: How old a span may become before it is moved on: half of that which it keeps away
#: from what is removed.
MOVE_AFTER = MARGIN / 2
#: How old a span may become at most: records came in whenever it was to be moved.
LONGEST = 12 * MOVE_AFTER
#: Attempts to count while nothing comes in.
ATTEMPTS = 3

_FIRST = datetime(1, 1, 1, tzinfo=timezone.utc)
_LAST = datetime(9999, 1, 1, tzinfo=timezone.utc)
#: The index by whose field records are removed for their age (:mod:`rts.ledger.schema`).
_EXPIRING = {TASKS: "arrival_1"}


@dataclass(frozen=True)
class Seal:
    """A span of time of which nothing has changed since the seal was made."""

    #: Sums that bear it agreed with the ledger at some time since it was made.
    id: str
    #: From and to (not included), aware.
    span: Window

    def covers(self, window: Window) -> bool:
        """Whether *window* lies in the span."""
        return self.span[0] <= window[0] and window[1] <= self.span[1]


def seal_of(
    database: Database[dict[str, Any]], collection: str, now: datetime | None = None
) -> Seal | None:
    """Return the seal that holds, a new one where none does; ``None`` where it cannot
    be kept, because one may only read.

    Raises:
        PyMongoError: the server did not answer.
    """
    now = now or datetime.now(timezone.utc)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # what is kept of it
    kept = database[ROLLUPS].find_one({"_id": _id(collection)})
    if kept is None:
        return _make(database, collection, now)
    span = _aware(kept["span"][0]), _aware(kept["span"][1])
    spans = [span]
    age = now - _aware(kept["made_at"])
    if age > MOVE_AFTER:
        spans.append(_span(database, collection, now))
    inside = _inside(database, collection, spans)
    least, most = kept["inside"]
    changed = inside[0][0] > most or inside[0][1] < least
    if changed or not -LONGEST < age < LONGEST:
        return _make(database, collection, now)
    # Moved only with numbers that are sharp: what was blurred would be forgotten.
    sharp = least == most and inside[0] == (least, most)
    for moved, n in zip(spans[1:], inside[1:], strict=True):
        if sharp and _keep(database, collection, kept["seal"], now, moved, n):
            span = moved
    return Seal(kept["seal"], span)


def _make(database: Database[dict[str, Any]], collection: str, now: datetime) -> Seal | None:
    span = _span(database, collection, now)
    (inside,) = _inside(database, collection, [span])
    name = uuid.uuid4().hex
    return Seal(name, span) if _keep(database, collection, name, now, span, inside) else None


def _keep(
    database: Database[dict[str, Any]],
    collection: str,
    name: str,
    now: datetime,
    span: Window,
    inside: tuple[int, int],
) -> bool:
    seal = {"seal": name, "made_at": now, "span": list(span), "inside": list(inside)}
    try:
        database[ROLLUPS].replace_one({"_id": _id(collection)}, seal, upsert=True)
    except PyMongoError:  # it only saves time
        return False
    return True


def _span(database: Database[dict[str, Any]], collection: str, now: datetime) -> Window:
    """Return what is old enough to be done with, and young enough not to be removed."""
    since = _FIRST
    index = (
        database[collection]
        .index_information()
        .get(_EXPIRING.get(collection, "completed_at_1"), {})
    )
    if "expireAfterSeconds" in index:
        since = now - timedelta(seconds=index["expireAfterSeconds"]) + MARGIN
    until = now - MARGIN
    return min(since, until), until


def _inside(
    database: Database[dict[str, Any]], collection: str, spans: list[Window]
) -> list[tuple[int, int]]:
    """Return how many records lie in each span, at least and at most."""
    records = database[collection]
    for _ in range(ATTEMPTS):
        before = records.estimated_document_count()
        outside = [_outside(database, collection, span) for span in spans]
        after = records.estimated_document_count()
        if before == after:
            break
    least, most = sorted((before, after))
    return [(least - n, most - n) for n in outside]


def _outside(database: Database[dict[str, Any]], collection: str, span: Window) -> int:
    """Count the records that did not end in *span*, or have not ended."""
    open_: Mapping[str, Any] = {"completed_at": None}
    if collection == TASKS:
        open_ = {"verdict_at": None, **open_}
    n = database[collection].count_documents(open_) + count(
        database, collection, (span[1], _LAST)
    )
    return n + (count(database, collection, (_FIRST, span[0])) if span[0] > _FIRST else 0)


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)


def _id(collection: str) -> str:
    return f"{collection}:seal"
