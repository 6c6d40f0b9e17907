"""The tasks that a worker received last, in memory that its processes share.

A Redis broker does not say which worker has prefetched a message; the worker's heartbeat
does, so that predictions know whose slots the message waits for.
"""

from __future__ import annotations

import base64
import mmap
import struct
import zlib
from collections import deque
from collections.abc import Sequence

from rts.fields import brief

#: Tasks that are remembered.
SIZE = 256
_COUNT = struct.Struct("=Q")
_MARK = struct.Struct("=I")
#: Bytes in memory: the number of tasks received, and a mark of each of the last ones.
BYTES = _COUNT.size + SIZE * _MARK.size


def mark_of(task_id: object) -> int:
    """Return a task's mark: a 32-bit checksum of its id, as records hold it."""
    return zlib.crc32(str(brief(task_id)).encode(errors="replace"))


class Received:
    """A ring buffer that begins at *start* in *memory*. Written by one thread of the
    worker's main process, about once a second; read by the companion.
    """

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self._memory = memory
        self._start = start
        self._marks = start + _COUNT.size
        self._count = 0
        #: Ids of which no mark is written yet.
        self._new: deque[object] = deque(maxlen=SIZE)

    def put(self, task_id: object) -> None:
        """Record that a message of this task was received. Its mark is written later: between
        two tasks, CPU caches go cold, and it would cost ten times as much.
        """
        self._new.append(task_id)

    def share(self) -> None:
        """Write the marks of the tasks that were put since the last call."""
        while self._new:
            place = self._marks + self._count % SIZE * _MARK.size
            _MARK.pack_into(self._memory, place, mark_of(self._new.popleft()))
            self._count += 1
        _COUNT.pack_into(self._memory, self._start, self._count)

    def encoded(self) -> str:
        """Return the marks of the last tasks as text, in any order (:func:`decode_marks`)."""
        (count,) = _COUNT.unpack_from(self._memory, self._start)
        end = self._marks + min(count, SIZE) * _MARK.size
        return base64.b64encode(self._memory[self._marks : end]).decode()


def decode_marks(text: str) -> Sequence[int]:
    """Return the marks that :meth:`Received.encoded` has written.

    Raises:
        ValueError: *text* is something else.
    """
    packed = base64.b64decode(text, validate=True)
    if len(packed) % _MARK.size:
        raise ValueError("a mark is cut off")
    return [mark for (mark,) in _MARK.iter_unpack(packed)]
