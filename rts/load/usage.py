"""What one run of a task used: CPU seconds and peak memory.

The peak is the kernel's high-water mark of resident memory. It is reset at the start of a
run, unless that was done a moment ago and it has not risen since. (On Linux by "5" to
``/proc/self/clear_refs``, which only copies a number, whatever the size of the process.) As a
side effect, ``ru_maxrss`` and ``VmHWM`` of a pool process show the peak since its last task
started, not since its own start. Celery checks ``worker_max_memory_per_child`` right after
each task and is not affected.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage, struct_rusage

from rts import forks

#: ``ru_maxrss`` is in KiB on Linux.
_RSS_UNIT_BYTES = 1024

#: The kernel counts resident memory per core and adds up now and then; a mark
#: within this much of the current size counts as reset.
_RSS_NOISE_BYTES = 4 << 20

#: Seconds after which the mark is reset even if it has not risen. Until then a run may be
#: charged for memory that an earlier one has released.
_RESET_EVERY_S = 0.1
#: A smaller rise is not worth a system call.
_RESET_ABOVE_BYTES = 1 << 20

#: What a run used: CPU seconds, user and system; and peak resident memory in bytes (of
#: the process so far, where runs cannot be told apart), without subprocesses.
Usage = tuple[float, int]


class _HighWaterMark:
    """The peak resident memory of this process, which can be reset."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._status_fd: int | None = None
        self._ready = False

    def reset(self) -> None:
        """Reset the mark to the current size; does nothing where that is not allowed."""
        if not self._ready:
            self._open()
        if self._fd is not None:
            try:
                os.write(self._fd, b"5")
            except OSError:
                fd, self._fd = self._fd, None
                with suppress(OSError):  # the app may have closed it
                    os.close(fd)

    def read_bytes(self, own: struct_rusage | None = None) -> int:
        """Return the mark; *own*: the current ``getrusage`` of this process, if at hand."""
        if self._status_fd is not None:
            mark = _peak_of(self._status_fd)
            if mark is not None:
                return mark
        return (own or getrusage(RUSAGE_SELF)).ru_maxrss * _RSS_UNIT_BYTES

    def after_fork(self) -> None:
        """Close the files: in a child they still refer to the parent's memory."""
        for fd in (self._fd, self._status_fd):
            if fd is not None:
                forks.close_inherited(fd)
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
        # ru_maxrss also covers what this process was before its last exec (a large
        # parent, for instance), and that part cannot be reset. Only then is the slower
        # file read instead.
        mark = _peak_of(status_fd)
        lifetime = getrusage(RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
        if mark is not None and lifetime > mark + _RSS_NOISE_BYTES:
            self._status_fd = status_fd
        else:
            os.close(status_fd)


_mark = _HighWaterMark()
os.register_at_fork(after_in_child=_mark.after_fork)


class ProcessMeter:
    """Measures runs where a process has one at a time (prefork, solo): CPU of all its
    threads, and of the subprocesses that a run waited for.

    Used by the process that runs tasks, and by those forked from it.
    """

    #: CPU seconds of this process.
    cpu_time = staticmethod(time.process_time)

    def __init__(self) -> None:
        self._children_s = 0.0
        #: When, by ``time.monotonic``, to reset the mark next; and its value after the last.
        self._reset_at = -1.0
        self._low_bytes = 0

    def refresh(self, now: float) -> int:
        """Prepare for the next runs, which start with a :meth:`cpu_time`; return the peak
        memory so far in bytes.

        *now*: the current instant by ``time.monotonic``.
        """
        children = getrusage(RUSAGE_CHILDREN)
        self._children_s = children.ru_utime + children.ru_stime
        if now >= self._reset_at:
            _mark.reset()
            self._reset_at = now + _RESET_EVERY_S
            self._low_bytes = _mark.read_bytes()
        return self._low_bytes

    def measure(self, cpu_start_s: float) -> Usage:
        """Return CPU seconds and peak memory of a run that started at *cpu_start_s*."""
        own, children = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
        peak_bytes = _mark.read_bytes(own)
        if peak_bytes > self._low_bytes + _RESET_ABOVE_BYTES:
            self._reset_at = -1.0
        cpu_s = own.ru_utime + own.ru_stime - cpu_start_s
        cpu_s += children.ru_utime + children.ru_stime - self._children_s
        return cpu_s if cpu_s > 0 else 0.0, peak_bytes


class ThreadMeter:
    """Measures runs that share a process (threads, gevent): CPU of the run's thread alone,
    which under gevent includes what other greenlets did meanwhile, and peak memory of the
    process so far, since runs cannot be told apart.
    """

    #: CPU seconds of this thread.
    cpu_time = staticmethod(time.thread_time)

    def refresh(self, now: float) -> int:
        """See :class:`ProcessMeter`."""
        return _mark.read_bytes()

    def measure(self, cpu_start_s: float) -> Usage:
        """See :class:`ProcessMeter`; call it in the run's own thread."""
        return max(0.0, time.thread_time() - cpu_start_s), _mark.read_bytes()


_PEAK = b"VmHWM:"


def _peak_of(status_fd: int) -> int | None:
    """Return the peak in ``/proc/self/status`` (``VmHWM:   12345 kB``), bytes, or ``None``."""
    try:
        text = os.pread(status_fd, 4096, 0)
        start = text.index(_PEAK) + len(_PEAK)
        return int(text[start : text.index(b"kB", start)]) * 1024
    except (OSError, ValueError):
        return None
