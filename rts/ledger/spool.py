"""The spool: the ends of runs, on their way from this host's processes to Redis.

A task waits for no server when it ends: its record is copied into a memory-mapped file
of its process. That costs no system call, and the record is in the file however the
process ends. The worker's companion process reads what was appended five times a second
and ships it to Redis (see :mod:`rts.ledger.shipper`); while Redis is unavailable the
records wait here. Each writer holds a lock on its file, which the kernel releases
however the process ends, and starts a new file now and then.

A file's disk space is reserved when it is created: a write to mapped memory without disk
behind it would kill the process. If that fails (a disk that is nearly full), and for
lines that are too long, the file is written with ``write`` instead. Null bytes follow
the last line of a mapped file until its writer closes it.

    TIME-PID-RANDOM.jsonl   records, one JSON list per line, and counts, JSON objects;
                            the name identifies the writer
    refused.jsonl           lines that could not be parsed, for a person to look at
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
from contextlib import contextmanager, suppress

from rts import forks, health

#: Bytes after which a process starts a new file: small enough to be dropped as a
#: unit when the spool is full, large enough that creating one costs nothing.
FILE_BYTES = 1 << 18
#: Bytes of one read.
_CHUNK_BYTES = 1 << 14

#: Bytes of refused lines that are kept.
REFUSED_BYTES = 1 << 20

SUFFIX = ".jsonl"
_REFUSED = "refused.jsonl"


class Spool:
    """The spool in the folder *directory*, of about *max_bytes* bytes at most.

    The folder is created on first use, for this user only, and refused if it belongs to
    somebody else: in a shared ``/tmp`` anybody may create it.
    """

    def __init__(self, directory: str, max_bytes: int, *, file_bytes: int = FILE_BYTES) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        # At most a quarter: a spool that is full must not drop everything at once.
        self._file_bytes = max(1, min(file_bytes, max_bytes // 4))
        self._fd = -1
        #: The mapped file; ``None`` if it is written with ``write``.
        self._map: mmap.mmap | None = None
        self._written = 0
        self._pid = forks.pid
        self._lock = threading.Lock()

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
        if self._pid != forks.pid:
            self._reset_after_fork()
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
        """Hold this host's lease to ship; yields False while another process holds it, if
        there is no folder yet, or if it is somebody else's.
        """
        fd, mine = -1, False
        try:
            self._check_folder()
            fd = os.open(self._path("ship.lock"), _OPEN | os.O_WRONLY | os.O_CREAT, 0o600)
            mine = try_lock(fd)
        except FileNotFoundError:
            pass
        except OSError as exc:
            health.warn_once(
                f"spool-ship:{exc}",
                "rts: this host's spool is not shipped: %s. Fix that, or set rts_spool_dir to "
                "a folder of this user's own on a local disk",
                exc,
            )
        try:
            yield mine
        finally:
            if fd >= 0:
                os.close(fd)

    def refuse(self, line: bytes) -> None:
        """Set aside a line that could not be parsed, while there is room."""
        health.count("spool_refused")
        health.warn_once(
            "spool-refused",
            "rts: a record in the spool cannot be read; it is set aside in %s",
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
        """Close this process's file."""
        with self._lock:
            self._close()

    def _reset_after_fork(self) -> None:
        """Let go of the parent's file."""
        fd, self._fd = self._fd, -1
        self._map = None
        self._pid = forks.pid
        self._lock = threading.Lock()
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass  # closed already, with all inherited descriptors

    def _open(self, least_bytes: int) -> None:
        self._close()
        self._ensure_folder()
        self._make_room()
        while True:
            path = self._path(
                f"{time.time_ns():020d}-{self._pid}-{secrets.token_hex(8)}{SUFFIX}"
            )
            fd = os.open(path, _APPEND | os.O_EXCL, 0o600)
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
            # Such as what was lost before; a few may have been sent already.
            for line in counts:
                with suppress(ValueError, TypeError, AttributeError, LookupError):
                    health.give_back(read_counts(line))
            health.count("spool_dropped", lost)
            health.logger.error(
                "rts: the spool is full: the oldest records, up to %d, are lost. Bring Redis "
                "back, or raise rts_spool_max_bytes (%d)",
                lost,
                self._max_bytes,
            )

    def _ensure_folder(self) -> None:
        """Create the folder, or check that it is ours."""
        try:
            self._check_folder()
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.directory), exist_ok=True)
            try:
                os.mkdir(self.directory, 0o700)
            except FileExistsError:
                pass  # another process was faster; the check tells whether it is ours
            self._check_folder()

    def _check_folder(self) -> None:
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
    """Open a file of the spool for reading; yields -1 if it is gone."""
    try:
        # Should it be a pipe, do not wait for its other end.
        fd = os.open(path, _OPEN | os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Lock a file; return False if somebody else, such as its writer, holds the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def read_all(fd: int, offset: int = 0) -> bytes:
    """Return what has been written to a file from *offset* on."""
    chunks = []
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        chunks.append(chunk)
        offset += len(chunk)
        if chunk[-1] == 0:
            break
    # Null bytes among lines: writes of another core that are not all visible yet.
    return b"".join(chunks).partition(b"\0")[0]


def read_counts(line: bytes) -> dict[str, int]:
    """Return the counts of a line that holds some.

    Raises:
        ValueError, TypeError, LookupError: it holds something else.
    """
    counts = json.loads(line)["counts"]
    return {str(name): int(n) for name, n in counts.items()}


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # shipped in the meantime
