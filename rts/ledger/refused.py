"""Stores records in the ledger, and sets aside those that it refuses."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rts import health
from rts.errors import StoreUnavailable
from rts.ports import Ledger
from rts.records import OutboxEntry

#: If so many records of a batch fail and none is stored, the records are not to blame.
MANY = 20


def store_or_set_aside(ledger: Ledger, entries: Sequence[OutboxEntry]) -> set[str]:
    """Write *entries*, setting aside those that cannot be stored. Return the ids of those
    that end a task which another run had ended.

    Raises:
        StoreUnavailable: the ledger is unavailable, or refuses all of many records.
    """
    bad: dict[int, Exception] = {}  # by the identity of the entry
    again: set[str] = set()
    stored, parts = 0, [entries]
    doubtful: list[Sequence[OutboxEntry]] = []
    while parts:
        part = parts.pop()
        try:
            again |= ledger.write(part)
            stored += len(part)
        except StoreUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001  caused by one of the entries: find it
            if len(part) == 1:
                bad[id(part[0])] = exc
            elif stored or len(bad) < MANY:
                middle = len(part) // 2
                halves = [part[:middle], part[middle:]]
                random.shuffle(halves)  # the next attempt at the batch begins elsewhere
                parts += halves
            else:  # is nothing stored of the others either?
                doubtful.append(part)
        if not parts:
            if not stored and len(bad) >= MANY:
                # Not the records' fault: a validator, a full quota, a bug.
                error = next(iter(bad.values()))
                why = f"{type(error).__name__}: {str(error)[:200]}"
                health.warn_once(
                    f"every record:{type(error).__name__}",
                    "rts: the ledger refuses every record: %s. They are tried again and again",
                    why,
                )
                raise StoreUnavailable(f"the ledger refuses every record: {why}") from error
            parts, doubtful = doubtful, []
    for entry in entries:
        if (cause := bad.get(id(entry))) is not None:
            set_aside(ledger, entry.execution.to_json(), f"{type(cause).__name__}: {cause}")
    return again


def set_aside(ledger: Ledger, raw: str, reason: str) -> None:
    """Keep a record that cannot be stored for inspection.

    Raises:
        StoreUnavailable: the ledger is unavailable.
    """
    ledger.refuse(raw, reason[:500])
    health.count("records_refused")
    health.warn_once(
        f"record:{reason[:80]}",
        "rts: a record cannot be stored; it is set aside in the collection 'refused': %s",
        reason[:500],
    )
