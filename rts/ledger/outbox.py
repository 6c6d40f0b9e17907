"""Reads the outbox as a consumer group: another drain takes over the entries of a dead one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rts.keys import GROUP
from rts.ledger.counting import DURATIONS, LATENESS, bounds_text, most_judged
from rts.link.link import Link
from rts.link.scripts import ACKNOWLEDGE, READ_OUTBOX, pack
from rts.records import Execution, OutboxEntry
from rts.settings import Settings
from rts.tau.finish import read_learned

#: Seconds after which an entry that another drain has claimed is taken over. A batch
#: takes a fraction of a second; a duplicate delivery does no harm.
TAKEOVER_S = 5.0

#: After one drain of a fleet has taken records, the others leave new ones alone for so many
#: seconds, so that they gather, unless ``MANY`` wait. Less than a drain's polling interval.
GATHER_S, MANY = 0.4, 1000

#: Entries that one script call claims. It blocks Redis for about 5 µs per entry, and Lua has
#: room for a few thousand.
MAX_TAKEN = 500
#: Entries that one script call deletes and counts, about 15 µs each.
MAX_DONE = 200


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of one read of the outbox."""

    entries: Sequence[OutboxEntry]
    #: Entry id and raw text of what could not be read.
    unreadable: Sequence[tuple[str, str]] = ()


class RedisOutbox:
    """Finished executions on their way to the ledger, in a Redis stream: at least once.
    *consumer* is this drain's name.

    If a reply never arrives, its entries stay pending and are taken over later, like those of a
    dead drain. *gather_s*: ``GATHER_S`` in a fleet.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        consumer: str,
        *,
        takeover_s: float = TAKEOVER_S,
        gather_s: float = 0.0,
    ) -> None:
        keys = settings.keys
        self._link = link
        self._outbox = keys.outbox
        self._consumer = consumer
        self._takeover_s = takeover_s
        self._gather_s = gather_s
        self._taking = [self._outbox, keys.taking, keys.takeover]
        self._done = [self._outbox, *keys.counting, keys.judged, keys.counters]
        self._limits = (
            GROUP,
            settings.max_types,
            most_judged(settings),
            bounds_text(DURATIONS),
            bounds_text(LATENESS),
        )

    def read(self, limit: int) -> Batch:
        """Return up to *limit* entries, first those that a dead drain left behind."""
        entries: list[OutboxEntry] = []
        unreadable: list[tuple[str, str]] = []
        left = limit
        while left > 0:
            most = min(left, MAX_TAKEN)
            lines = self._take(most)
            for i in range(0, len(lines), 3):
                entry_id, record, learned = lines[i : i + 3]
                try:
                    taught = read_learned(learned) if learned else None
                    run = Execution.from_json(record)
                    entries.append(OutboxEntry(entry_id, run, taught))
                except ValueError:
                    unreadable.append((entry_id, record))
            if len(lines) < 3 * most:
                break
            left -= most
        return Batch(entries, unreadable)

    def done(
        self,
        entry_ids: Iterable[str],
        not_verdicts: Collection[str] = (),
        not_ends: Collection[str] = (),
    ) -> None:
        """Remove entries that are in the ledger. Those in *not_verdicts* are not the verdict on
        their task, which has another one or none yet; those in *not_ends* not even the end of
        their run, whose own end is in the ledger.
        """
        marks = {**dict.fromkeys(not_verdicts, "-"), **dict.fromkeys(not_ends, "=")}
        ids = [marks.get(i, "") + i for i in entry_ids]
        # One call per chunk: in between Redis serves others.
        for start in range(0, len(ids), MAX_DONE):
            self._link.call(
                ACKNOWLEDGE.pack(self._done, [*self._limits, *ids[start:][:MAX_DONE]])
            )

    def hurry(self) -> None:
        """Let nothing gather from now on: the process is about to end."""
        self._gather_s = 0.0

    def waiting(self) -> int:
        """Return the number of entries, including those that other drains have claimed."""
        return int(self._link.call(pack("XLEN", self._outbox))[0])

    def _take(self, most: int) -> list[str]:
        arguments = (
            GROUP,
            self._consumer,
            most,
            int(self._takeover_s * 1000),
            int(self._gather_s * 1000),
            MANY,
        )
        (text,) = self._link.call(READ_OUTBOX.pack(self._taking, arguments))
        return text.decode("utf-8", "replace").split("\n") if text else []
