"""The tasks that a worker acknowledged last, in memory that its processes share.

An acknowledged task is not delivered again. If its worker is killed before the run is noted,
this is all that is known of it.
"""

from __future__ import annotations

import marshal
import mmap
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

#: Bytes of one entry; a task that needs more is not kept.
ENTRY_BYTES = 1024
#: Seconds from a task's acknowledgement by which it has certainly begun: a killed worker's
#: companion knows nothing of older ones. (A worker with little to do still has entries of tasks
#: that the ledger has forgotten by now.)
BEGUN_S = 300.0
#: The attributes of a message that are kept: what a verdict needs.
KEPT = (
    "id",
    "task",
    "retries",
    "parent_id",
    "root_id",
    "delivery_info",
    "task_type",
    "rts_type_source",
    "rts_tau",
    "rts_k",
    "rts_arrival",
    "rts_deadline",
    "rts_arrival_source",
    "rts_policy",
)

_LENGTH = struct.Struct("=I")
_ROOM = ENTRY_BYTES - _LENGTH.size


class Acknowledged:
    """A ring buffer of *size* entries, which begins at *start* in *memory*.

    Written by the worker's main process; read by it, and by the companion once the
    main process is gone.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        start: int,
        size: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._now = now
        self._starts = [start + n * ENTRY_BYTES for n in range(size)]
        self._number = count()
        #: The id in each entry, as far as this process has written it: of thousands of entries,
        #: reading all takes 20 ms, and a thousand greenlets may time out at once.
        self._ids: list[object] = [None] * size

    def put(self, attributes: Mapping[str, Any]) -> None:
        """Record that the task of a message with these attributes is acknowledged now."""
        try:
            entry = marshal.dumps([self._now(), *map(attributes.get, KEPT)])
        except ValueError:
            return  # a custom serializer of the app put another type of object there
        length = len(entry)
        if length > _ROOM:
            return
        place = next(self._number) % len(self._starts)
        start = self._starts[place]
        body = start + _LENGTH.size
        # The entry is empty until its length is set, which comes last.
        _LENGTH.pack_into(self._memory, start, 0)
        self._memory[body : body + length] = entry
        _LENGTH.pack_into(self._memory, start, length)
        self._ids[place] = attributes.get("id")

    def tasks(self) -> Iterator[dict[str, Any]]:
        """Yield the kept attributes of each task that may not have begun."""
        since = self._now() - BEGUN_S
        for start in self._starts:
            at, attributes = self._read(start)
            if attributes is not None and at >= since:
                yield attributes

    def take(self, task_id: str) -> dict[str, Any] | None:
        """Remove and return the kept attributes of a task that this process has put; ``None``
        if there are none.
        """
        found = None
        for start, known in zip(self._starts, self._ids, strict=True):
            if known == task_id:
                _, attributes = self._read(start)
                if attributes is not None and attributes["id"] == task_id:
                    found = attributes
                    _LENGTH.pack_into(self._memory, start, 0)
        return found

    def _read(self, start: int) -> tuple[float, dict[str, Any] | None]:
        """Return when an entry was put, by this host's monotonic clock, and its attributes."""
        (length,) = _LENGTH.unpack_from(self._memory, start)
        if not 0 < length <= _ROOM:
            return 0.0, None
        body = start + _LENGTH.size
        try:
            at, *values = marshal.loads(self._memory[body : body + length])
        except EOFError:
            return 0.0, None  # another thread has just put a longer one there
        return at, dict(zip(KEPT, values, strict=True))

    def clear(self) -> None:
        """Remove all entries: the worker shuts down in good order."""
        for start in self._starts:
            _LENGTH.pack_into(self._memory, start, 0)
