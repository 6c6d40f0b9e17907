"""Notes of the runs that go on in one worker, in memory that its processes share.

A pool child notes its run before it starts it. Should the child be killed, the
worker's main process reads there what only the child knew; should the whole
worker be killed, its companion process does. A note costs no system call, and is the
beginning of the line that will tell the run's end.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Iterator

from rts import forks, health
from rts.ledger.acknowledged import ENTRY_BYTES, Acknowledged
from rts.ledger.received import BYTES, Received
from rts.records import Execution

#: Bytes of one slot. A note has about 400; very long task names or ids have none.
SLOT_BYTES = 4096
#: Slots beside those for the worker's own concurrency: pools grow, and a process
#: that was killed leaves its slot occupied until its end is written.
SPARE_SLOTS = 32
#: A worker with more greenlets than this notes the first ones only.
MAX_SLOTS = 4096

#: Bytes before the first slot: the clock's offset, which the companion measures, and
#: the worker's slots, which its main process knows.
_PREFACE = 64

#: Owner's process id (0: nobody's), length of the note (0: none), number of the note
#: among its owner's, which tells one from another of the same length.
_HEAD = struct.Struct("=III")
_ROOM = SLOT_BYTES - _HEAD.size


class NoteBoard:
    """The shared memory. Made by the main process before the pool forks.

    Written by the process that owns a slot; read, and cleared after its owner's
    death, by the main process and by the companion.
    """

    def __init__(self, slots: int, fd: int | None = None) -> None:
        self.slots = slots
        end = _PREFACE + slots * SLOT_BYTES
        ring = end + 2 * slots * ENTRY_BYTES
        size = ring + BYTES
        #: File descriptor of the memory, for the companion process to inherit.
        self.fd = _memory(size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size)
        #: What the main process acknowledged last; more than can be on their way to a
        #: pool child at a time.
        self.acknowledged = Acknowledged(self._map, end, 2 * slots)
        #: What the main process has received last.
        self.received = Received(self._map, ring)
        #: One number: server time minus this host's, seconds, as the companion
        #: measured it last.
        self.clock_offset_s = memoryview(self._map)[:8].cast("d")
        #: One number: tasks that the worker may run at a time, as its main process saw
        #: last.
        self.worker_slots = memoryview(self._map)[8:16].cast("q")
        #: Slots that this process owns and does not use.
        self._free: list[int] = []
        self._number = 0
        self._pid = forks.pid
        self._lock = threading.Lock()

    @classmethod
    def for_concurrency(cls, concurrency: int) -> NoteBoard:
        """Make a board for a worker that runs so many tasks at a time."""
        board = cls(min(MAX_SLOTS, 2 * concurrency + SPARE_SLOTS))
        board.worker_slots[0] = concurrency
        return board

    def put(self, note: bytes) -> int | None:
        """Note that a run begins; returns its slot, ``None`` where there was no room.

        *note* is an execution as JSON, as far as it is known.
        """
        if self._pid != forks.pid:
            self._begin_anew()
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
        start = _PREFACE + slot * SLOT_BYTES
        # The slot is empty until its head tells the length, which comes last.
        body = start + _HEAD.size
        self._map[body : body + length] = note
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        _HEAD.pack_into(self._map, start, self._pid, length, number)
        return slot

    def clear(self, slot: int) -> None:
        """Note that the run in *slot*, one of this process's, has ended."""
        _HEAD.pack_into(self._map, _PREFACE + slot * SLOT_BYTES, self._pid, 0, 0)
        self._free.append(slot)

    def notes(self) -> Iterator[tuple[int, Execution]]:
        """Return the slots in use with their notes, of all processes."""
        for slot in range(self.slots):
            note = self._read(slot)
            if note is not None:
                yield slot, note

    def take(self, task_id: str) -> Execution | None:
        """Return the note of a run that was broken off, and forget it.

        ``None`` where there is none: nobody has started the task, or its end is
        written. Of several runs (a message that was delivered again too early) one
        whose process is gone.
        """
        found = [(slot, note) for slot, note in self.notes() if note.task_id == task_id]
        found.sort(key=lambda pair: lives(pair[1].pid or 0))
        for slot, note in found:
            if self.release(slot, note):
                return note
        return None

    def release(self, slot: int, note: Execution) -> bool:
        """Empty the slot of a dead process; False where it no longer holds *note*."""
        if self._read(slot) != note:
            return False
        _HEAD.pack_into(self._map, _start(slot), 0, 0, 0)
        return True

    def close(self) -> None:
        """Give the memory back (other processes keep theirs)."""
        self.clock_offset_s.release()
        self.worker_slots.release()
        self._map.close()
        os.close(self.fd)

    def _read(self, slot: int) -> Execution | None:
        start = _start(slot)
        head = _HEAD.unpack_from(self._map, start)
        length = head[1]
        if not 0 < length <= _ROOM:
            return None
        payload = self._map[start + _HEAD.size : start + _HEAD.size + length]
        if _HEAD.unpack_from(self._map, start) != head:
            return None  # the run has ended just now
        try:
            return Execution.from_json(payload)
        except ValueError:
            return None  # no process of ours writes such a thing

    def _begin_anew(self) -> None:
        """Leave, after a fork, the parent's slots to the parent."""
        self._pid = forks.pid
        self._free = []
        self._lock = threading.Lock()

    def _claim(self) -> int | None:
        """Make a slot this process's own. Once per process and concurrent task."""
        with self._lock:  # keeps other threads out, and lockf other processes
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                for slot in range(self.slots):
                    owner, length, _ = _HEAD.unpack_from(self._map, _start(slot))
                    if owner == 0 or (length == 0 and owner != self._pid and not lives(owner)):
                        _HEAD.pack_into(self._map, _start(slot), self._pid, 0, 0)
                        return slot
                return None
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)


def _start(slot: int) -> int:
    return _PREFACE + slot * SLOT_BYTES


def _memory(size: int) -> int:
    """Return a descriptor of *size* bytes that lie in memory and have no name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("rts-notes", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def lives(pid: int) -> bool:
    """Return whether there is such a process. So there is until its parent has learned
    that it has ended.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it is somebody else's, so it lives
    return True
