"""Records that wait on disk while Redis is away: a folder of JSON lines.

Any process and thread of the host appends; :mod:`rts.ledger.ship` takes whole
files and delivers them. Appenders never wait for each other: each holds a shared
lock on the open file, and only who closes that file for more (a *batch*) needs
the exclusive one. A batch is never written to again, so the number of a line in
it is an identity.

    current.jsonl           is appended to
    batch-TIME-RANDOM.jsonl is shipped, oldest first, and then removed
    batch-….at              lines of a batch that were shipped
    refused.jsonl           lines that could not be understood, for a person
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence

from rts import health
from rts.records import Execution

#: A file that has grown to this becomes a batch: small enough to be dropped as a
#: unit, large enough that a day's outage is no folder of thousands.
BATCH_BYTES = 8 << 20

#: Tries to lock the current file before a record gets a file of its own. The
#: lock is refused only while somebody renames that file: microseconds.
MAX_TRIES = 20

#: Bytes of refused lines that are kept.
REFUSED_BYTES = 1 << 20

_CURRENT = "current.jsonl"
_REFUSED = "refused.jsonl"
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Batch:
    """A closed file, locked by whoever ships it. Lines are numbered from 1.

    The lock goes with the process, so what a dead shipper left is taken by the next.
    """

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    @property
    def producer(self) -> str:
        """Identity of the file, unique for ever and over all hosts."""
        return os.path.basename(self._path).removesuffix(".jsonl")

    def lines(self) -> Sequence[bytes]:
        """Return all lines; the last may be torn, and some may be empty."""
        size = os.fstat(self._fd).st_size
        chunks = []
        offset = 0
        while offset < size:
            chunk = os.pread(self._fd, 1 << 20, offset)
            if not chunk:
                break
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks).split(b"\n")

    @property
    def shipped(self) -> int:
        """Number of lines that were shipped before, by anybody."""
        try:
            with open(self._mark, encoding="ascii") as file:
                return int(file.read() or 0)
        except (OSError, ValueError):
            return 0

    def mark(self, lines: int) -> None:
        """Note that the first *lines* lines were shipped.

        Raises:
            OSError: the disk is full, for example. Shipping them again is
                recognised by Redis for an hour.
        """
        partial = self._mark + ".new"
        with open(partial, "w", encoding="ascii") as file:
            file.write(str(lines))
        os.replace(partial, self._mark)

    def remove(self) -> None:
        """Delete the batch: everything in it was shipped.

        Raises:
            OSError: it cannot be deleted.
        """
        os.unlink(self._path)
        _unlink(self._mark)
        self.close()

    def close(self) -> None:
        """Let go of the batch; another shipper may take it."""
        if self._fd >= 0:
            _release(self._fd)
            self._fd = -1

    @property
    def _mark(self) -> str:
        return self._path.removesuffix(".jsonl") + ".at"


class Spool:
    """The folder *directory*, of at most about *max_bytes* bytes.

    The folder is made when it is first needed, readable by this user only, and
    refused if it is somebody else's: in a shared ``/tmp`` anybody may make it.
    """

    def __init__(
        self, directory: str, max_bytes: int, *, batch_bytes: int = BATCH_BYTES
    ) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        # A quarter: what goes when the spool is full must not be all of it.
        self._batch_bytes = max(1, min(batch_bytes, max_bytes // 4))

    def append(
        self, execution: Execution, *, elsewhere: bool, suspect: tuple[str, int] | None
    ) -> None:
        """Keep a record. Runs in any process and thread; never raises, never waits.

        *suspect* names the writer and number under which it may already have
        arrived. What cannot be kept is lost, counted as ``spool_lost`` and logged.
        """
        try:
            line = (
                f'{{"execution":{execution.to_json()},"elsewhere":{json.dumps(elsewhere)},'
                f'"suspect":{json.dumps(suspect)}}}'
            )
            self.append_lines([line.encode()])
        except (OSError, TypeError, ValueError) as exc:
            health.count("spool_lost")
            health.warn_once(
                f"spool:{type(exc).__name__}:{getattr(exc, 'errno', None)}",
                "rts: a record is lost, because Redis is away and the spool cannot be "
                "written: %s. Set rts_spool_dir to a folder that this user can write, "
                "with room for rts_spool_max_bytes",
                exc,
            )
        else:
            health.count("spooled")

    def append_lines(self, lines: Sequence[bytes]) -> None:
        """Keep whole lines.

        Raises:
            OSError: they could not be written.
        """
        self._prepare()
        # Begins with a line end too: behind a torn line, only that one is lost.
        data = b"\n" + b"\n".join(lines) + b"\n"
        for _ in range(MAX_TRIES):
            fd = os.open(self._path(_CURRENT), _APPEND, 0o600)
            try:
                if self._lock_current(fd, fcntl.LOCK_SH):
                    _write(fd, data)
                    full = os.fstat(fd).st_size >= self._batch_bytes
                    break
            finally:
                _release(fd)
        else:
            # Whoever renames the file was stopped in the middle of it.
            full = True
            _write_file(self._path(_batch_name()), data)
        if full:
            self._rotate()
            self._limit()

    def take(self) -> Batch | None:
        """Return the oldest batch that nobody else ships, ``None`` where there is none.

        Where no batch is left, what is being appended to becomes one.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            self._check()
        except FileNotFoundError:
            return None
        for name in self._batches():
            batch = self._open_batch(name)
            if batch is not None:
                return batch
        return self._rotate(keep=True)

    def refuse(self, line: bytes) -> None:
        """Keep a line that could not be understood, while there is room."""
        health.count("spool_refused")
        health.warn_once(
            "spool-refused",
            "rts: a spooled record cannot be read and is kept aside in %s",
            self._path(_REFUSED),
        )
        try:
            fd = os.open(self._path(_REFUSED), _APPEND, 0o600)
            try:
                if os.fstat(fd).st_size < REFUSED_BYTES:
                    _write(fd, line[:REFUSED_BYTES] + b"\n")
            finally:
                os.close(fd)
        except OSError:
            pass  # it was counted

    def waiting_bytes(self) -> int:
        """Return the bytes that wait to be shipped, 0 where there is no spool."""
        total = 0
        for name in [*self._batches(), _CURRENT]:
            try:
                total += os.stat(self._path(name)).st_size
            except OSError:
                pass  # shipped in the meantime
        return total

    def _rotate(self, *, keep: bool = False) -> Batch | None:
        """Make the current file a batch, if nobody writes to it just now.

        Returns the batch, locked, where it is to be kept and has something in it.
        """
        try:
            fd = os.open(self._path(_CURRENT), _READ)
        except FileNotFoundError:
            return None
        kept = False
        try:
            if not self._lock_current(fd, fcntl.LOCK_EX) or not os.fstat(fd).st_size:
                return None
            path = self._path(_batch_name())
            os.rename(self._path(_CURRENT), path)
            kept = keep
            return Batch(path, fd) if keep else None
        finally:
            if not kept:
                _release(fd)

    def _lock_current(self, fd: int, kind: int) -> bool:
        """Lock the current file; False if it is locked, or is no longer the current one."""
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(fd), os.lstat(self._path(_CURRENT)))
        except (BlockingIOError, FileNotFoundError):
            return False

    def _open_batch(self, name: str) -> Batch | None:
        path = self._path(name)
        try:
            fd = os.open(path, _READ)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return Batch(path, fd)
        except BlockingIOError:
            pass  # another one ships it
        _release(fd)
        return None

    def _limit(self) -> None:
        """Delete the oldest batches while all together are too much."""
        excess = self.waiting_bytes() - self._max_bytes
        for name in self._batches():
            if excess <= 0:
                return
            batch = self._open_batch(name)
            if batch is None:
                continue
            excess -= os.stat(self._path(name)).st_size
            lost = sum(1 for line in batch.lines()[batch.shipped :] if line)
            batch.remove()
            health.count("spool_dropped", lost)
            health.logger.error(
                "rts: the spool is full: the oldest %d records are lost. Bring Redis back, "
                "or raise rts_spool_max_bytes (%d)",
                lost,
                self._max_bytes,
            )

    def _batches(self) -> Iterator[str]:
        """Return the names of the batches, oldest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            names = []
        return iter(sorted(n for n in names if n.startswith("batch-") and n.endswith(".jsonl")))

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


def _batch_name() -> str:
    return f"batch-{time.time_ns():020d}-{secrets.token_hex(8)}.jsonl"


def _write(fd: int, data: bytes) -> None:
    """Write all of *data* at once. What was written of it on a full disk stays, as a
    torn line.
    """
    written = os.write(fd, data)
    while written < len(data):
        more = os.write(fd, data[written:])  # raises what stopped the first one
        written += more


def _write_file(path: str, data: bytes) -> None:
    partial = f"{path}.new"
    fd = os.open(partial, _APPEND | os.O_EXCL, 0o600)
    try:
        _write(fd, data)
    finally:
        os.close(fd)
    os.rename(partial, path)


def _release(fd: int) -> None:
    # Unlocked by name: a process that was forked just now may hold a copy of fd.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
