"""The drain: moves records from the outbox into the ledger, in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from rts import health
from rts.errors import StoreUnavailable
from rts.fields import text
from rts.ledger.outbox import Batch, RedisOutbox
from rts.ledger.refused import set_aside, store_or_set_aside
from rts.ports import Ledger
from rts.records import OutboxEntry, is_provisional

logger = logging.getLogger("rts.drain")

#: Records in one batch: large enough that the round trips do not matter, small
#: enough to take a fraction of a second.
BATCH = 1000
#: First and longest back-off, seconds, while the ledger is unavailable.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.5, 5.0


class Drain:
    """Moves records. An entry leaves the outbox only once it is in the ledger."""

    def __init__(
        self,
        outbox: RedisOutbox,
        ledger: Ledger,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._ledger = ledger
        self._now = now
        #: A batch that was read and is not in the ledger yet.
        self._pending: Batch | None = None
        #: Ids of its entries that end a task which another run had ended before, as the ledger
        #: tells when it stores the batch; ``None`` until then.
        self._again: set[str] | None = None
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._outages = health.Outages(now)
        #: Records moved since the start.
        self.moved = 0

    def step(self) -> int:
        """Move one batch and return the number of records.

        0 means that there is nothing to do now: the outbox is empty, or the
        ledger is unavailable and not to be tried again yet.

        Raises:
            StoreUnavailable: the outbox is unavailable.
        """
        if self._now() < self._retry_at:
            return 0
        batch = self._pending or self._outbox.read(BATCH)
        if not batch.entries and not batch.unreadable:
            return 0
        self._pending = batch
        try:
            if self._again is None:
                again = store_or_set_aside(self._ledger, batch.entries)
                for _, raw in batch.unreadable:
                    set_aside(self._ledger, raw, "not a record of rts")
                self._again = again
            not_verdicts, not_ends = self._superseded(batch.entries)
        except StoreUnavailable as exc:
            self._back_off(exc)
            return 0
        self._backoff_s = 0.0
        if self._outages.tell_end():
            logger.warning("rts: the ledger is available again; draining goes on")
        ids = [entry.entry_id for entry in batch.entries] + [i for i, _ in batch.unreadable]
        self._outbox.done(ids, self._again.union(not_verdicts), not_ends)
        self._pending, self._again = None, None
        self.moved += len(ids)
        return len(ids)

    @property
    def caught_up(self) -> bool:
        """Whether everything that was read is in the ledger."""
        return self._pending is None

    def _superseded(self, entries: Sequence[OutboxEntry]) -> tuple[list[str], list[str]]:
        """Return the ids of two kinds of provisional ends: those that are not the verdict on
        their task, which ended by itself or goes on; and those whose run wrote its own end. A
        worker that is killed leaves many.

        Raises:
            StoreUnavailable: the ledger is unavailable.
        """
        ends = [e for e in entries if is_provisional(e.execution.state, e.execution.cause)]
        if not ends:
            return [], []
        verdicts = self._ledger.provisional({text(e.execution.task_id) for e in ends})
        not_verdicts = [e.entry_id for e in ends if text(e.execution.task_id) not in verdicts]
        ended = self._ledger.self_ended({text(e.execution.run_id) for e in ends})
        not_ends = [e.entry_id for e in ends if text(e.execution.run_id) in ended]
        return not_verdicts, not_ends

    def _back_off(self, exc: StoreUnavailable) -> None:
        if self._outages.tell():
            logger.warning(
                "rts: the ledger is unavailable (%s). Records wait in the outbox. Check "
                "rts_mongo_url and the server",
                exc,
            )
        self._backoff_s = min(MAX_BACKOFF_S, max(MIN_BACKOFF_S, 2 * self._backoff_s))
        self._retry_at = self._now() + self._backoff_s
