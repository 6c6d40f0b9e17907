"""A run's CPU seconds and peak memory are its own, as far as they can be measured."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rts.load.usage import ProcessMeter, ThreadMeter, _HighWaterMark, _peak_of

MIB = 1 << 20

BURN = "import time\nwhile time.process_time() < {}: pass"


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def run_script(tmp_path: Path, text: str, *command: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [*command, sys.executable, "-u", str(script)],  # A fork repeats what is in a buffer.
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cpu_of_the_run_and_of_its_subprocesses() -> None:
    burn(0.05)
    meter = ProcessMeter()
    meter.refresh(time.monotonic())
    start_s = meter.cpu_time()
    burn(0.1)
    subprocess.run([sys.executable, "-c", BURN.format(0.3)], check=True, timeout=30)
    cpu_s, _ = meter.measure(start_s)
    assert 0.4 <= cpu_s < 5.0
    meter.refresh(time.monotonic())
    cpu_s, _ = meter.measure(meter.cpu_time())
    assert cpu_s < 0.1, "and the next run has nothing of it"


def test_cpu_of_an_idle_run_is_next_to_nothing() -> None:
    meter = ProcessMeter()
    seen_bytes = meter.refresh(time.monotonic())
    cpu_s, peak_bytes = meter.measure(meter.cpu_time())
    assert 0.0 <= cpu_s < 0.05
    assert 0 < peak_bytes - MIB <= seen_bytes <= peak_bytes


def test_cpu_of_a_thread_is_its_own() -> None:
    other = threading.Thread(target=burn, args=(0.3,))
    meter = ThreadMeter()
    start_s = meter.cpu_time()
    other.start()
    other.join()
    cpu_s, max_rss_bytes = meter.measure(start_s)
    assert cpu_s < 0.25
    assert max_rss_bytes > MIB


def test_a_measurement_in_another_thread_is_never_negative() -> None:
    burn(0.05)
    meter = ThreadMeter()
    start_s = meter.cpu_time()
    out: list[float] = []
    other = threading.Thread(target=lambda: out.append(meter.measure(start_s)[0]))
    other.start()
    other.join()
    assert out[0] >= 0.0


PEAKS = """
    import os, time
    from rts.load.usage import ProcessMeter, ThreadMeter
    meter = ProcessMeter()
    def peak(mib):
        meter.refresh(time.monotonic())
        start_s = meter.cpu_time()
        data = bytearray(mib << 20)
        data[::4096] = b"x" * len(data[::4096])
        del data
        return meter.measure(start_s)[1] >> 20
    print(peak(200), peak(10), peak(100))
    print(ThreadMeter().measure(0.0)[1] >> 20)
    child = os.fork()
    if child == 0:
        print(peak(150), peak(1), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(peak(1))
"""


def test_peak_memory_is_that_of_the_run(tmp_path: Path) -> None:
    rows = [
        [int(v) for v in row.split()] for row in run_script(tmp_path, PEAKS).split("\n") if row
    ]
    (large, small, middle), (lifetime,), (child_large, child_small), (after,) = rows
    assert 200 <= large < 300
    assert small < 100
    assert 100 <= middle < 190
    # With threads the mark is not reset: the peak of the last run remains.
    assert 100 <= lifetime < 190
    assert 150 <= child_large < 250
    assert child_small < 100
    assert after < 100


def test_peak_memory_after_an_exec_from_a_large_process(tmp_path: Path) -> None:
    outer = tmp_path / "outer.py"
    outer.write_text(
        "import os, sys\n"
        "data = bytearray(300 << 20)\n"
        "data[::4096] = b'x' * len(data[::4096])\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    rows = run_script(tmp_path, PEAKS, sys.executable, str(outer)).split("\n")
    large, small, middle = (int(v) for v in rows[0].split())
    assert 200 <= large < 290
    assert small < 100
    assert 100 <= middle < 190


def test_where_the_mark_cannot_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    # The kernel refuses it to some processes, never to root: refuse it here.
    def refused(path: str, *args: int) -> int:
        if path == "/proc/self/clear_refs":
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args)

    monkeypatch.setattr(os, "open", refused)
    mark = _HighWaterMark()
    before = mark.read_bytes()
    mark.reset()
    mark.reset()
    assert mark.read_bytes() >= before > 0


def test_a_file_that_stops_working_is_closed() -> None:
    mark = _HighWaterMark()
    mark.reset()
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, mark._fd)
    os.close(null)
    mark.reset()
    assert mark._fd is None
    mark.reset()
    assert mark.read_bytes() > 0


def test_a_file_that_the_app_has_closed_fails_no_later_run() -> None:
    mark = _HighWaterMark()
    mark.reset()
    os.close(mark._fd)
    mark.reset()
    assert mark.read_bytes() > 0


def test_a_child_forgets_both_files_though_the_app_has_closed_one() -> None:
    mark = _HighWaterMark()
    mark.reset()
    mark._status_fd = os.open("/proc/self/status", os.O_RDONLY)
    os.close(mark._fd)
    kept = mark._status_fd
    mark.after_fork()
    assert (mark._fd, mark._status_fd) == (None, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)


def test_a_mark_that_cannot_be_reset_is_read_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inherited = SimpleNamespace(ru_maxrss=1 << 40)
    monkeypatch.setattr("rts.load.usage.getrusage", lambda who: inherited)
    mark = _HighWaterMark()
    mark.reset()
    assert 0 < mark.read_bytes() < 1 << 40
    mark.after_fork()
    assert mark.read_bytes() == inherited.ru_maxrss * 1024


@pytest.mark.parametrize("text", ["", "VmHWM: many kB\n", "VmPeak: 1 kB\n"])
def test_a_status_without_the_mark(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status"
    path.write_text(text)
    with path.open("rb") as file:
        assert _peak_of(file.fileno()) is None
