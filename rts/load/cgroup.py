"""The cgroup limits of this process, and how much of them is used.

Both cgroup versions are read, even side by side (hybrid hosts), at each level from the
process's own group up to the topmost visible one: a limit at any of them binds.
Reading never raises; what cannot be read counts as "no limit".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rts.load.kernel_files import read_file

#: Where cgroups are mounted.
ROOT = Path("/sys/fs/cgroup")

#: Where the kernel lists the groups of the calling process.
MEMBERSHIP = Path("/proc/self/cgroup")

#: Version 1 reports "no limit" as the largest page-aligned number, which depends
#: on the page size. No machine has an exbibyte, so anything above is that.
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """A group with a CPU limit."""

    path: str
    #: CPU time that it may use, in cores.
    limit_cores: float
    #: CPU time used since the group was created, seconds.
    used_s: float
    #: Time for which the limit held its threads back, summed over cores, seconds.
    throttled_s: float


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """The memory of a group that has a limit."""

    limit_bytes: int
    #: Without the file cache that the kernel reclaims first.
    used_bytes: int


class Cgroups:
    """The limited groups of this process, innermost first."""

    def __init__(self, root: Path = ROOT, membership: Path = MEMBERSHIP) -> None:
        controllers, unified = _membership(membership)
        self._cpu_v1 = _levels_v1(root, controllers, "cpu")
        self._memory_v1 = _levels_v1(root, controllers, "memory")
        usage = _levels_v1(root, controllers, "cpuacct")
        #: Usage is counted by another controller, which may be mounted elsewhere.
        self._cpuacct = dict(zip(reversed(self._cpu_v1), reversed(usage), strict=False))
        v2_root = root if os.path.exists(root / "cgroup.controllers") else root / "unified"
        levels = _levels(v2_root, unified) if unified is not None else ()
        #: A controller lives in one of the two hierarchies, never in both.
        self._cpu_v2 = () if "cpu" in controllers else levels
        self._memory_v2 = () if "memory" in controllers else levels

    def cpu(self) -> tuple[CpuGroup, ...]:
        """Return the groups with a CPU limit, as they are now."""
        found = [_cpu_v2(path) for path in self._cpu_v2]
        found += [_cpu_v1(path, self._cpuacct.get(path, path)) for path in self._cpu_v1]
        return tuple(group for group in found if group is not None)

    def memory(self) -> tuple[MemoryGroup, ...]:
        """Return the groups with a memory limit, as they are now."""
        found = [_memory_v2(path) for path in self._memory_v2]
        found += [_memory_v1(path) for path in self._memory_v1]
        return tuple(group for group in found if group is not None)


def _membership(path: Path) -> tuple[dict[str, tuple[str, str]], str | None]:
    """Return {v1 controller: (name of its mount, group)} and the v2 group."""
    controllers: dict[str, tuple[str, str]] = {}
    unified: str | None = None
    for line in read_file(str(path)).splitlines():
        hierarchy, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if not group:
            continue
        if hierarchy == "0" and not names:
            unified = group
        else:
            for name in names.split(","):
                controllers[name] = (names, group)
    return controllers, unified


def _levels_v1(
    root: Path, controllers: dict[str, tuple[str, str]], controller: str
) -> tuple[str, ...]:
    """Return the directories of a v1 controller, innermost first."""
    if controller not in controllers:
        return ()
    mounted_as, group = controllers[controller]
    for name in (mounted_as, controller):
        if os.path.isdir(root / name):  # Path.is_dir raises for what may not be looked at
            return _levels(root / name, group)
    return ()


def _levels(mount: Path, group: str) -> tuple[str, ...]:
    """Return the directories of *group* under *mount*, innermost first.

    In a container the mount may start at the container's own group while the kernel
    still reports the host's path: the longest suffix of it that exists is taken.
    A group outside the namespace ("/../…") leaves only the mount itself.
    """
    parts = [part for part in group.split("/") if part]
    if ".." in parts:
        parts = []
    while parts and not os.path.isdir(mount.joinpath(*parts)):
        parts.pop(0)
    inner = mount.joinpath(*parts)
    above = inner.parents[: len(parts)]
    return tuple(str(path) for path in (inner, *above))


def _cpu_v2(path: str) -> CpuGroup | None:
    quota, _, period = read_file(f"{path}/cpu.max").strip().partition(" ")
    limit = _cores(_integer(quota), _integer(period))
    if limit is None:
        return None
    stat = _read_table(f"{path}/cpu.stat")
    if "usage_usec" not in stat:
        return None
    return CpuGroup(path, limit, stat["usage_usec"] / 1e6, stat.get("throttled_usec", 0) / 1e6)


def _cpu_v1(path: str, usage_path: str) -> CpuGroup | None:
    limit = _cores(
        _integer(read_file(f"{path}/cpu.cfs_quota_us")),
        _integer(read_file(f"{path}/cpu.cfs_period_us")),
    )
    if limit is None:
        return None
    used_ns = _integer(read_file(f"{usage_path}/cpuacct.usage"))
    if used_ns is None:
        return None
    throttled_ns = _read_table(f"{path}/cpu.stat").get("throttled_time", 0)
    return CpuGroup(path, limit, used_ns / 1e9, throttled_ns / 1e9)


def _memory_v2(path: str) -> MemoryGroup | None:
    # memory.high is a limit too: a group above it is stalled, not killed.
    limits = [_integer(read_file(f"{path}/{name}")) for name in ("memory.max", "memory.high")]
    return _memory(path, limits, "memory.current", "inactive_file")


def _memory_v1(path: str) -> MemoryGroup | None:
    limits = [_integer(read_file(f"{path}/memory.limit_in_bytes"))]
    return _memory(path, limits, "memory.usage_in_bytes", "total_inactive_file")


def _memory(
    path: str, limits: list[int | None], usage: str, reclaimable: str
) -> MemoryGroup | None:
    finite = [limit for limit in limits if limit is not None and 0 < limit < UNLIMITED_BYTES]
    if not finite:
        return None
    used = _integer(read_file(f"{path}/{usage}"))
    if used is None:
        return None
    cache = _read_table(f"{path}/memory.stat").get(reclaimable, 0)
    return MemoryGroup(min(finite), max(0, used - cache))


def _cores(quota_us: int | None, period_us: int | None) -> float | None:
    """Return the limit in cores; ``None`` for "no limit" ("max", or -1)."""
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return None
    return quota_us / period_us


def _read_table(path: str) -> dict[str, int]:
    """Return a file of ``name number`` lines; empty where it cannot be read."""
    out: dict[str, int] = {}
    for line in read_file(path).splitlines():
        name, _, number = line.partition(" ")
        value = _integer(number)
        if value is not None:
            out[name] = value
    return out


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
