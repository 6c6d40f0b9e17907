"""The folder of the spool (:mod:`rts.ledger.spool`).

The processes of a host share it. In it are::

    TIME-PID-RANDOM.jsonl   records, one JSON list per line, and counts, JSON objects;
                            the name identifies the writer
    refused.jsonl           lines that could not be parsed, for a person to look at
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from rts import health

#: Bytes of one read.
_CHUNK_BYTES = 1 << 14

#: Bytes of refused lines that are kept.
REFUSED_BYTES = 1 << 20

SUFFIX = ".jsonl"
_REFUSED = "refused.jsonl"
#: The names of writers' files. What is shipped is deleted, so no file of somebody else in this
#: folder may be taken for one.
_WRITERS = re.compile(rf"\d{{20}}-\d+-[0-9a-f]{{16}}{re.escape(SUFFIX)}", re.ASCII)

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW
#: Flags for a file that is written to.
APPEND = _OPEN | os.O_RDWR | os.O_APPEND | os.O_CREAT


class SpoolFolder:
    """The folder *directory*.

    It is created on first use, for this user only, and refused if it belongs to
    somebody else: in a shared ``/tmp`` anybody may create it.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def files(self) -> list[str]:
        """Return the paths of all writers' files, oldest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return [self.path(name) for name in sorted(names) if _WRITERS.fullmatch(name)]

    @contextmanager
    def lease(self) -> Iterator[bool]:
        """Hold this host's lease to ship; yields False while another process holds it, if
        there is no folder yet, or if it is somebody else's.
        """
        fd, mine = -1, False
        try:
            self._check()
            # The folder itself is locked: of old files in it, systemd-tmpfiles would remove
            # one that is only for this, and removes none while the folder is locked.
            fd = os.open(self.directory, _OPEN | os.O_RDONLY)
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
            self.path(_REFUSED),
        )
        try:
            fd = os.open(self.path(_REFUSED), APPEND, 0o600)
            try:
                if os.fstat(fd).st_size < REFUSED_BYTES:
                    os.write(fd, line[:REFUSED_BYTES] + b"\n")
            finally:
                os.close(fd)
        except OSError:
            pass  # it was counted

    def ensure(self) -> None:
        """Create the folder, or check that it is ours."""
        try:
            self._check()
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.directory), exist_ok=True)
            try:
                os.mkdir(self.directory, 0o700)
            except FileExistsError:
                pass  # another process was faster; the check tells whether it is ours
            self._check()

    def _check(self) -> None:
        found = os.lstat(self.directory)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{self.directory} is not a folder (or is a link)")
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{self.directory} belongs to another user")
        if found.st_mode & 0o022:
            raise PermissionError(f"{self.directory} can be written by other users")

    def path(self, name: str) -> str:
        """Return the path of a file in the folder."""
        return os.path.join(self.directory, name)


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
        ValueError: it holds something else.
    """
    try:
        counts = json.loads(line)["counts"]
        return {str(name): int(n) for name, n in counts.items()}
    except (TypeError, AttributeError, LookupError, OverflowError, RecursionError) as exc:
        raise ValueError(f"not counts: {exc}") from exc
