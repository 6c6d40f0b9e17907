"""The tasks that a worker acknowledged last, in memory that its processes share.

From its acknowledgement on nobody delivers a task again. If its worker is killed
before the run has noted its beginning, this is all that is known of it.
"""

from __future__ import annotations

import marshal
import mmap
import struct
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

#: Bytes of one entry; a task with a longer description has none.
ENTRY_BYTES = 1024
#: What is kept of a message's attributes: what its verdict needs.
KEPT = (
    *("id", "task", "retries", "parent_id", "root_id", "delivery_info"),
    *("task_type", "rts_type_source", "rts_tau", "rts_k", "rts_arrival", "rts_deadline"),
    *("rts_arrival_source", "rts_policy"),
)

_LENGTH = struct.Struct("=I")
_ROOM = ENTRY_BYTES - _LENGTH.size


class Acknowledged:
    """A ring of so many entries (*size*), which begins at *start* in *memory*.

    Written by the worker's main process; read by it, and by the companion once the
    main process is gone.
    """

    def __init__(self, memory: mmap.mmap, start: int, size: int) -> None:
        self._memory = memory
        self._starts = [start + n * ENTRY_BYTES for n in range(size)]
        self._number = count()

    def put(self, attributes: Mapping[str, Any]) -> None:
        """Note that the task of a message with these attributes is acknowledged now."""
        try:
            entry = marshal.dumps([attributes.get(name) for name in KEPT])
        except ValueError:
            return  # a serializer of the app's own gave it something else
        length = len(entry)
        if length > _ROOM:
            return
        start = self._starts[next(self._number) % len(self._starts)]
        body = start + _LENGTH.size
        # The entry is empty until its length is there, which comes last.
        _LENGTH.pack_into(self._memory, start, 0)
        self._memory[body : body + length] = entry
        _LENGTH.pack_into(self._memory, start, length)

    def tasks(self) -> Iterator[dict[str, Any]]:
        """Return the attributes that are kept, task by task."""
        for _, attributes in self._entries():
            yield attributes

    def take(self, task_id: str) -> dict[str, Any] | None:
        """Return the attributes that are kept of a task, and forget them."""
        found = None
        for start, attributes in self._entries():
            if attributes["id"] == task_id:
                found = attributes
                _LENGTH.pack_into(self._memory, start, 0)
        return found

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for start in self._starts:
            (length,) = _LENGTH.unpack_from(self._memory, start)
            if 0 < length <= _ROOM:
                body = start + _LENGTH.size
                entry = marshal.loads(self._memory[body : body + length])
                yield start, dict(zip(KEPT, entry, strict=True))

    def clear(self) -> None:
        """Forget all: the worker ends well."""
        for start in self._starts:
            _LENGTH.pack_into(self._memory, start, 0)
