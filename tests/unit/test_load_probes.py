"""CPU and memory figures follow from counters and limits as documented."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import pytest

from rts.load.cgroup import Cgroups
from rts.load.cpu import CpuProbe, HostCpu, allowed_cores, psutil_host
from rts.load.memory import MemoryProbe
from rts.load.sample import GpuLoad, LoadSample

FOUR = frozenset(range(4))
NO_GROUPS = Cgroups(Path("/nonexistent"), Path("/nonexistent"))


class Host:
    """Counters that a test advances by hand, with the clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.busy_s = 1000.0
        self.total_s = 4000.0
        self.runnable: int | None = 0
        self.cores = FOUR

    def __call__(self, cores: frozenset[int]) -> HostCpu:
        return HostCpu(self.busy_s, self.total_s, self.runnable)

    def passes(self, seconds: float, busy_cores: float, runnable: int | None = 0) -> None:
        self.now += seconds
        self.busy_s += busy_cores * seconds
        self.total_s += len(self.cores) * seconds
        self.runnable = runnable

    def probe(self, cgroups: Cgroups = NO_GROUPS) -> CpuProbe:
        return CpuProbe(cgroups, self, affinity=lambda: self.cores, clock=lambda: self.now)


def test_the_first_reading_has_no_figure() -> None:
    assert Host().probe().read() is None


def test_busy_share_of_the_allowed_cores() -> None:
    host = Host()
    probe = host.probe()
    probe.read()
    host.passes(0.25, busy_cores=1)
    assert probe.read() == pytest.approx(0.25)
    host.passes(0.25, busy_cores=3)
    assert probe.read() == pytest.approx(0.75)


def test_a_queue_on_a_host_that_is_not_saturated_is_not_counted() -> None:
    host = Host()
    probe = host.probe()
    probe.read()
    host.passes(0.25, busy_cores=2, runnable=40)
    assert probe.read() == pytest.approx(0.5)


def test_oversubscription_reads_above_one() -> None:
    host = Host()
    probe = host.probe()
    probe.read()
    for _ in range(8):
        host.passes(0.25, busy_cores=4, runnable=10)
        value = probe.read()
    assert value == pytest.approx(2.5)


def test_saturation_without_a_count_of_threads_reads_one() -> None:
    host = Host()
    host.runnable = None
    probe = host.probe()
    probe.read()
    host.passes(0.25, busy_cores=4, runnable=None)
    assert probe.read() == pytest.approx(1.0)


def test_counters_that_stop_or_go_back_do_no_harm() -> None:
    host = Host()
    probe = host.probe()
    probe.read()
    host.passes(0.25, busy_cores=1)
    probe.read()
    host.now += 0.25
    assert probe.read() == pytest.approx(0.25)
    host.now += 0.25
    host.total_s += 1.0
    host.busy_s -= 5.0
    assert probe.read() == 0.0


def test_a_changed_affinity_starts_over() -> None:
    host = Host()
    probe = host.probe()
    probe.read()
    host.cores = frozenset({0, 1})
    host.passes(0.25, busy_cores=1)
    assert probe.read() is None
    host.passes(0.25, busy_cores=1)
    assert probe.read() == pytest.approx(0.5)


class Box:
    """A v2 cgroup on disk whose counters a test advances."""

    def __init__(self, tmp_path: Path, cores: float) -> None:
        self.root = tmp_path / "cgroup"
        self.root.mkdir()
        (self.root / "cgroup.controllers").write_text("cpu")
        (self.root / "cpu.max").write_text(f"{int(cores * 100_000)} 100000")
        (tmp_path / "own").write_text("0::/\n")
        self.used_s = self.held_s = 10.0
        self.use(0, 0)
        self.groups = Cgroups(self.root, tmp_path / "own")

    def use(self, used_s: float, held_s: float) -> None:
        self.used_s += used_s
        self.held_s += held_s
        (self.root / "cpu.stat").write_text(
            f"usage_usec {int(self.used_s * 1e6)}\nthrottled_usec {int(self.held_s * 1e6)}\n"
        )


def test_a_group_is_measured_against_its_own_limit(tmp_path: Path) -> None:
    host, box = Host(), Box(tmp_path, cores=2)
    probe = host.probe(box.groups)
    assert probe.read() is None
    # The host is busy with other work; that is not this worker's load.
    host.passes(0.25, busy_cores=4, runnable=50)
    box.use(0.25, 0.0)
    assert probe.read() == pytest.approx(0.5)


def test_throttled_time_counts_as_demand(tmp_path: Path) -> None:
    host, box = Host(), Box(tmp_path, cores=1)
    probe = host.probe(box.groups)
    probe.read()
    host.passes(1.0, busy_cores=1)
    box.use(1.0, 3.0)
    assert probe.read() == pytest.approx(4.0)


def test_a_limit_above_the_affinity_does_not_bind(tmp_path: Path) -> None:
    host, box = Host(), Box(tmp_path, cores=8)
    probe = host.probe(box.groups)
    probe.read()
    host.passes(0.25, busy_cores=1)
    assert probe.read() == pytest.approx(0.25)


def test_psutil_source_counts_the_allowed_cores(tmp_path: Path) -> None:
    loadavg = tmp_path / "loadavg"
    loadavg.write_text("0.50 0.40 0.30 3/812 4711\n")
    read = psutil_host(loadavg)
    every = frozenset(range(os.cpu_count() or 1))
    whole = read(every)
    assert 0 < whole.busy_s < whole.total_s
    assert whole.runnable == 2
    loadavg.write_text("?")
    assert read(every).runnable is None
    if len(every) > 1:
        one = read(frozenset({0}))
        assert 0 < one.total_s < whole.total_s
        assert one.runnable is None
        # Numbers that psutil does not list: the whole host is the better guess.
        assert read(frozenset({10_000})).total_s >= whole.total_s
    assert allowed_cores() <= every


def test_cpu_is_unknown_where_the_hosts_counters_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    host = Host()
    probe = CpuProbe(NO_GROUPS, psutil_host(), clock=lambda: host.now)
    for _ in range(2):
        assert probe.read() is None
        host.now += 1.0


def memory_box(tmp_path: Path, limit: str, used: int) -> Cgroups:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("memory")
    (root / "memory.max").write_text(limit)
    (root / "memory.current").write_text(str(used))
    (tmp_path / "own").write_text("0::/\n")
    return Cgroups(root, tmp_path / "own")


KNOWN = "MemTotal: 1000 kB\nMemFree: 5 kB\nMemAvailable: 250 kB\n"
UNKNOWN = "MemTotal: many kB\n"


@pytest.mark.parametrize(
    ("limit_kib", "meminfo", "expected"),
    [
        (None, KNOWN, 0.75),
        (400, KNOWN, 0.25),
        (4000, KNOWN, 0.75),
        (400, UNKNOWN, 0.25),
        (None, UNKNOWN, None),
        (None, "MemTotal: 1000 kB\n", None),
        (50, KNOWN, 2.0),
    ],
    ids=["host", "group", "above host", "no host", "nothing", "old kernel", "above the limit"],
)
def test_memory_is_a_share_of_the_limit_that_binds(
    tmp_path: Path, limit_kib: int | None, meminfo: str, expected: float | None
) -> None:
    (tmp_path / "meminfo").write_text(meminfo)
    limit = "max" if limit_kib is None else str(limit_kib * 1024)
    groups = memory_box(tmp_path, limit, 100 * 1024)
    assert MemoryProbe(groups, tmp_path / "meminfo").read() == expected
    assert MemoryProbe(NO_GROUPS, tmp_path / "none").read() is None


def test_memory_of_the_host_is_what_psutil_says() -> None:
    theirs = psutil.virtual_memory()
    share = 1 - theirs.available / theirs.total
    assert MemoryProbe(NO_GROUPS).read() == pytest.approx(share, abs=0.2)


def test_sample_is_the_mean_of_what_is_there() -> None:
    gpus = [
        GpuLoad(index=0, utilization=1.0, memory=0.1),
        GpuLoad(index=-1, utilization=None, memory=0.5),
    ]
    busy = LoadSample.of(0.5, 0.25, gpus, sampled_at=1.0).figures
    assert (busy["load"], busy["gpu"]) == (0.5, 0.75)
    assert LoadSample.of(1.5, 0.25, sampled_at=1.0).figures["load"] == 0.875
    assert LoadSample.of(None, 0.25, sampled_at=1.0).figures["load"] == 0.25
    assert LoadSample.of(math.nan, -1.0, sampled_at=1.0).figures == {"load": 0, "memory": 0}
    assert LoadSample.of(math.inf, None, sampled_at=1.0).figures == {}


def test_sample_as_a_document() -> None:
    sample = LoadSample.of(0.12344, 0.25, sampled_at=10.0)
    assert sample.as_dict(10.1) == {
        "load": 0.1867,
        "cpu": 0.1234,
        "memory": 0.25,
        "age_s": 0.1,
    }
    assert LoadSample.of(None, None, sampled_at=10.0).as_dict(9.0) == {"age_s": 0.0}
    gpu = GpuLoad(index=3, utilization=0.5, memory=None)
    with_gpu = LoadSample.of(None, None, [gpu], sampled_at=10.0)
    assert with_gpu.as_dict(10.0) == {
        "load": 0.5,
        "gpu": 0.5,
        "gpus": [{"index": 3, "utilization": 0.5, "memory": None}],
        "age_s": 0.0,
    }
