"""Ends the runs that nobody else can end: their worker, or their process, is gone.

Such an end is provisional: should the run turn out to live (a worker that was
suspended), its own end takes the verdict's place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from rts.clock import FleetClock
from rts.keys import Keys
from rts.link.link import Link, replies_as_text
from rts.link.scripts import REAP, pack
from rts.records import LOST, Execution
from rts.settings import Settings

#: Seconds without a heartbeat after which a worker counts as gone: ten beats, so
#: that a busy host is not mistaken for a dead one.
LOST_AFTER_S = 10.0
#: Seconds for which a dead worker stays in the list that people look at.
FORGET_AFTER_S = 300.0
#: Seconds that a process of this worker must be gone before its run is ended here:
#: the main process knows the cause and goes first.
GRACE_S = 3.0


class Janitor:
    """Looks for lost runs. One drain of the fleet does it at a time."""

    def __init__(self, link: Link, settings: Settings, clock: FleetClock, name: str) -> None:
        self._link = link
        self._keys = settings.keys
        self._clock = clock
        self._name = name

    def step(self) -> int:
        """Look once, if it is this janitor's turn; return the number of runs ended.

        Raises:
            StoreUnavailable: Redis is away.
        """
        keys = self._keys
        lease = int(LOST_AFTER_S * 1000)
        _, holder = self._link.call(
            pack("SET", keys.janitor, self._name, "NX", "PX", lease), pack("GET", keys.janitor)
        )
        if holder != self._name.encode():
            return 0
        _, workers, running = self._link.call(
            pack("PEXPIRE", keys.janitor, lease),
            pack("HGETALL", keys.workers),
            pack("HGETALL", keys.running),
        )
        now = self._clock.now()
        seen = {name: seen_at(beat) for name, beat in replies_as_text(workers).items()}
        gone = [name for name, at in seen.items() if now - at > FORGET_AFTER_S]
        if gone:
            self._link.call(pack("HDEL", keys.workers, *gone))

        def lost(note: Execution) -> bool:
            last = max(seen.get(note.instance, 0.0), note.started_at or 0.0)
            return now - last > LOST_AFTER_S

        return reap(self._link, self._keys, running, lost, "lost", now)

    def leave(self) -> None:
        """Let another janitor take over at once."""
        (holder,) = self._link.call(pack("GET", self._keys.janitor))
        if holder == self._name.encode():
            self._link.call(pack("DEL", self._keys.janitor))


class Orphans:
    """Ends runs of this worker whose pool process is gone without a word.

    Celery says nothing where it puts the message back (``reject_on_worker_lost``),
    cancels a run, or retries it on behalf of its lost process.
    """

    def __init__(
        self, link: Link, settings: Settings, clock: FleetClock, instance: str
    ) -> None:
        self._link = link
        self._keys = settings.keys
        self._clock = clock
        self._instance = instance
        #: Run id to the instant at which its process was first found missing.
        self._missing: dict[str, float] = {}

    def step(self) -> int:
        """Look once; return the number of runs ended.

        Raises:
            StoreUnavailable: Redis is away.
        """
        (running,) = self._link.call(pack("HGETALL", self._keys.running))
        now = self._clock.now()
        missing: dict[str, float] = {}

        def over(note: Execution) -> bool:
            if note.instance != self._instance or note.pid is None or _lives(note.pid):
                return False
            missing[note.run_id] = self._missing.get(note.run_id, now)
            return now - missing[note.run_id] > GRACE_S

        ended = reap(self._link, self._keys, running, over, "killed", now)
        self._missing = missing
        return ended


def reap(
    link: Link,
    keys: Keys,
    running: list[bytes],
    is_over: Callable[[Execution], bool],
    cause: str,
    now: float,
) -> int:
    """End the running notes that are over; return how many."""
    names = [keys.running, keys.outbox, keys.counters]
    ended = 0
    for field, text in zip(running[::2], running[1::2], strict=True):
        try:
            note = Execution.from_json(text)
        except ValueError:
            link.call(pack("HDEL", keys.running, field))
            continue
        if is_over(note):
            record = replace(note, completed_at=now, state=LOST, cause=cause).to_json()
            ended += int(link.call(REAP.pack(names, [field, text, record], whole=True))[0])
    return ended


def seen_at(heartbeat: str) -> float:
    """Return when a heartbeat was written, epoch seconds; 0.0 where it is unreadable."""
    try:
        beat = json.loads(heartbeat)
        return float(beat["seen_at"]) if isinstance(beat, Mapping) else 0.0
    except (ValueError, KeyError, TypeError):
        return 0.0


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is somebody else's, so it lives
    return True
