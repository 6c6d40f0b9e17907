"""What one run of a task used: CPU seconds and peak memory.

The peak is read from the kernel's high-water mark of resident memory, which is
set back at the start of each run (Linux: "5" to ``/proc/self/clear_refs``; it
only copies a number, whatever the size of the process). Side effect, to know
of: ``ru_maxrss`` and ``VmHWM`` of a pool process then tell the peak since its
last task began, no longer since its own start. Celery's
``worker_max_memory_per_child`` looks right after each task and is not affected.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass

#: ``ru_maxrss`` is in KiB on Linux.
_RSS_UNIT_BYTES = 1024

#: The kernel counts resident memory per core and adds up now and then; a mark
#: within this much of the present size counts as set back.
_RSS_NOISE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run used."""

    #: CPU seconds, user and system, see :meth:`RunUsage.begin`.
    cpu_s: float
    #: Peak resident memory, of the run where it could be told apart, else of the
    #: process so far. Memory of subprocesses is not in it. ``None``: not known.
    max_rss_bytes: int | None


class _HighWaterMark:
    """The peak of resident memory of this process, and the way to set it back."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._status_fd: int | None = None
        self._ready = False

    def reset(self) -> None:
        """Set the mark back to the present size; where that is not allowed, nothing."""
        if not self._ready:
            self._open()
        if self._fd is not None:
            try:
                os.write(self._fd, b"5")
            except OSError:
                os.close(self._fd)
                self._fd = None

    def read_bytes(self) -> int | None:
        """Return the mark."""
        if self._status_fd is not None:
            return _status_bytes(self._status_fd, b"VmHWM:")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES

    def after_fork(self) -> None:
        """Forget the files: in a child they still mean the parent's memory."""
        for fd in (self._fd, self._status_fd):
            if fd is not None:
                os.close(fd)
        self._fd, self._status_fd, self._ready = None, None, False

    def _open(self) -> None:
        self._ready = True
        try:
            # Not permitted where /proc is read-only or the process not dumpable.
            self._fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._fd, b"5")
            status_fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        # ru_maxrss also holds the peak of what this process was before its last
        # exec (of a large parent, for instance), and that cannot be set back. Only
        # then the slower file is read instead.
        mark = _status_bytes(status_fd, b"VmHWM:")
        lifetime = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
        if mark is not None and lifetime > mark + _RSS_NOISE_BYTES:
            self._status_fd = status_fd
        else:
            os.close(status_fd)


_mark = _HighWaterMark()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark.after_fork)


class RunUsage:
    """The measurement of one run: :meth:`begin` it, then :meth:`end` it once."""

    __slots__ = ("_children_s", "_cpu_s", "_threaded")

    def __init__(self, cpu_s: float, children_s: float, threaded: bool) -> None:
        self._cpu_s = cpu_s
        self._children_s = children_s
        self._threaded = threaded

    @classmethod
    def begin(cls, threaded: bool = False) -> RunUsage:
        """Begin to measure, at the start of a run, in its own thread.

        Not *threaded* (the process runs one task at a time: prefork, solo): CPU
        of all threads of the process, and of subprocesses that the run waited
        for. *threaded* (other runs share the process: threads, gevent, or a task
        called within a task): CPU of this thread alone, which under gevent
        includes what other greenlets did meanwhile, and the peak memory is that
        of the process so far, since runs cannot be told apart.
        """
        if threaded:
            return cls(time.thread_time(), 0.0, True)
        _mark.reset()
        return cls(time.process_time(), _children_s(), False)

    def end(self) -> Usage:
        """Return what was used since :meth:`begin`; call it in the same thread."""
        if self._threaded:
            cpu_s = time.thread_time() - self._cpu_s
        else:
            cpu_s = time.process_time() - self._cpu_s + _children_s() - self._children_s
        return Usage(max(0.0, cpu_s), _mark.read_bytes())


def _children_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _status_bytes(fd: int, field: bytes) -> int | None:
    """Return a field of ``/proc/self/status`` (``VmHWM:   12345 kB``) in bytes."""
    try:
        text = os.pread(fd, 4096, 0)
        start = text.index(field) + len(field)
        return int(text[start : text.index(b"kB", start)]) * 1024
    except (OSError, ValueError):
        return None
