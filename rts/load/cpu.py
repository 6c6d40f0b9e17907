"""Demand for CPU time, as a fraction of what this worker may use.

Where cgroups limit it to fewer cores than its affinity allows, it is ``(used + throttled) /
limit`` of a group, siblings included: of the group in which that is highest. Else it is the
share of its affinity's cores that is busy; on a saturated host, the mean number of runnable
threads per core if that is more. Both exceed 1.0 where more threads want to run than can: four
busy threads on two cores read 2.0.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rts.load.cgroup import Cgroups, CpuGroup
from rts.load.kernel_files import read_file

#: Share of busy time from which a core counts as saturated. Below it, runnable threads wait
#: only for a moment. At 0.25 s per sample and 10 ms per kernel tick, a core that is never idle
#: reads no less.
SATURATED_RATIO = 0.9

#: Counts of runnable threads to average over: about a second's worth, since each is
#: instantaneous.
RUNNABLE_SAMPLES = 4

LOADAVG = Path("/proc/loadavg")


@dataclass(frozen=True, slots=True)
class HostCpu:
    """Counters of the host's cores, since boot."""

    #: Busy time, and all time, of the allowed cores, seconds.
    busy_s: float
    total_s: float
    #: Running or runnable threads of the whole host, without the reader; ``None`` where
    #: that says nothing about the allowed cores.
    runnable: int | None


def allowed_cores() -> frozenset[int]:
    """Return the numbers of the cores that this process may run on."""
    # By process id: 0 would mean the calling thread.
    return frozenset(os.sched_getaffinity(os.getpid()))


class CpuProbe:
    """CPU load since the previous reading."""

    def __init__(
        self,
        cgroups: Cgroups,
        host: Callable[[frozenset[int]], HostCpu | None],
        *,
        affinity: Callable[[], frozenset[int]] = allowed_cores,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cgroups = cgroups
        self._host = host
        self._affinity = affinity
        self._clock = clock
        self._read_at = -math.inf
        self._groups: dict[str, CpuGroup] = {}
        self._last_host: HostCpu | None = None
        self._last_cores: frozenset[int] = frozenset()
        self._runnable: deque[int] = deque(maxlen=RUNNABLE_SAMPLES)
        self._value: float | None = None

    def read(self) -> float | None:
        """Return the load since the previous reading, some ticks of 10 ms ago; ``None`` at the
        first, and where neither a limit nor the host's counters are known.
        """
        now = self._clock()
        elapsed_s = now - self._read_at
        cores = self._affinity()
        groups = {g.path: g for g in self._cgroups.cpu() if g.limit_cores < len(cores)}
        host = None if groups else self._host(cores)
        if host is None:
            self._value = self._of_groups(groups, elapsed_s)
        else:
            self._value = self._of_host(host, cores)
        self._read_at, self._groups = now, groups
        self._last_host, self._last_cores = host, cores
        return self._value

    def _of_groups(self, groups: dict[str, CpuGroup], elapsed_s: float) -> float | None:
        shares = []
        for path, group in groups.items():
            before = self._groups.get(path)
            if before is None:
                continue
            used_s = group.used_s - before.used_s
            throttled_s = max(0.0, group.throttled_s - before.throttled_s)
            shares.append((used_s + throttled_s) / (elapsed_s * group.limit_cores))
        return max(shares, default=None)

    def _of_host(self, host: HostCpu, cores: frozenset[int]) -> float | None:
        before = self._last_host
        if host.runnable is not None:
            self._runnable.append(host.runnable)
        if before is None or cores != self._last_cores:
            return None
        total_s = host.total_s - before.total_s
        if total_s <= 0:
            return self._value
        busy = min(1.0, max(0.0, (host.busy_s - before.busy_s) / total_s))
        if busy < SATURATED_RATIO or not self._runnable:
            return busy
        return max(busy, sum(self._runnable) / len(self._runnable) / len(cores))


def psutil_host(loadavg: Path = LOADAVG) -> Callable[[frozenset[int]], HostCpu | None]:
    """Return a source of the host's counters that uses psutil, which is imported here
    because a pool child never needs it. It gives ``None`` where they cannot be read.
    """
    import psutil

    def read(cores: frozenset[int]) -> HostCpu | None:
        whole = len(cores) >= (psutil.cpu_count() or 1)
        try:
            rows = [psutil.cpu_times()]
            per_core = [] if whole else psutil.cpu_times(percpu=True)
        except OSError:  # no /proc, or in a container of LXC whose lxcfs has died
            return None
        # psutil leaves offline cores out: numbers beyond its list cannot be mapped, and the
        # figure of the whole host is the better guess.
        if max(cores) < len(per_core):
            rows = [per_core[number] for number in cores]
        total_s = idle_s = 0.0
        for row in rows:
            # Guest time is included in user and nice already.
            total_s += sum(row) - getattr(row, "guest", 0.0) - getattr(row, "guest_nice", 0.0)
            idle_s += row.idle + getattr(row, "iowait", 0.0)
        return HostCpu(total_s - idle_s, total_s, _runnable(loadavg) if whole else None)

    return read


def _runnable(loadavg: Path) -> int | None:
    """Return how many other threads run or wait for a core: ``… 3/812 …``."""
    try:
        field = read_file(str(loadavg)).split()[3]
        return max(0, int(field.partition("/")[0]) - 1)
    except (ValueError, IndexError):
        return None
