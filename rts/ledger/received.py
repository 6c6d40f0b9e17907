"""The tasks that a worker has received last, in memory that its processes share.

A broker on Redis does not tell which of several workers has taken a message ahead; the
worker's heartbeat does, so that predictions can tell whose slots it waits for.
"""

from __future__ import annotations

import base64
import mmap
import struct
import zlib
from collections.abc import Sequence

#: Tasks that are remembered.
SIZE = 256
_COUNT = struct.Struct("=Q")
_MARK = struct.Struct("=I")
#: Bytes in memory: how many were received, and a mark of each of the last ones.
BYTES = _COUNT.size + SIZE * _MARK.size


def mark_of(task_id: object) -> int:
    """Return a number below 2³², by which a task is known from most others."""
    return zlib.crc32(str(task_id).encode(errors="replace"))


class Received:
    """A ring that begins at *start* in *memory*. Written by the worker's main process, by
    one thread; read by the companion.
    """

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self._memory = memory
        self._start = start
        self._marks = start + _COUNT.size
        self._count = 0

    def put(self, task_id: object) -> None:
        """Note that a message of this task has arrived."""
        place = self._marks + self._count % SIZE * _MARK.size
        _MARK.pack_into(self._memory, place, mark_of(task_id))
        self._count += 1
        _COUNT.pack_into(self._memory, self._start, self._count)

    def told(self) -> str:
        """Return the marks of the last tasks, in any order, as text for :func:`marks_in`."""
        (count,) = _COUNT.unpack_from(self._memory, self._start)
        end = self._marks + min(count, SIZE) * _MARK.size
        return base64.b64encode(self._memory[self._marks : end]).decode()


def marks_in(text: str) -> Sequence[int]:
    """Return the marks that :meth:`Received.told` has written.

    Raises:
        ValueError: it has not.
    """
    packed = base64.b64decode(text, validate=True)
    if len(packed) % _MARK.size:
        raise ValueError("a mark is cut off")
    return [mark for (mark,) in _MARK.iter_unpack(packed)]
