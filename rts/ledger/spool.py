"""The spool: the ends of runs, on their way from this host's processes to Redis.

A task waits for no server when it ends: its record is copied into a memory-mapped file
of its process. That costs no system call, and the record is in the file however the
process ends. Five times a second the worker's companion process reads what was appended
and ships it to Redis (see :mod:`rts.ledger.shipper`); while Redis is unavailable the
records wait here. Each writer holds a lock on its file, which the kernel releases
however the process ends. Now and then it starts a new file.

The disk space of a file is reserved when the file is created: a write to mapped memory
without disk behind it would kill the process. If it cannot be reserved, as on a disk that is
nearly full, and for lines that are too long, the file is written with ``write`` instead. Until
its writer closes it, null bytes follow the last line of a mapped file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from rts import forks, health
from rts.ledger.spool_folder import (
    APPEND,
    SUFFIX,
    SpoolFolder,
    opened,
    read_all,
    read_counts,
    try_lock,
)

#: Bytes after which a process starts a new file: small enough to be dropped as a
#: unit when the spool is full, large enough that creating one costs nothing.
FILE_BYTES = 1 << 18
_NEWLINE = ord("\n")


class Spool(SpoolFolder):
    """The folder with this process's file, of about *max_bytes* bytes at most in all."""

    def __init__(self, directory: str, max_bytes: int, *, file_bytes: int = FILE_BYTES) -> None:
        super().__init__(directory)
        self._max_bytes = max_bytes
        # At most a quarter: a spool that is full must not drop everything at once.
        self._file_bytes = max(1, min(file_bytes, max_bytes // 4))
        self._fd = -1
        #: The mapped file; ``None`` if it is written with ``write``.
        self._map: mmap.mmap | None = None
        self._written = 0
        #: Whether others were deleted to make room for the current file.
        self._full = False
        self._lock = threading.Lock()
        forks.in_child(self.let_go)

    def append_counts(self, counts: Mapping[str, int]) -> None:
        """Append counts of this process.

        Raises:
            OSError: it could not be written.
        """
        self.append_line(json.dumps({"counts": dict(counts)}).encode() + b"\n")

    def append_line(self, data: bytes) -> None:
        """Append one line, which ends in a newline. Called by any process and thread that
        runs tasks.

        Raises:
            OSError: it could not be written (a full disk, somebody else's folder).
        """
        with self._lock:
            if self._map is not None:
                full = self._written + len(data) > self._file_bytes
            else:
                full = self._fd < 0 or self._written >= self._file_bytes
            if full:
                self._open(len(data))
            if self._map is None:
                self._write(data)
                return
            start = self._written
            end = start + len(data)
            # The newline comes last: a line that has one is complete.
            self._map[start : end - 1] = data[:-1]
            self._map[end - 1] = _NEWLINE
            self._written = end

    def _write(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        self._written += written
        if written != len(data):
            self._close()  # the next line must not follow a torn one
            raise OSError(errno.ENOSPC, "No space left for a record", self.directory)

    def close(self) -> None:
        """Close this process's file."""
        with self._lock:
            self._close()

    def let_go(self) -> None:
        """Let go, in a forked child, of the parent's file, whose lock means that it lives."""
        fd, self._fd = self._fd, -1
        self._map = None
        self._lock = threading.Lock()
        if fd >= 0:
            forks.close_inherited(fd)

    def _open(self, least_bytes: int) -> None:
        self._close()
        self.ensure()
        self._make_room()
        while True:
            path = self.path(
                f"{time.time_ns():020d}-{forks.pid}-{secrets.token_hex(8)}{SUFFIX}"
            )
            fd = os.open(path, APPEND | os.O_EXCL, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: leave nothing behind
                os.close(fd)
                os.unlink(path)
                raise
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # before it was locked, a shipper took its writer for dead
        self._fd, self._written = fd, 0
        if least_bytes <= self._file_bytes:
            try:
                os.posix_fallocate(fd, 0, self._file_bytes)
                self._map = mmap.mmap(fd, self._file_bytes)
            except (OSError, ValueError):
                os.ftruncate(fd, 0)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                if self._map is not None:
                    self._map.close()
                    os.ftruncate(fd, self._written)
            finally:
                self._map = None
                # Explicitly: a forked child may hold a copy of the descriptor.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)

    def _make_room(self) -> None:
        """Delete the oldest files without a writer, as far as the limit demands."""
        sizes = {path: _size(path) for path in self.files()}
        excess = sum(sizes.values()) + self._file_bytes - self._max_bytes
        logged, self._full = self._full, excess > 0
        for path, size in sizes.items():
            if excess <= 0:
                return
            with opened(path) as fd:
                if fd < 0 or not try_lock(fd):
                    continue
                lines = read_all(fd).splitlines()
                os.unlink(path)
            excess -= size
            counts = [line for line in lines if line.startswith(b"{")]
            lost = len(lines) - len(counts)
            # The counts are passed on, as of what was lost before. A few may be sent twice.
            for line in counts:
                with suppress(ValueError):
                    health.give_back(read_counts(line))
            health.count("spool_dropped", lost)
            if not logged:
                logged = True
                health.logger.error(
                    "rts: the spool is full: with each new file the oldest records are lost, "
                    "first up to %d. Bring Redis back, or raise rts_spool_max_bytes (%d)",
                    lost,
                    self._max_bytes,
                )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # shipped in the meantime
