"""Limits are read from canned trees of both cgroup versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rts.load.cgroup import Cgroups, CpuGroup, MemoryGroup

GIB = 1 << 30


def tree(tmp_path: Path, membership: str, files: Mapping[str, str]) -> Cgroups:
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = tmp_path / "membership"
    own.write_text(membership)
    return Cgroups(root, own)


def v2(group: str, **values: str) -> dict[str, str]:
    defaults = {
        "cpu_stat": "usage_usec 4500000\nuser_usec 4000000\nthrottled_usec 250000\n",
        "memory_current": f"{3 * GIB}\n",
        "memory_stat": f"anon {2 * GIB}\ninactive_file {GIB}\n",
    }
    prefix = f"{group}/" if group else ""
    return {prefix + k.replace("_", ".", 1): v for k, v in {**defaults, **values}.items()}


def test_v2_limits_and_usage(tmp_path: Path) -> None:
    groups = tree(
        tmp_path,
        "0::/app.slice/worker\n",
        {"cgroup.controllers": "cpu memory\n"}
        | v2("app.slice/worker", cpu_max="150000 100000\n", memory_max=f"{4 * GIB}\n"),
    )
    path = str(tmp_path / "cgroup/app.slice/worker")
    assert groups.cpu() == (CpuGroup(path, 1.5, 4.5, 0.25),)
    assert groups.memory() == (MemoryGroup(4 * GIB, 2 * GIB),)


def test_v2_walks_up_to_each_limit(tmp_path: Path) -> None:
    groups = tree(
        tmp_path,
        "0::/pod/box\n",
        {"cgroup.controllers": "cpu memory\n"}
        | v2("pod", cpu_max="50000 100000\n", memory_max=f"{2 * GIB}\n")
        | v2("pod/box", cpu_max="200000 100000\n", memory_max="max\n"),
    )
    assert [g.limit_cores for g in groups.cpu()] == [2.0, 0.5]
    assert [g.limit_bytes for g in groups.memory()] == [2 * GIB]


def test_v2_memory_high_is_a_limit_too(tmp_path: Path) -> None:
    groups = tree(
        tmp_path,
        "0::/\n",
        {"cgroup.controllers": "cpu memory\n"}
        | v2("", memory_max=f"{4 * GIB}\n", memory_high=f"{GIB}\n"),
    )
    assert [g.limit_bytes for g in groups.memory()] == [GIB]


@pytest.mark.parametrize("group", ["/../../other", "/gone/with/the/host", "/"])
def test_v2_in_a_namespace_reads_the_mount(tmp_path: Path, group: str) -> None:
    groups = tree(
        tmp_path,
        f"0::{group}\n",
        {"cgroup.controllers": "cpu memory\n"}
        | v2("", cpu_max="100000 100000\n")
        | v2("other", cpu_max="50000 100000\n"),  # of the same name, within the namespace
    )
    assert [g.limit_cores for g in groups.cpu()] == [1.0]


def test_v2_finds_a_group_below_the_containers_own(tmp_path: Path) -> None:
    groups = tree(
        tmp_path,
        "0::/docker/0123abcd/inner\n",
        {"cgroup.controllers": "cpu memory\n"}
        | v2("", cpu_max="400000 100000\n")
        | v2("inner", cpu_max="100000 100000\n"),
    )
    assert [g.limit_cores for g in groups.cpu()] == [1.0, 4.0]


V1 = {
    "cpu,cpuacct/docker/box/cpu.cfs_quota_us": "250000\n",
    "cpu,cpuacct/docker/box/cpu.cfs_period_us": "100000\n",
    "cpu,cpuacct/docker/box/cpuacct.usage": "7000000000\n",
    "cpu,cpuacct/docker/box/cpu.stat": "nr_throttled 1\nthrottled_time 500000000\n",
    "cpu,cpuacct/docker/cpu.cfs_quota_us": "-1\n",
    "cpu,cpuacct/docker/cpu.cfs_period_us": "100000\n",
    "memory/docker/box/memory.limit_in_bytes": f"{GIB}\n",
    "memory/docker/box/memory.usage_in_bytes": f"{GIB // 2}\n",
    "memory/docker/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n",
    "memory/docker/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/docker/memory.usage_in_bytes": f"{GIB}\n",
}
V1_MEMBERSHIP = "5:memory:/docker/box\n4:cpu,cpuacct:/docker/box\n1:name=systemd:/x\n0::/\n"


def test_v1_limits_and_usage(tmp_path: Path) -> None:
    groups = tree(tmp_path, V1_MEMBERSHIP, V1)
    path = str(tmp_path / "cgroup/cpu,cpuacct/docker/box")
    assert groups.cpu() == (CpuGroup(path, 2.5, 7.0, 0.5),)
    assert groups.memory() == (MemoryGroup(GIB, GIB // 4),)


def test_v1_in_a_container_reads_the_mount(tmp_path: Path) -> None:
    seen_inside = {name.replace("docker/box/", ""): text for name, text in V1.items()}
    groups = tree(tmp_path, V1_MEMBERSHIP, seen_inside)
    assert [g.limit_cores for g in groups.cpu()] == [2.5]
    assert [g.limit_bytes for g in groups.memory()] == [GIB]


def test_v1_with_usage_mounted_elsewhere(tmp_path: Path) -> None:
    groups = tree(
        tmp_path,
        "3:cpuacct:/box\n2:cpu:/box\n",
        {
            "cpu/box/cpu.cfs_quota_us": "100000",
            "cpu/box/cpu.cfs_period_us": "100000",
            "cpuacct/box/cpuacct.usage": "1000000000",
        },
    )
    assert [(g.limit_cores, g.used_s, g.throttled_s) for g in groups.cpu()] == [(1.0, 1.0, 0.0)]


def test_hybrid_takes_each_controller_where_it_lives(tmp_path: Path) -> None:
    groups = tree(
        tmp_path,
        "4:memory:/box\n0::/box\n",
        {
            "memory/box/memory.limit_in_bytes": str(GIB),
            "memory/box/memory.usage_in_bytes": "0",
        }
        | v2("unified/box", cpu_max="300000 100000", memory_max="1"),
    )
    assert [g.limit_cores for g in groups.cpu()] == [3.0]
    assert [g.limit_bytes for g in groups.memory()] == [GIB]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cgroup.controllers": ""},
        {"cgroup.controllers": ""} | v2("", cpu_max="max 100000\n", memory_max="max\n"),
        {"cgroup.controllers": ""} | v2("", cpu_max="100000 0\n", memory_max="junk\n"),
        {"cgroup.controllers": "", "cpu.max": "100000 100000", "memory.max": "9"},
        {"cgroup.controllers": "", "cpu.max/is": "a directory"},
    ],
    ids=["nothing", "root", "unlimited", "nonsense", "no usage", "unreadable"],
)
def test_without_a_limit_there_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    groups = tree(tmp_path, "0::/\n", files)
    assert groups.cpu() == ()
    assert groups.memory() == ()


@pytest.mark.parametrize("membership", ["", "nonsense\n\n", "4:cpu:/a\n3:memory:/a\n"])
def test_without_a_membership_there_is_no_limit(tmp_path: Path, membership: str) -> None:
    groups = tree(tmp_path, membership, {})
    assert groups.cpu() == ()
    assert groups.memory() == ()


@pytest.mark.parametrize("membership", ["0::/{}\n", "3:memory,{}:/a\n"])
def test_what_may_not_be_looked_at_is_no_limit(tmp_path: Path, membership: str) -> None:
    """As where /sys/fs/cgroup is hidden. Root may look at everything, but at no such name."""
    groups = tree(tmp_path, membership.format("x" * 300), {"cgroup.controllers": "memory\n"})
    assert groups.memory() == groups.cpu() == ()


def test_v1_limit_without_a_usage_file(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    assert tree(tmp_path, "2:cpu:/\n", files).cpu() == ()


def test_limits_are_read_again_each_time(tmp_path: Path) -> None:
    groups = tree(
        tmp_path,
        "0::/\n",
        {"cgroup.controllers": ""} | v2("", cpu_max="max 100000"),
    )
    (tmp_path / "cgroup/cpu.max").write_text("200000 100000")
    assert [g.limit_cores for g in groups.cpu()] == [2.0]
