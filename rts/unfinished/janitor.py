"""Ends the runs that nobody else can end: their worker, or their process, is gone.

Such an end is provisional: should the run turn out to be alive (a worker that was
suspended), its own end replaces the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from rts import health
from rts.clock import FleetClock
from rts.ledger.shipper import CHUNK
from rts.link.delivery import ask_for_room
from rts.link.lease import Lease
from rts.link.link import Link
from rts.link.scripts import pack
from rts.ports import RunSink
from rts.records import LOST, read_runs
from rts.settings import Settings
from rts.tau.finish import FinishCall, finish_entry
from rts.unfinished.heartbeat import LOST_AFTER_S
from rts.unfinished.in_flight import instance_of
from rts.unfinished.notes import NoteBoard, is_alive

#: Seconds for which a dead worker stays listed.
FORGET_AFTER_S = 300.0
#: If the last look was more seconds ago than this, a heartbeat that has not changed since
#: proves nothing: this process, Redis or the whole host was stopped.
MAX_GAP_S = 5.0
#: Seconds for which a process of this worker must be gone before its run is ended here: the
#: main process, which knows the cause, goes first. Where its pool waits before it takes a job
#: for lost, that comes on top.
ORPHANED_AFTER_S = 3.0


class Janitor:
    """Ends lost runs, in one companion or drain of the fleet at a time.

    A worker is gone if its heartbeat has not changed over successive looks. Instants are
    not compared: after an outage of Redis, or on a host with a wrong clock, every
    heartbeat is old although no worker is gone.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        clock: FleetClock,
        name: str,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._keys = settings.keys
        self._finish = FinishCall(settings)
        self._clock = clock
        self._lease = Lease(link, settings.keys.janitor, name, LOST_AFTER_S)
        self._now = now
        #: Instance to its heartbeat (``None``: it has none) and the monotonic
        #: instant at which that was first seen.
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        self._looked_at = -1e9

    def step(self) -> int:
        """Look once, if the lease is held here; return the number of runs ended."""
        keys = self._keys
        if not self._lease.acquire():
            return 0
        ask_for_room(self._link, keys.overdue)  # or heartbeats are refused as well
        workers, fields = self._link.call(
            pack("HGETALL", keys.workers), pack("HKEYS", keys.running)
        )
        beats = {
            name.decode("utf-8", "replace"): beat
            for name, beat in zip(workers[::2], workers[1::2], strict=True)
        }
        noted = {instance_of(field) for field in fields}
        silent = self._silence(beats, beats.keys() | noted)
        gone = [name for name in beats if silent[name] > FORGET_AFTER_S]
        if gone:
            self._link.call(pack("HDEL", keys.workers, *gone))
        lost = {name for name, silent_s in silent.items() if silent_s > LOST_AFTER_S}
        return self._end([field for field in fields if instance_of(field) in lost])

    def leave(self) -> None:
        """Let another janitor take over at once."""
        self._lease.release()

    def _silence(self, beats: dict[str, bytes], instances: Iterable[str]) -> dict[str, float]:
        """Return the seconds for which each instance has been seen silent."""
        now = self._now()
        if now - self._looked_at > MAX_GAP_S:
            self._seen.clear()
        self._looked_at = now
        seen = {}
        for name in instances:
            beat, since = self._seen.get(name, (None, now))
            if beat != beats.get(name):
                beat, since = beats.get(name), now
            seen[name] = (beat, since)
        self._seen = seen
        return {name: now - since for name, (_, since) in seen.items()}

    def _end(self, fields: Sequence[bytes]) -> int:
        """End the runs with these fields of the ``running`` hash as lost; return how many."""
        running, now, ended = self._keys.running, self._clock.now(), 0
        for start in range(0, len(fields), CHUNK):
            chunk = fields[start : start + CHUNK]
            (notes,) = self._link.call(pack("HMGET", running, *chunk))
            runs = read_runs(note for note in notes if note is not None)
            lost = [run._replace(completed_at=now, state=LOST, cause="lost") for run in runs]
            entries = [finish_entry(run, number) for number, run in enumerate(lost, 1)]
            self._link.call(self._finish.pack(None, entries, {"runs_lost": len(lost)}))
            self._link.call(pack("HDEL", running, *chunk))  # not where the ends were refused
            ended += len(lost)
        return ended


class Orphans:
    """Ends runs of this worker whose pool process died unreported.

    Celery reports nothing if it requeues the message (``reject_on_worker_lost``),
    cancels a run, or retries it on behalf of its lost process.
    """

    def __init__(
        self,
        board: NoteBoard,
        sink: RunSink,
        clock: FleetClock,
        pool_waits_s: float = 0.0,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._sink = sink
        self._clock = clock
        self._after_s = pool_waits_s + ORPHANED_AFTER_S
        self._now = now
        #: Run id to the monotonic instant at which its process was first found missing.
        self._missing: dict[str, float] = {}

    def step(self) -> int:
        """Look once; return the number of runs ended."""
        now = self._now()
        missing: dict[str, float] = {}
        ended = 0
        for slot, note in self._board.notes():
            if note.pid is None or is_alive(note.pid):
                continue
            missing[note.run_id] = self._missing.get(note.run_id, now)
            missing_s = now - missing[note.run_id]
            if missing_s > self._after_s and self._board.release(slot, note):
                completed_at = self._clock.now() - missing_s
                self._sink.ended(
                    note._replace(completed_at=completed_at, state=LOST, cause="killed")
                )
                health.count("runs_lost")
                ended += 1
        self._missing = missing
        return ended
