"""Memory in use, as a fraction of what this worker may use.

Where cgroups limit it below the host's memory: ``used / limit`` of the fullest of
them, without reclaimable file cache. Else ``1 - available / total`` of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rts.load.cgroup import Cgroups

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory: all of it, and what is available without swapping."""

    total_bytes: int
    available_bytes: int


class MemoryProbe:
    """The share of memory that is in use."""

    def __init__(self, cgroups: Cgroups, host: Callable[[], HostMemory]) -> None:
        self._cgroups = cgroups
        self._host = host

    def read(self) -> float | None:
        """Return the share; ``None`` where the host's memory is not known.

        Raises what the source of the host's figures raises.
        """
        host = self._host()
        shares = [
            group.used_bytes / group.limit_bytes
            for group in self._cgroups.memory()
            if host.total_bytes <= 0 or group.limit_bytes < host.total_bytes
        ]
        if shares:
            return max(shares)
        if host.total_bytes <= 0:
            return None
        return 1.0 - host.available_bytes / host.total_bytes


def psutil_memory() -> Callable[[], HostMemory]:
    """Return a source that uses psutil, imported here: a pool child never needs it."""
    import psutil

    def read() -> HostMemory:
        memory = psutil.virtual_memory()
        return HostMemory(memory.total, memory.available)

    return read


def meminfo_memory(meminfo: Path = MEMINFO) -> Callable[[], HostMemory]:
    """Return a source that needs no import, for a process that samples rarely.

    Where the file cannot be read, the total is 0.
    """

    def read() -> HostMemory:
        found = {"MemTotal": 0, "MemAvailable": 0}
        try:
            for line in meminfo.read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in found:
                    found[name] = int(rest.split()[0]) * 1024
        except (OSError, ValueError, IndexError):
            return HostMemory(0, 0)
        return HostMemory(found["MemTotal"], found["MemAvailable"])

    return read
