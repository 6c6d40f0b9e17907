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
    search = _Search(ledger)
    search.store(entries)
    if search.refuses_all:
        error = search.bad[0][1]
        why = f"{type(error).__name__}: {str(error)[:200]}"
        health.warn_once(
            f"every record:{type(error).__name__}",
            "rts: the ledger refuses every record: %s. They are tried again and again",
            why,
        )
        raise StoreUnavailable(f"the ledger refuses every record: {why}") from error
    for part in search.postponed:
        search.store(part)
    for entry, error in search.bad:
        set_aside(ledger, entry.execution.to_json(), f"{type(error).__name__}: {error}")
    return search.again


class _Search:
    """Stores a batch, and finds the records in it that the ledger refuses, by halves."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._any_stored = False
        self.bad: list[tuple[OutboxEntry, Exception]] = []
        #: Ids of the entries that end a task which another run had ended.
        self.again: set[str] = set()
        #: Parts that were refused as a whole, and not searched since all seemed to be.
        self.postponed: list[Sequence[OutboxEntry]] = []

    @property
    def refuses_all(self) -> bool:
        """Whether the records are not to blame, but a validator, a full quota or a bug."""
        return not self._any_stored and len(self.bad) >= MANY

    def store(self, part: Sequence[OutboxEntry]) -> None:
        """Store what can be stored of *part*."""
        try:
            self.again |= self._ledger.write(part)
            self._any_stored = True
        except StoreUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001  caused by one of the entries: find it
            if len(part) == 1:
                self.bad.append((part[0], exc))
            elif self.refuses_all:
                self.postponed.append(part)
            else:
                middle = len(part) // 2
                halves = [part[:middle], part[middle:]]
                random.shuffle(halves)  # the next attempt at the batch begins elsewhere
                for half in halves:
                    self.store(half)


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
