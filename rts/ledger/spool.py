"""The ends of runs, on their way from the processes of this host to Redis.

A task waits for no server when it ends: its record is copied into a file of its
process, which is mapped into its memory. So it costs no system call, and stands in
the file however the process ends. The worker's companion process reads the files'
ends, five times a second, and brings them to Redis (see :mod:`rts.ledger.shipper`);
while Redis is away they wait here. Each process that writes holds a lock on its
file, which the kernel gives up however the process ends, and begins a new file now
and then.

A file's room is reserved when it is made: memory that has no disk behind it would
kill who writes there. Where that is refused (a disk that is nearly full), and for
lines that are too long, a file is written to with ``write``. Null bytes follow the
last line of a file that is mapped, until its writer closes it.

    TIME-PID-RANDOM.jsonl   records, one JSON list a line, and counts, a JSON object;
                            the name is an identity
    refused.jsonl           lines that could not be understood, for a person
    ship.lock               held by the one companion of this host that ships
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rts import forks, health

#: Bytes after which a process begins a new file: small enough to be dropped as a
#: unit when the spool is full, large enough that making one costs nothing.
FILE_BYTES = 1 << 18
#: Bytes that are read at a time.
_CHUNK_BYTES = 1 << 14

#: Bytes of refused lines that are kept.
REFUSED_BYTES = 1 << 20

SUFFIX = ".jsonl"
_REFUSED = "refused.jsonl"


class Spool:
    """The folder *directory*, of at most about *max_bytes* bytes.

    Made when it is first needed, readable by this user only, and refused if it is
    somebody else's: in a shared ``/tmp`` anybody may make it.
    """

    def __init__(self, directory: str, max_bytes: int, *, file_bytes: int = FILE_BYTES) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        # A quarter: what goes when the spool is full must not be all of it.
        self._file_bytes = max(1, min(file_bytes, max_bytes // 4))
        self._fd = -1
        #: The file as memory; ``None``: it is written to.
        self._map: mmap.mmap | None = None
        self._written = 0
        self._pid = forks.pid
        self._lock = threading.Lock()

    def append_counts(self, counts: Mapping[str, int]) -> None:
        """Keep what this process has counted.

        Raises:
            OSError: it could not be written.
        """
        self.append_line(json.dumps({"counts": dict(counts)}).encode() + b"\n")

    def append_line(self, data: bytes) -> None:
        """Keep one line, which has its end. Called by any process and thread that runs
        tasks.

        Raises:
            OSError: it could not be written (a full disk, a folder of somebody else).
        """
        if self._pid != forks.pid:
            self._begin_anew()
        with self._lock:
            start = self._written
            end = start + len(data)
            if end > self._file_bytes or self._map is None:
                if self._fd < 0 or start >= self._file_bytes or self._map is not None:
                    self._open(len(data))
                start = self._written
                end = start + len(data)
            if self._map is None:
                self._write(data)
                return
            # The line's end comes last: what stands before it is whole.
            self._map[start : end - 1] = data[:-1]
            self._map[end - 1] = _NEWLINE
            self._written = end

    def _write(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        self._written += written
        if written != len(data):
            self._close()  # what comes next must not be behind a torn line
            raise OSError(errno.ENOSPC, "No space left for a record", self.directory)

    def files(self) -> list[str]:
        """Return the paths of all files, oldest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return [
            os.path.join(self.directory, name)
            for name in sorted(names)
            if name.endswith(SUFFIX) and name != _REFUSED
        ]

    @contextmanager
    def lease(self) -> Iterator[bool]:
        """Hold the right to ship; gives False while another process has it, or
        where there is no folder yet. What a stranger's folder has in it is not shipped.
        """
        try:
            self._check()
            fd = os.open(self._path("ship.lock"), _OPEN | os.O_WRONLY | os.O_CREAT, 0o600)
        except FileNotFoundError:
            yield False
            return
        except OSError as exc:
            health.warn_once(
                f"spool-ship:{exc}",
                "rts: nothing is taken from this host's disk: %s. Remove that, or set "
                "rts_spool_dir to a folder of this user's own",
                exc,
            )
            yield False
            return
        try:
            yield try_lock(fd)
        finally:
            os.close(fd)

    def refuse(self, line: bytes) -> None:
        """Keep a line that could not be understood, while there is room."""
        health.count("spool_refused")
        health.warn_once(
            "spool-refused",
            "rts: a record on its way cannot be read and is kept aside in %s",
            self._path(_REFUSED),
        )
        try:
            fd = os.open(self._path(_REFUSED), _APPEND, 0o600)
            try:
                if os.fstat(fd).st_size < REFUSED_BYTES:
                    os.write(fd, line[:REFUSED_BYTES] + b"\n")
            finally:
                os.close(fd)
        except OSError:
            pass  # it was counted

    def close(self) -> None:
        """End this process's file."""
        with self._lock:
            self._close()

    def _begin_anew(self) -> None:
        """Let go, after a fork, of what the parent writes to."""
        fd, self._fd = self._fd, -1
        self._map = None
        self._pid = forks.pid
        self._lock = threading.Lock()
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass  # closed already, with all that the parent had open

    def _open(self, least_bytes: int) -> None:
        self._close()
        self._prepare()
        self._limit()
        while True:
            name = f"{time.time_ns():020d}-{self._pid}-{secrets.token_hex(8)}{SUFFIX}"
            fd = os.open(self._path(name), _APPEND | os.O_EXCL, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # a shipper took it for a dead process's, before the lock
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
                # By name: a process that this one has forked may hold a copy.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)

    def _limit(self) -> None:
        """Delete the oldest files that nobody writes to while all are too much."""
        sizes = {path: _size(path) for path in self.files()}
        excess = sum(sizes.values()) + self._file_bytes - self._max_bytes
        for path, size in sizes.items():
            if excess <= 0:
                return
            with opened(path) as fd:
                if fd < 0 or not try_lock(fd):
                    continue
                lost = read_all(fd).count(b"\n")
                os.unlink(path)
            excess -= size
            health.count("spool_dropped", lost)
            health.logger.error(
                "rts: the spool is full: the oldest records, up to %d, are lost. Bring Redis "
                "back, or raise rts_spool_max_bytes (%d)",
                lost,
                self._max_bytes,
            )

    def _prepare(self) -> None:
        """Make the folder, or check that it is ours."""
        try:
            self._check()
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.directory), exist_ok=True)
            try:
                os.mkdir(self.directory, 0o700)
            except FileExistsError:
                pass  # another process was faster, or somebody else: the check tells
            self._check()

    def _check(self) -> None:
        found = os.lstat(self.directory)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{self.directory} is not a folder (or is a link)")
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{self.directory} belongs to another user")
        if found.st_mode & 0o022:
            raise PermissionError(f"{self.directory} can be written by other users")

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)


_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW
_APPEND = _OPEN | os.O_RDWR | os.O_APPEND | os.O_CREAT
_NEWLINE = ord("\n")


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a file of the spool for reading; gives -1 where it is gone."""
    try:
        # Without waiting for the other end, should it be a pipe.
        fd = os.open(path, _OPEN | os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Lock a file; False where somebody else, such as its writer, has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def read_all(fd: int, offset: int = 0) -> bytes:
    """Return all that stands in a file from *offset* on, as far as it is written."""
    chunks = []
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        chunks.append(chunk)
        offset += len(chunk)
        if chunk[-1] == 0:
            break
    # Null bytes among lines: the memory of another core, not all of it to be seen yet.
    return b"".join(chunks).partition(b"\0")[0]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # shipped in the meantime
