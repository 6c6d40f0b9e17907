"""Stores records in the ledger, and sets aside those that it refuses."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rts import health
from rts.errors import StoreUnavailable
from rts.ports import Ledger
from rts.records import OutboxEntry

#: If so many records of a batch are refused and none is stored, that is not the fault of the
#: records, but of a validator, a full quota or a bug.
MANY = 20


def store_or_set_aside(ledger: Ledger, entries: Sequence[OutboxEntry]) -> set[str]:
    """Write *entries*, setting aside those that cannot be stored. Return the ids of those
    that end a task which another run had ended.

    What the ledger refuses is written again in halves, until each record at fault is alone.

    Raises:
        StoreUnavailable: the ledger is unavailable, or refuses all of many records.
    """
    again: set[str] = set()
    stored = False
    #: Why records were refused alone, by their place in *entries*.
    reasons: dict[int, Exception] = {}
    #: Parts of several records that were refused and are still to be halved.
    refused: list[range] = []
    parts = [range(len(entries))]
    while parts:
        for part in parts:
            try:
                again |= ledger.write(entries[part.start : part.stop])
                stored = True
            except StoreUnavailable:
                raise
            except Exception as exc:  # noqa: BLE001  caused by one of the entries: find it
                if len(part) == 1:
                    reasons[part.start] = exc
                else:
                    refused.append(part)
        if not stored and len(reasons) >= MANY:
            error = next(iter(reasons.values()))
            raise _refuses_every_record(error) from error
        parts = _halves(refused.pop()) if refused else []
    for place, reason in sorted(reasons.items()):
        record = entries[place].execution.to_json()
        set_aside(ledger, record, f"{type(reason).__name__}: {reason}")
    return again


def _halves(part: range) -> list[range]:
    """Return both halves in random order: should this attempt at the batch come to nothing, the
    next one begins elsewhere.
    """
    middle = len(part) // 2
    return random.sample([part[:middle], part[middle:]], 2)


def _refuses_every_record(error: Exception) -> StoreUnavailable:
    """Log *error*, for which no record is to blame, and return it as an outage."""
    why = f"{type(error).__name__}: {str(error)[:200]}"
    health.warn_once(
        f"every record:{type(error).__name__}",
        "rts: the ledger refuses every record: %s. They are tried again and again",
        why,
    )
    return StoreUnavailable(f"the ledger refuses every record: {why}")


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
