"""The sampler writes samples and survives failing probes; a reader never waits."""

from __future__ import annotations

import mmap
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from rts import health
from rts.load.board import BYTES, LoadBoard
from rts.load.sample import GpuLoad, LoadSample
from rts.load.sampler import MAX_AGE_S, LoadSampler, Probes, real_probes
from rts.testing import wait_until
from tests.conftest import python


def sampling_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "rts-load"]


class Fixed:
    """A source of a constant figure, which counts its reads."""

    def __init__(self, value: float | None) -> None:
        self.value = value
        self.reads = 0

    def read(self) -> float | None:
        self.reads += 1
        return self.value


class Broken:
    def read(self) -> float | None:
        raise RuntimeError("no counters today")


class Gpu:
    def __init__(self, *gpus: GpuLoad) -> None:
        self.gpus = gpus
        self.closed = 0

    def read(self) -> tuple[GpuLoad, ...]:
        return self.gpus

    def close(self) -> None:
        self.closed += 1
        if self.closed > 1:
            raise RuntimeError("closed twice")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    health.take_counts()
    yield
    wait_until(lambda: not sampling_threads())
    health.take_counts()


def probes(cpu: Any, memory: Any, gpu: Gpu) -> Probes:
    return Probes(cpu.read, memory.read, gpu.read, gpu.close)


def started(made: Probes) -> LoadSampler:
    """Return a sampler that has written a sample."""
    sampler = LoadSampler(new_board(), lambda: made, 0.01)
    sampler.start()
    wait_until(lambda: sampler._board.read() is not None)
    return sampler


def new_board() -> LoadBoard:
    return LoadBoard(mmap.mmap(-1, BYTES))


#: An instant at which no sample is old, however busy the machine is.
NEVER_OLD = 0.0


def test_a_sample_is_written_and_renewed() -> None:
    each = GpuLoad(index=0, utilization=0.75, memory=0.1)
    cpu, gpu = Fixed(0.5), Gpu(each)
    sampler = started(probes(cpu, Fixed(0.25), gpu))
    figures = {"load": 0.5, "cpu": 0.5, "memory": 0.25, "gpu": 0.75, "gpus": [each]}
    assert sampler.read(NEVER_OLD).figures == figures
    cpu.value = 1.5
    wait_until(lambda: sampler.read(NEVER_OLD).figures["cpu"] == 1.5)
    sampler.stop()
    assert gpu.closed == 1


def test_the_thread_is_a_daemon_and_stopped_once() -> None:
    sampler = started(probes(Fixed(0.5), Fixed(0.5), Gpu()))
    assert sampling_threads()[0].daemon
    sampler.stop()
    sampler.stop()
    wait_until(lambda: not sampling_threads())


def test_a_probe_that_fails_leaves_the_others() -> None:
    sampler = started(probes(Broken(), Fixed(0.25), Gpu()))
    sample = sampler.read(NEVER_OLD)
    sampler.stop()
    assert sample.figures == {"load": 0.25, "memory": 0.25}
    assert health.take_counts()["hook_errors"] >= 1


def test_without_probes_the_memory_is_read_all_the_same() -> None:
    def none() -> Probes:
        raise ImportError("No module named 'psutil'")

    sampler = LoadSampler(new_board(), none)
    sampler.start()
    assert not sampling_threads()
    assert health.take_counts()["hook_errors"] == 1
    assert "memory" in sampler.read(NEVER_OLD).figures
    sampler.stop()


def test_a_board_that_fails_is_survived() -> None:
    class Full(LoadBoard):
        def write(self, sample: LoadSample) -> None:
            raise OSError("no room")

    cpu = Fixed(0.5)
    board = Full(mmap.mmap(-1, BYTES))
    sampler = LoadSampler(board, lambda: probes(cpu, Fixed(0.5), Gpu()), 0.01)
    sampler.start()
    wait_until(lambda: cpu.reads > 3)
    sampler.stop()
    assert health.take_counts()["hook_errors"] >= 3


def test_a_time_limit_that_strikes_while_the_load_is_read_is_passed_on() -> None:
    class Struck(LoadBoard):
        def read(self) -> LoadSample | None:
            raise SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        LoadSampler(Struck(mmap.mmap(-1, BYTES))).read(NEVER_OLD)


def test_an_old_sample_is_replaced_by_a_direct_reading() -> None:
    board = new_board()
    sampler = LoadSampler(board)
    board.write(LoadSample.of(0.5, 0.5, sampled_at=100.0))
    now = 100.0 + MAX_AGE_S
    assert sampler.read(now).figures["cpu"] == 0.5
    now += 0.01
    direct = sampler.read(now)
    assert direct.figures.keys() == {"load", "memory"}
    assert direct.figures["load"] == direct.figures["memory"]
    assert direct.sampled_at == now
    # Tasks that start one after the other share it.
    assert sampler.read(now) is direct
    assert sampler.read(now + 0.3) is not direct


def test_real_probes_on_this_machine() -> None:
    real = real_probes()
    memory = real.memory()
    assert 0 < memory < 1.5
    assert real.cpu() is None
    wait_until(lambda: real.cpu() is not None)
    real.close()


def run_script(tmp_path: Path, text: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    # A fork in a process with threads is what is tested; Python 3.12 warns about it.
    done = python("-W", "ignore::DeprecationWarning", str(script))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_reads_the_parents_samples(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, sys, threading, time
        import mmap
        from rts.load.board import BYTES, LoadBoard
        from rts.load.sampler import LoadSampler
        assert "psutil" not in sys.modules and "pynvml" not in sys.modules
        sampler = LoadSampler(LoadBoard(mmap.mmap(-1, BYTES)), period_s=0.02)
        if os.fork() == 0:
            end = time.monotonic() + 20
            seen = set()
            while len(seen) < 3 and time.monotonic() < end:
                sample = sampler.read(time.monotonic())
                if "cpu" in sample.figures:
                    seen.add(sample.sampled_at)
                time.sleep(0.005)
            assert "psutil" not in sys.modules and "pynvml" not in sys.modules
            assert threading.active_count() == 1
            sampler.stop()
            print("seen", len(seen), flush=True)
            os._exit(0)
        sampler.start()
        os.wait()
        sampler.stop()
        """,
    )
    assert out.split() == ["seen", "3"]


def test_a_worker_in_a_fork_of_its_maker_samples_for_its_own_children(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, time
        import mmap
        from rts.load.board import BYTES, LoadBoard
        from rts.load.sampler import LoadSampler
        sampler = LoadSampler(LoadBoard(mmap.mmap(-1, BYTES)), period_s=0.02)
        if os.fork() == 0:
            if os.fork() == 0:
                now = time.monotonic()
                end = now + 20
                while "cpu" not in sampler.read(now).figures and now < end:
                    time.sleep(0.005)
                    now = time.monotonic()
                print("cpu" in sampler.read(now).figures, flush=True)
                os._exit(0)
            sampler.start()
            os.wait()
            sampler.stop()
            os._exit(0)
        os.wait()
        """,
    )
    assert out == "True\n"


def test_a_fork_of_a_worker_does_not_take_its_thread_for_its_own(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, threading
        import mmap
        from rts.load.board import BYTES, LoadBoard
        from rts.load.sampler import LoadSampler
        sampler = LoadSampler(LoadBoard(mmap.mmap(-1, BYTES)), period_s=0.02)
        sampler.start()
        for _ in range(20):
            if os.fork() == 0:
                sampler.stop()
                sampler.start()
                print([t.name for t in threading.enumerate()][1:], flush=True)
                os._exit(0)
            os.wait()
        sampler.stop()
        """,
    )
    assert out.splitlines() == ["['rts-load']"] * 20


def test_no_child_is_forked_amid_a_reading(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, threading
        import mmap
        from rts.load.board import BYTES, LoadBoard
        from rts.load.sampler import LoadSampler, Probes
        inside, leave, reading = threading.Event(), threading.Event(), []
        def read():
            reading.append(1)
            inside.set()
            leave.wait(30)
            reading.clear()
        probes = Probes(read, read, lambda: (), lambda: None)
        sampler = LoadSampler(LoadBoard(mmap.mmap(-1, BYTES)), lambda: probes)
        sampler.start()
        inside.wait(30)
        threading.Timer(0.2, leave.set).start()
        if os.fork() == 0:
            print("reading" if reading else "free", flush=True)
            os._exit(0)
        os.wait()
        sampler.stop()
        """,
    )
    assert out == "free\n"


def test_a_fork_waits_for_the_thread_inside_the_gate(tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        """
        import os, threading
        from rts import forks
        gate = forks.ForkGate()
        def fork_inside():
            # One that forks itself neither waits for itself nor opens the gate.
            with gate.no_fork():
                gate._max_wait_s = 1e6
                if os.fork() == 0:
                    print("own", flush=True)
                    os._exit(0)
                os.wait()
        fork_inside()
        inside, leave, reading = threading.Event(), threading.Event(), []
        def read():
            with gate.no_fork():
                reading.append(1)
                inside.set()
                leave.wait(30)
                reading.clear()
        reader = threading.Thread(target=read)
        reader.start()
        inside.wait(30)
        threading.Timer(0.2, leave.set).start()
        if os.fork() == 0:
            with gate.no_fork():
                print("reading" if reading else "free", flush=True)
            os._exit(0)
        os.wait()
        reader.join()
        fork_inside()  # after a fork that held the gate
        inside.clear(), leave.clear()
        reader = threading.Thread(target=read)
        reader.start()
        inside.wait(30)
        gate._max_wait_s = 0.05
        if os.fork() == 0:
            # A reading that hangs does not block forks for ever,
            with gate.no_fork():
                print("late", flush=True)
            os._exit(0)
        os.wait()
        if os.fork() == 0:
            # nor each of them, however long one may wait.
            os._exit(0)
        os.wait()
        leave.set()
        reader.join()
        with gate.no_fork():
            print("still works", gate._max_wait_s)
        if os.fork() == 0:
            os._exit(0)
        print("waits again", gate._max_wait_s)
        """,
    )
    assert out.splitlines() == [
        *("own", "free", "own", "late", "still works 0.0", "waits again 1.0")
    ]
