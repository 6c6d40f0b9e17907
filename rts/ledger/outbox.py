"""Reading the outbox, with a consumer group: what a dead drain left is taken over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rts.keys import GROUP
from rts.link.link import Link
from rts.link.scripts import TAKE, pack
from rts.ports import Batch
from rts.records import Execution, Learned, OutboxEntry
from rts.settings import Settings
from rts.tau.finish import read_learned

#: Seconds after which an entry that another drain holds is taken over. A batch
#: takes a fraction of a second; a second delivery does no harm.
TAKEOVER_S = 5.0


def merge_note(execution: Execution, note: Execution) -> Execution:
    """Return an end that was written elsewhere, with what only the run's own
    process knew: identity, start and load.
    """
    started_at, runtime_s = note.started_at, None
    if started_at is not None and execution.completed_at is not None:
        runtime_s = max(0.0, execution.completed_at - started_at)
    return replace(
        execution,
        run_id=note.run_id,
        pid=note.pid,
        started_at=started_at,
        load_at_start=note.load_at_start,
        runtime_s=runtime_s,
        ran=True,
    )


def read_entry(entry_id: str, record: bytes, note: bytes, learned: bytes) -> OutboxEntry:
    """Return one entry of the stream.

    Raises:
        ValueError: it is not an entry of ours.
    """
    execution = Execution.from_json(record)
    if note:
        execution = merge_note(execution, Execution.from_json(note))
    lesson: Learned | None = read_learned(learned.decode()) if learned else None
    return OutboxEntry(entry_id, execution, lesson)


class RedisOutbox:
    """A :class:`rts.ports.Outbox` on a Redis stream. *consumer* is this drain's name."""

    def __init__(
        self,
        link: Link,
        settings: Settings,
        consumer: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._outbox = settings.keys.outbox
        self._consumer = consumer
        self._now = now
        self._look_at = 0.0

    def read(self, limit: int) -> Batch:
        """See :class:`rts.ports.Outbox`."""
        looking = self._now() >= self._look_at
        arguments: list[str | bytes | float]
        arguments = [
            GROUP,
            self._consumer,
            limit,
            int(TAKEOVER_S * 1000),
            "1" if looking else "0",
        ]
        (flat,) = self._link.call(TAKE.pack([self._outbox], arguments, whole=True))
        if looking and len(flat) < 4 * limit:
            self._look_at = self._now() + TAKEOVER_S
        entries: list[OutboxEntry] = []
        unreadable: list[tuple[str, str]] = []
        for i in range(0, len(flat), 4):
            entry_id, record, note, learned = flat[i : i + 4]
            try:
                entries.append(read_entry(entry_id.decode(), record, note, learned))
            except ValueError:  # also what json and unicode raise
                unreadable.append((entry_id.decode(), record.decode("utf-8", "replace")))
        return Batch(entries, unreadable)

    def done(self, entry_ids: Iterable[str]) -> None:
        """See :class:`rts.ports.Outbox`."""
        ids: Sequence[str] = list(entry_ids)
        if ids:
            self._link.call(
                pack("XACK", self._outbox, GROUP, *ids), pack("XDEL", self._outbox, *ids)
            )

    def leave(self) -> None:
        """Take this drain off the group. Only with nothing read and unfinished."""
        self._link.call(pack("XGROUP", "DELCONSUMER", self._outbox, GROUP, self._consumer))
