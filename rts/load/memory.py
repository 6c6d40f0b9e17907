"""Memory in use, as a fraction of what this worker may use.

Where cgroups limit it below the host's memory, it is ``used / limit`` of the fullest group,
without reclaimable file cache. Else it is ``1 - available / total`` of the host.
"""

from __future__ import annotations

from pathlib import Path

from rts.load.cgroup import Cgroups
from rts.load.kernel_files import read_file

#: psutil reads it as well, but a pool child must not import psutil for a rare look.
MEMINFO = Path("/proc/meminfo")


class MemoryProbe:
    """The share of memory that is in use."""

    def __init__(self, cgroups: Cgroups, meminfo: Path = MEMINFO) -> None:
        self._cgroups = cgroups
        self._meminfo = meminfo

    def read(self) -> float | None:
        """Return the share; ``None`` where neither a limit nor the host's memory is known."""
        total_bytes, available_bytes = self._host()
        shares = [
            group.used_bytes / group.limit_bytes
            for group in self._cgroups.memory()
            if not total_bytes or group.limit_bytes < total_bytes
        ]
        if not shares and total_bytes:
            shares = [1.0 - available_bytes / total_bytes]
        return max(shares, default=None)

    def _host(self) -> tuple[int, int]:
        """Return the host's memory: all of it, and what is available without swapping; zeros
        where they cannot be read.
        """
        found: dict[str, int] = {}
        try:
            for line in read_file(str(self._meminfo)).splitlines():
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    found[name] = int(rest.split()[0]) * 1024
                if len(found) == 2:
                    break  # they are among the first of some fifty
            return found["MemTotal"], found["MemAvailable"]
        except (ValueError, LookupError):
            return 0, 0
