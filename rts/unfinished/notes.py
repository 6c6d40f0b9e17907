"""Notes of a worker's current runs, in memory that its processes share.

A pool child writes a note of each run before it starts it. If the child is killed, the worker's
main process ends the run by its note; if the whole worker is killed, its companion does. A note
costs no system call, and is the beginning of the line that will record the run's end.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import threading
import weakref
from collections.abc import Iterator

from rts import forks, health
from rts.fields import brief
from rts.load.board import BYTES as LOAD_BYTES
from rts.load.board import LoadBoard
from rts.records import Execution
from rts.unfinished.acknowledged import ENTRY_BYTES, Acknowledged
from rts.unfinished.received import BYTES as RECEIVED_BYTES
from rts.unfinished.received import Received

#: Bytes of one slot. A note has about 400; runs with very long task names or ids are not noted.
SLOT_BYTES = 4096
#: Slots beyond the worker's concurrency: pools grow, and a process that was killed
#: occupies its slot until its run's end is written.
SPARE_SLOTS = 32
#: Slots at most; runs in further greenlets are not noted.
MAX_SLOTS = 4096

#: Bytes before the first slot: the clock offset, which the companion measures, and
#: the worker's concurrency, which its main process knows.
_HEADER_BYTES = 64

#: A slot's header: process id of its owner (0: free), length of the note (0: none), the
#: owner's sequence number, which tells apart notes of the same length.
_HEAD = struct.Struct("=III")
_ROOM = SLOT_BYTES - _HEAD.size


class NoteBoard:
    """The shared memory: the notes, and what else a worker's processes tell each other.
    Created by the main process before the pool forks.

    A slot is written by the process that owns it, until it dies. The main process and the
    companion read all, and remove the notes of runs that cannot end themselves.
    """

    def __init__(self, slots: int, fd: int | None = None) -> None:
        self.slots = slots
        acknowledged = _HEADER_BYTES + slots * SLOT_BYTES
        received = acknowledged + 2 * slots * ENTRY_BYTES
        load = received + RECEIVED_BYTES
        size = load + LOAD_BYTES
        #: File descriptor of the memory, for the companion process to inherit.
        self.fd = _anonymous_file(size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size)
        #: The tasks that the main process acknowledged last: more than can be on their way
        #: to pool children at a time.
        self.acknowledged = Acknowledged(self._map, acknowledged, 2 * slots)
        #: The tasks that the main process received last.
        self.received = Received(self._map, received)
        #: The load, which the main process samples.
        self.load = LoadBoard(self._map, load)
        #: One number: server time minus this host's in seconds, as last measured by the
        #: companion.
        self.clock_offset_s = memoryview(self._map)[:8].cast("d")
        #: One number: the worker's concurrency, as last seen by its main process.
        self.worker_slots = memoryview(self._map)[8:16].cast("q")
        #: Unused slots that this process owns.
        self._free: list[int] = []
        self._number = 0
        self._lock = threading.Lock()
        forks.in_child(self.leave_slots)
        # A worker that an app's tests start leaves nothing behind, as with the memory itself.
        weakref.finalize(self, _close, self.fd, forks.pid).atexit = False

    @classmethod
    def for_concurrency(cls, concurrency: int) -> NoteBoard:
        """Create the board of a worker that runs *concurrency* tasks at a time."""
        board = cls(min(MAX_SLOTS, 2 * concurrency + SPARE_SLOTS))
        board.worker_slots[0] = concurrency
        return board

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
        start = _HEADER_BYTES + slot * SLOT_BYTES
        # The slot is empty until the length stands in its header, which comes last.
        body = start + _HEAD.size
        self._map[body : body + length] = note
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        _HEAD.pack_into(self._map, start, forks.pid, length, number)
        return slot

    def clear(self, slot: int) -> None:
        """Note that the run in *slot*, which this process owns, has ended."""
        _HEAD.pack_into(self._map, _HEADER_BYTES + slot * SLOT_BYTES, forks.pid, 0, 0)
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
        """Remove *note* from its slot, on behalf of its process; return False if it is no
        longer there.
        """
        if self._read(slot) != note:
            return False
        owner, _, _ = _HEAD.unpack_from(self._map, _start(slot))
        # Another process remains the owner: it may have survived the signal, and use its slot
        # again. A slot of this process is freed, as nobody else would do so.
        _HEAD.pack_into(self._map, _start(slot), 0 if owner == forks.pid else owner, 0, 0)
        return True

    def _read(self, slot: int) -> Execution | None:
        start = _start(slot)
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

    def _claim(self) -> int | None:
        """Claim a slot for this process. Once per process and concurrent task."""
        with self._lock:  # against other threads; lockf, against other processes
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                for slot in range(self.slots):
                    owner, length, _ = _HEAD.unpack_from(self._map, _start(slot))
                    if owner == 0 or (
                        length == 0 and owner != forks.pid and not is_alive(owner)
                    ):
                        _HEAD.pack_into(self._map, _start(slot), forks.pid, 0, 0)
                        return slot
                return None
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)


def _start(slot: int) -> int:
    return _HEADER_BYTES + slot * SLOT_BYTES


def _close(fd: int, pid: int) -> None:
    if pid == forks.pid:  # a child may have closed it, and the number is another file's
        os.close(fd)


def _anonymous_file(size: int) -> int:
    """Return a descriptor of a file of *size* bytes without a name, in memory if possible."""
    try:
        fd = os.memfd_create("rts-notes", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # an old C library; the sysctl vm.memfd_noexec is 2
        with tempfile.TemporaryFile() as file:
            # Writing to a page for which the disk has no space would kill the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def is_alive(pid: int) -> bool:
    """Return whether there is such a process; a zombie counts, until its parent reaps it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's, so it exists
    return True
