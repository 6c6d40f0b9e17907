"""Reading the outbox, with a consumer group: what a dead drain left is taken over."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from rts.keys import GROUP
from rts.ledger.counting import DURATIONS, LATENESS, spelled
from rts.ledger.entries import read_entry
from rts.link.link import Link
from rts.link.scripts import DONE, LEAVE, TAKE, pack
from rts.ports import Batch
from rts.records import OutboxEntry
from rts.settings import Settings

#: Seconds after which an entry that another drain holds is taken over. A batch
#: takes a fraction of a second; a second delivery does no harm.
TAKEOVER_S = 5.0

#: Entries that one script hands out: Redis serves nobody else meanwhile, about
#: 5 µs for each.
MAX_TAKEN = 500
#: Verdicts that are remembered at least, so that a late end is no second one.
LEAST_JUDGED = 10_000
#: Entries that one script forgets and counts, about 15 µs for each.
MAX_DONE = 200


class RedisOutbox:
    """A :class:`rts.ports.Outbox` on a Redis stream. *consumer* is this drain's name.

    What an answer that never arrived had in it is pending, and comes again when
    it is taken over, like what another drain left.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        consumer: str,
        *,
        takeover_s: float = TAKEOVER_S,
    ) -> None:
        self._link = link
        self._outbox = settings.keys.outbox
        self._consumer = consumer
        self._takeover_s = takeover_s
        self._look_at = 0.0
        keys = settings.keys
        self._done = [self._outbox, *keys.counting, keys.judged, keys.counters]
        self._limits: list[str | bytes | float] = [
            *(GROUP, settings.max_types, max(settings.open_max, LEAST_JUDGED)),
            *(spelled(DURATIONS), spelled(LATENESS)),
        ]

    def read(self, limit: int) -> Batch:
        """See :class:`rts.ports.Outbox`."""
        entries: list[OutboxEntry] = []
        unreadable: list[tuple[str, str]] = []
        looking = time.monotonic() >= self._look_at
        left = limit
        while left > 0:
            most = min(left, MAX_TAKEN)
            lines = self._take(most, looking)
            for i in range(0, len(lines), 3):
                entry_id, record, learned = lines[i : i + 3]
                try:
                    entries.append(read_entry(entry_id, record, learned))
                except ValueError:
                    unreadable.append((entry_id, record))
            if looking and len(lines) < 3 * most:
                self._look_at = time.monotonic() + self._takeover_s / 2
                looking = False
            if len(lines) < 3 * most:
                break
            left -= most
        return Batch(entries, unreadable)

    def done(
        self,
        entry_ids: Iterable[str],
        beside: Collection[str] = (),
        known: Collection[str] = (),
    ) -> None:
        """See :class:`rts.ports.Outbox`."""
        marks = {**dict.fromkeys(beside, "-"), **dict.fromkeys(known, "=")}
        ids = [marks.get(i, "") + i for i in entry_ids]
        # A call for each chunk: in between Redis serves others.
        for start in range(0, len(ids), MAX_DONE):
            self._link.call(DONE.pack(self._done, [*self._limits, *ids[start:][:MAX_DONE]]))

    def waiting(self) -> int:
        """Return the number of entries, also of those that other drains have in hand.

        Raises:
            StoreUnavailable: Redis is away.
        """
        return int(self._link.call(pack("XLEN", self._outbox))[0])

    def leave(self) -> None:
        """Take this drain off the group, where it has nothing in hand.

        Raises:
            StoreUnavailable: Redis is away. Another drain does it later.
        """
        self._link.call(LEAVE.pack([self._outbox], [GROUP, self._consumer]))

    def _take(self, most: int, looking: bool) -> list[str]:
        arguments: list[str | bytes | float] = [
            *(GROUP, self._consumer, most),
            *(int(self._takeover_s * 1000), "1" if looking else "0"),
        ]
        (text,) = self._link.call(TAKE.pack([self._outbox], arguments))
        return text.decode("utf-8", "replace").split("\n") if text else []
