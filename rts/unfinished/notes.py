"""Notes of a worker's current runs, in memory that its processes share
(:mod:`rts.unfinished.shared_memory`).

A pool child writes a note of each run before it starts it. If the child is killed, the worker's
main process ends the run by its note; if the whole worker is killed, its companion does. A note
costs no system call, and is the beginning of the line that will record the run's end.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator

from rts import forks, health
from rts.fields import brief
from rts.records import Execution

#: Bytes of one slot. A note has about 400; runs with very long task names or ids are not noted.
SLOT_BYTES = 4096

#: Seconds for which a process that has found no unused slot does not look again: to look at
#: thousands of them before each run of a batch would cost more than the batch.
FULL_S = 1.0

#: A slot's header: process id of its owner (0: free), length of the note (0: none), the
#: owner's sequence number, which tells apart notes of the same length.
_HEAD = struct.Struct("=III")
_ROOM = SLOT_BYTES - _HEAD.size


class NoteBoard:
    """The notes: *slots* of them, from *start* on in *memory*, which maps the file *fd*.

    A slot is written by the process that owns it, until it dies. The main process and the
    companion read all, and remove the notes of runs that cannot end themselves.
    """

    def __init__(self, memory: mmap.mmap, start: int, slots: int, fd: int) -> None:
        self.slots = slots
        self._map = memory
        self._begin = start
        #: For its lock, under which processes claim slots.
        self._fd = fd
        #: Unused slots that this process owns.
        self._free: list[int] = []
        #: Where to look for the next one first, and by ``time.monotonic`` when.
        self._next = 0
        self._claim_at = -math.inf
        self._number = 0
        self._lock = threading.Lock()
        forks.in_child(self.leave_slots)

    def put(self, note: bytes) -> int | None:
        """Note that a run starts; return its slot, ``None`` if there was no room.

        *note* is the execution as JSON, as far as it is known.
        """
        length = len(note)
        slot = None
        if length <= _ROOM:
            try:
                slot = self._free.pop()
            except IndexError:
                slot = self._claim()
        if slot is None:
            health.count("starts_unnoted")
            return None
        start = self._begin + slot * SLOT_BYTES
        # The slot is empty until the length stands in its header, which comes last.
        body = start + _HEAD.size
        self._map[body : body + length] = note
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        _HEAD.pack_into(self._map, start, forks.pid, length, number)
        return slot

    def clear(self, slot: int) -> None:
        """Note that the run in *slot*, which this process owns, has ended."""
        _HEAD.pack_into(self._map, self._begin + slot * SLOT_BYTES, forks.pid, 0, 0)
        self._free.append(slot)

    def notes(self) -> Iterator[tuple[int, Execution]]:
        """Yield the slots in use, of all processes, with their notes."""
        for slot in range(self.slots):
            note = self._read(slot)
            if note is not None:
                yield slot, note

    def take(self, task_id: str) -> Execution | None:
        """Remove and return the note of a run that was cut short.

        ``None`` if there is none: the task was never started, or its end is written
        already. Of several runs (a message that was redelivered too early), one whose
        process is gone.
        """
        wanted = str(brief(task_id))  # as the note holds it
        found = [(slot, note) for slot, note in self.notes() if str(note.task_id) == wanted]
        found.sort(key=lambda pair: is_alive(pair[1].pid or 0))
        for slot, note in found:
            if self.release(slot, note):
                return note
        return None

    def release(self, slot: int, note: Execution) -> bool:
        """Remove *note* from its slot, for its process; return False if it is there no more."""
        if self._read(slot) != note:
            return False
        owner, _, _ = _HEAD.unpack_from(self._map, self._start(slot))
        # Another process remains the owner: it may have survived the signal, and use its slot
        # again. A slot of this process is freed, as nobody else would do so.
        _HEAD.pack_into(self._map, self._start(slot), 0 if owner == forks.pid else owner, 0, 0)
        return True

    def _read(self, slot: int) -> Execution | None:
        start = self._start(slot)
        head = _HEAD.unpack_from(self._map, start)
        length = head[1]
        if not 0 < length <= _ROOM:
            return None
        payload = self._map[start + _HEAD.size : start + _HEAD.size + length]
        if _HEAD.unpack_from(self._map, start) != head:
            return None  # the run has just ended
        try:
            return Execution.from_json(payload)
        except ValueError:
            return None  # not written by rts

    def leave_slots(self) -> None:
        """Leave, in a forked child, the parent's slots to the parent."""
        self._free = []
        self._lock = threading.Lock()

    def _start(self, slot: int) -> int:
        return self._begin + slot * SLOT_BYTES

    def _claim(self) -> int | None:
        """Claim a slot for this process. Once per process and concurrent task."""
        now = time.monotonic()
        if now < self._claim_at:
            return None
        with self._lock:  # against other threads; lockf, against other processes
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            try:
                for number in range(self._next, self._next + self.slots):
                    slot = number % self.slots
                    owner, length, _ = _HEAD.unpack_from(self._map, self._start(slot))
                    if owner == 0 or (
                        length == 0 and owner != forks.pid and not is_alive(owner)
                    ):
                        _HEAD.pack_into(self._map, self._start(slot), forks.pid, 0, 0)
                        self._next = slot + 1
                        return slot
                self._claim_at = now + FULL_S
                return None
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)


def is_alive(pid: int) -> bool:
    """Return whether there is such a process; a zombie counts, until its parent reaps it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's, so it exists
    return True
