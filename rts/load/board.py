"""One load sample in memory that the processes of a worker share.

The main process writes; its pool children and its companion read: a copy of four thousand
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

#: Bytes that it takes: thrice what the figures of ``MAX_GPUS`` GPUs need as JSON.
BYTES = 4096
_CHECKSUM = struct.Struct("<I")
#: sampled_at, and the length of the figures, which follow.
_HEAD = struct.Struct("<dH")
#: The first bytes, which identify a sample: its checksum and ``sampled_at``.
_MARK_BYTES = _CHECKSUM.size + 8


class LoadBoard:
    """The latest sample, from *start* on in *memory*. One writer, any number of readers."""

    def __init__(self, memory: mmap.mmap, start: int = 0) -> None:
        self._memory = memory
        self._start = start
        #: The sample that was decoded last, and its mark. It changes a few times a second
        #: while thousands of tasks may start: most reads end here.
        self._last: tuple[bytes, LoadSample | None] = (bytes(_MARK_BYTES), None)

    def write(self, sample: LoadSample) -> None:
        """Publish *sample*."""
        figures = encode(sample.figures).encode()
        body = _HEAD.pack(sample.sampled_at, len(figures)) + figures
        end = self._start + _CHECKSUM.size + len(body)
        self._memory[self._start : end] = _CHECKSUM.pack(zlib.crc32(body)) + body

    def read(self) -> LoadSample | None:
        """Return the latest sample, however old; ``None`` where none was written yet, or
        every attempt met a write in progress.
        """
        begin = self._start
        for _ in range(ATTEMPTS):
            last, sample = self._last
            if self._memory[begin : begin + _MARK_BYTES] == last:
                return sample
            copy = self._memory[begin : begin + BYTES]
            (checksum,) = _CHECKSUM.unpack_from(copy)
            sampled_at, length = _HEAD.unpack_from(copy, _CHECKSUM.size)
            start = _CHECKSUM.size + _HEAD.size
            if zlib.crc32(copy[_CHECKSUM.size : start + length]) == checksum:
                figures = json.loads(copy[start : start + length])
                sample = LoadSample.of_figures(figures, sampled_at)
                self._last = (copy[:_MARK_BYTES], sample)
                return sample
        return None
