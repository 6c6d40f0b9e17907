"""One load sample in memory that a process shares with those it forks later.

The sampler's process writes, its pool children read: a copy of four thousand
bytes, without a lock, a system call or anything else that a fork could break. A
checksum reveals a copy that was torn by a concurrent write.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib

from rts.load.sample import LoadSample, encode

#: Attempts to read before the sample counts as unreadable. A write takes less than a
#: microsecond, four times a second: two torn copies in a row are already rare.
ATTEMPTS = 4

#: Room for the figures as JSON: thrice what those of ``MAX_GPUS`` GPUs need.
_SIZE = 4096
_CHECKSUM = struct.Struct("<I")
#: sampled_at, and the length of the figures, which follow.
_HEAD = struct.Struct("<dH")
#: The first bytes, which identify a sample: its checksum and ``sampled_at``.
_MARK_BYTES = _CHECKSUM.size + 8


class LoadBoard:
    """Shared memory that holds the latest sample. One writer, any number of readers.

    Create it before the fork: one that is created later is not shared.
    """

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SIZE)
        #: The sample that was decoded last, and its mark. It changes a few times a second
        #: while thousands of tasks may start: most reads end here.
        self._last: tuple[bytes, LoadSample | None] = (bytes(_MARK_BYTES), None)

    def write(self, sample: LoadSample) -> None:
        """Publish *sample*."""
        figures = encode(sample.figures).encode()
        body = _HEAD.pack(sample.sampled_at, len(figures)) + figures
        self._map[: _CHECKSUM.size + len(body)] = _CHECKSUM.pack(zlib.crc32(body)) + body

    def read(self) -> LoadSample | None:
        """Return the latest sample, however old; ``None`` where none was written yet, or
        every attempt met a write in progress.
        """
        for _ in range(ATTEMPTS):
            last, sample = self._last
            if self._map[:_MARK_BYTES] == last:
                return sample
            copy = self._map[:]
            (checksum,) = _CHECKSUM.unpack_from(copy)
            sampled_at, length = _HEAD.unpack_from(copy, _CHECKSUM.size)
            start = _CHECKSUM.size + _HEAD.size
            if zlib.crc32(copy[_CHECKSUM.size : start + length]) == checksum:
                figures = json.loads(copy[start : start + length])
                sample = LoadSample.of_figures(figures, sampled_at)
                self._last = (copy[:_MARK_BYTES], sample)
                return sample
        return None
