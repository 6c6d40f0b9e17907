"""One load sample in memory that a process shares with those it forks later.

The sampler's process writes, its pool children read: a copy of a few hundred
bytes, without a lock, a system call or anything else that a fork could break. A
checksum reveals a copy that was torn by a concurrent write.
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib

from rts.load.gpu import MAX_GPUS
from rts.load.sample import GpuLoad, LoadSample

#: Attempts to read before the sample counts as unreadable. A write takes less than a
#: microsecond, four times a second: two torn copies in a row are already rare.
ATTEMPTS = 4

_CHECKSUM = struct.Struct("<I")
#: sampled_at, load, cpu, memory, gpu (NaN for None), and the number of GPUs.
_HEAD = struct.Struct("<5dH")
#: index, utilization, memory (NaN for None).
_GPU = struct.Struct("<i2d")
_SIZE = _CHECKSUM.size + _HEAD.size + MAX_GPUS * _GPU.size
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
        """Publish *sample*, with the first ``MAX_GPUS`` of its GPUs."""
        gpus = sample.gpus[:MAX_GPUS]
        parts = [
            _HEAD.pack(
                sample.sampled_at,
                _to_nan(sample.load),
                _to_nan(sample.cpu),
                _to_nan(sample.memory),
                _to_nan(sample.gpu),
                len(gpus),
            )
        ]
        parts += [
            _GPU.pack(gpu.index, _to_nan(gpu.utilization), _to_nan(gpu.memory)) for gpu in gpus
        ]
        body = b"".join(parts).ljust(_SIZE - _CHECKSUM.size, b"\0")
        self._map[:] = _CHECKSUM.pack(zlib.crc32(body)) + body

    def read(self) -> LoadSample | None:
        """Return the latest sample, however old; ``None`` where none was written yet, or
        every attempt met a write in progress.
        """
        for _ in range(ATTEMPTS):
            last, sample = self._last
            if self._map[:_MARK_BYTES] == last:
                return sample
            copy = self._map[:]
            body = copy[_CHECKSUM.size :]
            if _CHECKSUM.unpack_from(copy)[0] == zlib.crc32(body):
                sample = _decoded(body)
                self._last = (copy[:_MARK_BYTES], sample)
                return sample
        return None


def _decoded(body: bytes) -> LoadSample:
    sampled_at, load, cpu, memory, gpu, n = _HEAD.unpack_from(body)
    gpus = []
    for i in range(n):
        index, utilization, used = _GPU.unpack_from(body, _HEAD.size + i * _GPU.size)
        gpus.append(GpuLoad(index, _from_nan(utilization), _from_nan(used)))
    return LoadSample(
        _from_nan(load),
        _from_nan(cpu),
        _from_nan(memory),
        _from_nan(gpu),
        tuple(gpus),
        sampled_at,
    )


def _to_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _from_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
