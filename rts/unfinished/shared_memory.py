"""The memory that a worker's processes share: what they tell each other without a system call.

The main process creates it before the pool forks. The pool's children inherit it, and so does
the companion, as a file without a name.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref

from rts import forks
from rts.load.board import BYTES as LOAD_BYTES
from rts.load.board import LoadBoard
from rts.unfinished.acknowledged import ENTRY_BYTES, Acknowledged
from rts.unfinished.notes import SLOT_BYTES, NoteBoard
from rts.unfinished.received import BYTES as RECEIVED_BYTES
from rts.unfinished.received import Received

#: Slots for notes beyond the worker's concurrency: pools grow, and a process that was killed
#: occupies its slot until its run's end is written.
SPARE_SLOTS = 32
#: Slots at most; further runs, in greenlets or in a batch, are not noted.
MAX_SLOTS = 4096

#: Bytes before the first slot, for the two single numbers.
_HEADER_BYTES = 64


class SharedMemory:
    """All of it, with room for *slots* notes. *fd*: the file, if another process created it."""

    def __init__(self, slots: int, fd: int | None = None) -> None:
        acknowledged = _HEADER_BYTES + slots * SLOT_BYTES
        received = acknowledged + 2 * slots * ENTRY_BYTES
        load = received + RECEIVED_BYTES
        size = load + LOAD_BYTES
        #: File descriptor, for the companion process to inherit.
        self.fd = _anonymous_file(size) if fd is None else fd
        memory = mmap.mmap(self.fd, size)
        #: One number: server time minus this host's in seconds, as last measured by the
        #: companion.
        self.clock_offset_s = memoryview(memory)[:8].cast("d")
        #: One number: the worker's concurrency, as last seen by its main process.
        self.worker_slots = memoryview(memory)[8:16].cast("q")
        #: The current runs, which those who run tasks note.
        self.notes = NoteBoard(memory, _HEADER_BYTES, slots, self.fd)
        #: The tasks that the main process acknowledged last: more than can be on their way
        #: to pool children at a time.
        self.acknowledged = Acknowledged(memory, acknowledged, 2 * slots)
        #: The tasks that the main process received last.
        self.received = Received(memory, received)
        #: The load, which the main process samples.
        self.load = LoadBoard(memory, load)
        # A worker that an app's tests start leaves nothing behind, as with the memory itself.
        weakref.finalize(memory, _close, self.fd, forks.pid).atexit = False

    @classmethod
    def for_concurrency(cls, concurrency: int, tasks_per_run: int = 1) -> SharedMemory:
        """Create the memory of a worker that runs *concurrency* tasks at a time, or batches of
        *tasks_per_run* tasks.
        """
        memory = cls(min(MAX_SLOTS, 2 * concurrency * tasks_per_run + SPARE_SLOTS))
        memory.worker_slots[0] = concurrency
        return memory


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
