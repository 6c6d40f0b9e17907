"""The outbox in memory, with the same guarantees as the stream, for tests."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable

from rts.ledger.outbox import TAKEOVER_S
from rts.ports import Batch
from rts.records import Execution, OutboxEntry
from rts.tau.finish import read_learned


class MemoryStream:
    """The stream that several :class:`MemoryOutbox` read. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: Entry id to record and what was learned, in order of arrival.
        self.entries: dict[str, tuple[str, str]] = {}
        #: Entry id to its consumer and the instant at which that claimed it.
        self.pending: dict[str, tuple[str, float]] = {}
        self._ids = itertools.count(1)

    def add(self, record: str, learned: str = "") -> str:
        """Append an entry in the form of the Redis stream; return its id."""
        with self.lock:
            entry_id = f"{next(self._ids)}-0"
            self.entries[entry_id] = (record, learned)
            return entry_id


class MemoryOutbox:
    """A :class:`rts.ports.Outbox` on a :class:`MemoryStream`."""

    def __init__(
        self,
        stream: MemoryStream,
        consumer: str,
        now: Callable[[], float] = time.monotonic,
        *,
        takeover_s: float = TAKEOVER_S,
    ) -> None:
        self._stream = stream
        self._consumer = consumer
        self._now = now
        self._takeover_s = takeover_s

    def read(self, limit: int) -> Batch:
        """See :class:`rts.ports.Outbox`."""
        stream, now = self._stream, self._now()
        entries: list[OutboxEntry] = []
        unreadable: list[tuple[str, str]] = []
        with stream.lock:
            left = [
                entry_id
                for entry_id, (_, taken_at) in stream.pending.items()
                if now - taken_at >= self._takeover_s
            ]
            fresh = [entry_id for entry_id in stream.entries if entry_id not in stream.pending]
            for entry_id in (left + fresh)[:limit]:
                stream.pending[entry_id] = (self._consumer, now)
                record, learned = stream.entries[entry_id]
                try:
                    run = Execution.from_json(record)
                    entries.append(OutboxEntry(entry_id, run, read_learned(learned)))
                except ValueError:
                    unreadable.append((entry_id, record))
        return Batch(entries, unreadable)

    def done(
        self,
        entry_ids: Iterable[str],
        not_verdicts: Collection[str] = (),
        not_ends: Collection[str] = (),
    ) -> None:
        """See :class:`rts.ports.Outbox`."""
        with self._stream.lock:
            for entry_id in entry_ids:
                self._stream.entries.pop(entry_id, None)
                self._stream.pending.pop(entry_id, None)
