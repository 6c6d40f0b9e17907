"""One sample in memory that a process shares with those it forks later.

The sampler's process writes, its pool children read: a copy of a few hundred
bytes, without a lock, a system call or anything else that a fork could break. A
checksum tells a copy that was caught in the middle of a write.
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib

from rts.load.gpu import MAX_GPUS
from rts.load.sample import GpuLoad, LoadSample

#: Copies that are tried before the sample counts as unreadable. A write takes
#: less than a microsecond, four times a second: two in a row are already rare.
TRIES = 4

_CHECKSUM = struct.Struct("<I")
#: sampled_at, load, cpu, memory, gpu (NaN for None), and the number of GPUs.
_HEAD = struct.Struct("<5dH")
#: index, utilization, memory (NaN for None).
_GPU = struct.Struct("<i2d")
_SIZE = _CHECKSUM.size + _HEAD.size + MAX_GPUS * _GPU.size
#: What tells one sample from another: checksum and ``sampled_at``.
_MARK_BYTES = _CHECKSUM.size + 8


class LoadBoard:
    """The place where the last sample is posted. One writer, any number of readers.

    Make it before the fork: what is made later is not shared.
    """

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SIZE)
        #: The last sample, with its checksum and instant. It changes a few times a
        #: second while tasks may start thousands of times: most reads end here.
        self._last: tuple[bytes, LoadSample | None] = (bytes(_MARK_BYTES), None)

    def write(self, sample: LoadSample) -> None:
        """Post *sample*; of its GPUs the first ``MAX_GPUS``."""
        gpus = sample.gpus[:MAX_GPUS]
        parts = [
            _HEAD.pack(
                sample.sampled_at,
                _number(sample.load),
                _number(sample.cpu),
                _number(sample.memory),
                _number(sample.gpu),
                len(gpus),
            )
        ]
        parts += [
            _GPU.pack(gpu.index, _number(gpu.utilization), _number(gpu.memory)) for gpu in gpus
        ]
        body = b"".join(parts).ljust(_SIZE - _CHECKSUM.size, b"\0")
        self._map[:] = _CHECKSUM.pack(zlib.crc32(body)) + body

    def read(self) -> LoadSample | None:
        """Return the last sample however old; ``None`` where none was posted.

        Also ``None`` where every try met a write in progress.
        """
        for _ in range(TRIES):
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
        index, utilization, taken = _GPU.unpack_from(body, _HEAD.size + i * _GPU.size)
        gpus.append(GpuLoad(index, _optional(utilization), _optional(taken)))
    return LoadSample(
        _optional(load),
        _optional(cpu),
        _optional(memory),
        _optional(gpu),
        tuple(gpus),
        sampled_at,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _optional(value: float) -> float | None:
    return None if math.isnan(value) else value
