"""A sample is read from the board as it was written, or not at all."""

from __future__ import annotations

import mmap
import threading

import pytest

from rts.load.board import BYTES, LoadBoard
from rts.load.gpu import MAX_GPUS
from rts.load.sample import GpuLoad, LoadSample


def gpu(index: int, utilization: float | None, memory: float | None) -> GpuLoad:
    return GpuLoad(index=index, utilization=utilization, memory=memory)


@pytest.mark.parametrize(
    "sample",
    [
        LoadSample.of(0.5, 0.25, sampled_at=12345.678),
        LoadSample.of(None, None, sampled_at=0.0),
        LoadSample.of(1.5, 0.9, [gpu(0, 0.1, None), gpu(-1, None, 0.2)], sampled_at=1.0),
    ],
)
def test_what_was_written_is_read_and_decoded_only_once(sample: LoadSample) -> None:
    board = LoadBoard(mmap.mmap(-1, 64 + BYTES), 64)
    assert board.read() is None
    board.write(sample)
    assert board.read() == sample
    assert board.read() is board.read()


def test_there_is_room_for_many_gpus() -> None:
    board = LoadBoard(mmap.mmap(-1, 64 + BYTES), 64)
    sample = LoadSample.of(
        1.2345, 1.2345, [gpu(n, 0.1234, 0.1234) for n in range(MAX_GPUS)], sampled_at=1.0
    )
    board.write(sample)
    assert board.read() == sample


def test_a_torn_copy_is_refused() -> None:
    board = LoadBoard(mmap.mmap(-1, 64 + BYTES), 64)
    board.write(LoadSample.of(0.5, 0.5, sampled_at=1.0))
    board._memory[64 + 10] ^= 1
    assert board.read() is None


def test_reads_during_writes_are_whole() -> None:
    board = LoadBoard(mmap.mmap(-1, 64 + BYTES), 64)
    samples = [
        LoadSample.of(i / 10, i / 10, [gpu(i, i / 10, i / 10)] * 8, sampled_at=i)
        for i in range(10)
    ]
    board.write(samples[0])
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for sample in samples:
                board.write(sample)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5000):
            read = board.read()
            assert read is None or read in samples
    finally:
        done.set()
        writer.join()
    assert board.read() == samples[-1]
