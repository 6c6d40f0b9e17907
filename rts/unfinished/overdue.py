"""Finds tasks whose deadline passes before they end, and gives them their verdict.

One companion of the fleet looks every second. Whether a task waits in a queue, was lost
by the broker or runs too long does not matter here: it was published (or received) and
has not ended. If it ends after all, its own end replaces the verdict.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

from rts.errors import StoreUnavailable
from rts.fields import text
from rts.ledger.counting import most_judged
from rts.ledger.refused import store_or_set_aside
from rts.link.delivery import ask_for_room
from rts.link.lease import Lease
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import MARK_OVERDUE, pack
from rts.notices import MAX_EVENTS, TaskOverdue
from rts.ports import Ledger
from rts.records import (
    OVERDUE,
    OVERDUE_AFTER_S,
    PENDING,
    STARTED,
    Execution,
    OpenTask,
    OutboxEntry,
    read_runs,
)
from rts.settings import Settings
from rts.unfinished.in_flight import task_id_of
from rts.unfinished.open_task_format import task_of

#: Tasks in one batch: one query and one write of MongoDB, one script in Redis (about
#: 10 µs per task).
BATCH = 500
#: Seconds that one step takes at most, if a backlog is overdue.
STEP_S = 1.0
#: Seconds until another companion may take over the lease.
LEASE_S = 5.0
#: Where Redis was away or took no ends, or nobody has looked for ``MAX_GAP_S`` seconds, ends
#: may still wait on disks of hosts: they get ``SETTLE_S`` seconds to arrive.
MAX_GAP_S, SETTLE_S = 5.0, 2.0
#: Seconds for which a task that never ends stays among the overdue ones.
KEPT_S = 86400.0
#: Seconds between two calls that only remove what is too old.
TIDY_S = 60.0


class OverdueSweep:
    """Looks for overdue tasks, in one companion of the fleet at a time. Raises
    :class:`StoreUnavailable` if Redis or MongoDB is unavailable; a later step makes up for it.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        ledger: Ledger,
        name: str,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._keys = settings.keys
        most_names, judged = settings.max_types, most_judged(settings)
        self._limits = (settings.open_max, MAX_EVENTS, KEPT_S, most_names, judged)
        self._ledger = ledger
        self._lease = Lease(link, settings.keys.overdue_lease, name, LEASE_S)
        self._now = now
        self._looked_at = -1e9
        #: Earliest monotonic instants: to look, to ask for the lease, to tidy up.
        self._look_from = 0.0
        self._ask_from = 0.0
        self._tidy_from = 0.0

    def step(self) -> int:
        """Look once, if the lease is held here; return the number of new verdicts."""
        began = self._now()
        if began < self._ask_from:
            return 0
        try:
            if not self._lease.acquire():
                self._ask_from = self._now() + LEASE_S / 2
                return 0
            ask_for_room(self._link, self._keys.overdue)
        except StoreUnavailable:
            self._looked_at = -1e9
            raise
        now = self._now()  # a server that stalls has made these wait, too
        if now - self._looked_at > MAX_GAP_S:
            self._look_from = now + SETTLE_S
        self._looked_at = now
        if now < self._look_from:
            return 0
        found = 0
        while True:
            ids, at = self._due(began)
            if ids or self._now() >= self._tidy_from:
                found += self._mark(ids, at)
                self._tidy_from = self._now() + TIDY_S
            self._looked_at = self._now()
            if len(ids) < BATCH or self._now() - now >= STEP_S:
                return found

    def leave(self) -> None:
        """Let another companion take over at once."""
        self._lease.release()

    def _due(self, began: float) -> tuple[list[bytes], float]:
        """Return the ids of open tasks that were overdue when this step *began*, and the
        server's time. If Redis has stalled since, the ends of others wait for it.
        """
        at = as_instant(*self._link.call(pack("TIME")))
        before = f"({at - (self._now() - began) - OVERDUE_AFTER_S!r}"
        (found,) = self._link.call(
            pack("ZRANGEBYSCORE", self._keys.open, "-inf", before, "LIMIT", 0, BATCH)
        )
        return found, at

    def _mark(self, ids: Sequence[bytes], at: float) -> int:
        """Judge these tasks, and note in Redis which are overdue from now on. Remove those that
        have been overdue for too long. Return the number of new verdicts.
        """
        keys = self._keys
        verdicts = self._judge(ids) if ids else {}
        names = [keys.open, keys.overdue, keys.open_info, keys.open_counts, keys.judged]
        names += [keys.events, keys.counters, *keys.counting]
        notices = {raw: asdict(notice_of(verdict, at)) for raw, verdict in verdicts.items()}
        marked: list[str | bytes] = []
        for raw in ids:
            marked += (raw, json.dumps(notices[raw]) if raw in notices else "")
        call = MARK_OVERDUE.pack(names, [at, *self._limits, *marked])
        return int(self._link.call(call)[0])

    def _judge(self, ids: Sequence[bytes]) -> dict[bytes, Execution]:
        """Write the verdicts on those of the tasks that have not ended, and return them."""
        (infos,) = self._link.call(pack("HMGET", self._keys.open_info, *ids))
        found = {raw: task_of(raw, info) for raw, info in zip(ids, infos, strict=True)}
        tasks = {raw: task for raw, task in found.items() if task is not None}
        ended = self._ledger.ended({text(task.task_id) for task in tasks.values()})
        left = {raw: task for raw, task in tasks.items() if text(task.task_id) not in ended}
        running = self._running(left)
        verdicts = {raw: overdue_of(task, running.get(raw)) for raw, task in left.items()}
        entries = [OutboxEntry("", verdict) for verdict in verdicts.values()]
        store_or_set_aside(self._ledger, entries)
        return verdicts

    def _running(self, ids: Collection[bytes]) -> dict[bytes, Execution]:
        """Return the notes of those tasks that are running now."""
        if not ids:
            return {}
        (fields,) = self._link.call(pack("HKEYS", self._keys.running))
        wanted = [field for field in fields if task_id_of(field) in ids]
        if not wanted:
            return {}
        (notes,) = self._link.call(pack("HMGET", self._keys.running, *wanted))
        runs = read_runs(note for note in notes if note is not None)
        return {str(run.task_id).encode("utf-8", "replace"): run for run in runs}


def overdue_of(task: OpenTask, note: Execution | None) -> Execution:
    """Return the verdict on a task that has not ended; *note* is its run's, if it has one."""
    if note is not None:
        return note._replace(
            state=STARTED, cause=OVERDUE, completed_at=None, runtime_s=None, ran=False
        )
    return Execution(
        **task._asdict(),
        run_id="",
        worker="",
        instance="",
        pid=None,
        state=PENDING,
        cause=OVERDUE,
        ran=False,
    )


def notice_of(verdict: Execution, at: float) -> TaskOverdue:
    """Return the notice of a verdict that was given at the instant *at*."""
    return TaskOverdue(
        task_id=text(verdict.task_id),
        name=text(verdict.name),
        task_type=text(verdict.task_type),
        queue=None if verdict.queue is None else text(verdict.queue),
        worker=verdict.worker or None,
        arrival=verdict.arrival,
        deadline=verdict.deadline,
        seen_at=at,
    )
