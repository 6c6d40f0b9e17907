"""Load figures against real processes and real cgroups."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rts.load.board import BYTES, LoadBoard
from rts.load.sampler import LoadSampler
from rts.testing import wait_until
from tests.conftest import python

BURN = "while True: pass"


@contextlib.contextmanager
def burners(n: int) -> Iterator[list[int]]:
    """Keep *n* processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(n)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@pytest.fixture
def sampler() -> Iterator[LoadSampler]:
    made = LoadSampler(LoadBoard(mmap.mmap(-1, BYTES)))
    made.start()
    yield made
    made.stop()


@pytest.mark.alone
def test_oversubscribed_cores_read_above_one(sampler: LoadSampler) -> None:
    cores = len(os.sched_getaffinity(0))
    if cores != psutil.cpu_count():
        pytest.skip("how many threads wait for some of the host's cores is not known")

    def oversubscribed() -> float | None:
        cpu = sampler.read(time.monotonic()).figures.get("cpu", 0)
        return cpu if cpu > 1.2 else None

    with burners(2 * cores):
        most = wait_until(oversubscribed)
    wait_until(
        lambda: sampler.read(time.monotonic()).figures.get("cpu", 9) < most
    )  # others may be busy, too


def test_samples_are_never_old(sampler: LoadSampler) -> None:
    wait_until(lambda: "cpu" in sampler.read(time.monotonic()).figures)
    seen: set[float] = set()

    def renewed() -> bool:
        now = time.monotonic()
        sample = sampler.read(now)
        assert sample.as_dict(now)["age_s"] <= 0.5
        assert "load" in sample.figures
        seen.add(sample.sampled_at)
        return len(seen) > 5

    wait_until(renewed, interval=0.01)


class Group:
    """A cgroup of our own, of whichever version is mounted."""

    def __init__(self, controller: str) -> None:
        root = Path("/sys/fs/cgroup")
        name = f"rts-test-{os.getpid()}"
        self.v1 = (root / controller / "cgroup.procs").exists()
        base = root / controller if self.v1 else root
        if not self.v1:
            (base / "cgroup.subtree_control").write_text(f"+{controller}")
        self.path = base / name
        self.path.mkdir()

    def set(self, v1: dict[str, str], v2: dict[str, str]) -> None:
        for file, text in (v1 if self.v1 else v2).items():
            (self.path / file).write_text(text)

    def remove(self) -> None:
        def gone() -> bool:
            try:
                self.path.rmdir()
            except OSError:
                return False
            return True

        wait_until(gone, message="removal of the control group")


@contextlib.contextmanager
def group(controller: str, v1: dict[str, str], v2: dict[str, str]) -> Iterator[Path]:
    try:
        made = Group(controller)
    except OSError as exc:
        pytest.skip(f"no control group can be made here: {exc}")
    try:
        made.set(v1, v2)
        if controller == "cpu" and made.v1 and not (made.path / "cpuacct.usage").exists():
            # Usage is counted by a separate hierarchy here.
            usage = Group("cpuacct")
            try:
                yield made.path
            finally:
                usage.remove()
        else:
            yield made.path
    finally:
        made.remove()


IN_GROUP = """
    import mmap, pathlib, subprocess, sys, time
    for path in sys.argv[1:]:
        pathlib.Path(path, "cgroup.procs").write_text("0")
    from rts.load.board import BYTES, LoadBoard
    from rts.load.sampler import LoadSampler
    sampler = LoadSampler(LoadBoard(mmap.mmap(-1, BYTES)))
    sampler.start()
    def until(done):
        end = time.monotonic() + 25
        while not done(sampler.read(time.monotonic()).figures):
            assert time.monotonic() < end, sampler.read(time.monotonic())
            time.sleep(0.02)
"""


def in_group(tmp_path: Path, text: str, *paths: Path) -> None:
    script = tmp_path / "in_group.py"
    script.write_text(textwrap.dedent(IN_GROUP) + textwrap.dedent(text))
    done = python(str(script), *map(str, paths))
    assert done.returncode == 0, done.stderr


@pytest.mark.alone
def test_cpu_is_measured_against_the_groups_limit(tmp_path: Path) -> None:
    limits = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "25000"}
    with group("cpu", limits, {"cpu.max": "25000 100000"}) as path:
        usage = Path("/sys/fs/cgroup/cpuacct") / path.name
        paths = [path, *([usage] if usage.is_dir() else [])]
        with burners(2):
            # The host is busy, the group is not.
            in_group(
                tmp_path,
                "until(lambda s: s.get('cpu', 1) < 0.5)",
                *paths,
            )
        in_group(
            tmp_path,
            """
            # They use all cores if they can, and may have a quarter of one. They are several
            # for the case that others are busy on the host.
            busy = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)
            ]
            try:
                until(lambda s: 1.3 < s.get("cpu", 0) < 30.0)
            finally:
                for each in busy:
                    each.kill()
                    each.wait()
            """,
            *paths,
        )


def test_memory_is_measured_against_the_groups_limit(tmp_path: Path) -> None:
    limit = str(256 << 20)
    with group("memory", {"memory.limit_in_bytes": limit}, {"memory.max": limit}) as path:
        in_group(
            tmp_path,
            """
            until(lambda s: s.get("memory", 1) < 0.4)
            data = bytearray(150 << 20)
            data[::4096] = b"x" * len(data[::4096])
            until(lambda s: 0.55 < s["memory"] < 0.9)
            """,
            path,
        )
