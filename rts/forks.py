"""Safety with forks: what a child needs at once, and moments at which no fork may happen; and
with other threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakMethod

_T = TypeVar("_T")

#: Id of this process; updated in a forked child. (``os.getpid`` costs as much as a function
#: call each time.)
pid = os.getpid()

#: Seconds for which a fork waits at a :class:`ForkGate`, at most: whoever is inside for longer
#: is stuck, or waits for a server.
MAX_WAIT_S = 1.0

_resets: set[WeakMethod[Callable[[], None]]] = set()


def in_child(reset: Callable[[], None]) -> None:
    """Call *reset*, a method, in each forked child, as long as its object lives."""
    # Dead ones are removed here, not by callbacks of theirs, which fail when Python exits.
    _resets.difference_update([known for known in list(_resets) if known() is None])
    _resets.add(WeakMethod(reset))


def copied(items: Iterable[_T]) -> list[_T]:
    """Return *items*, a set that other threads may change meanwhile, as a list."""
    while True:
        try:
            return list(items)
        except RuntimeError:  # it changed during the iteration
            pass


def close_inherited(fd: int) -> None:
    """Close a descriptor in a forked child; it remains open in the parent."""
    try:
        os.close(fd)
    except OSError:
        pass  # closed already, with all inherited descriptors


def _after_fork() -> None:
    global pid
    pid = os.getpid()
    for reference in list(_resets):
        reset = reference()
        if reset is not None:
            reset()


os.register_at_fork(after_in_child=_after_fork)


class ForkGate:
    """Keeps forks from happening in the middle of what a thread does.

    A child that is forked while another thread is inside NVML, a database's library, an import
    or a logger inherits their locks as held, for ever: a task that then needs one hangs. So
    where a thread of rts, in a worker's main process, calls anything but rts itself, it does so
    behind a gate, and every ``os.fork`` of the process waits until nobody is inside. For the
    load sampler that is a few milliseconds, four times a second.

    A gate lets one thread in at a time; those of different gates do not wait for each other.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(
            before=self.before_fork,
            after_in_parent=self.after_in_parent,
            after_in_child=self._reset,
        )

    def _reset(self) -> None:
        self.lock = threading.Lock()
        #: The thread that is inside.
        self._inside: int | None = None
        #: Whether this thread holds the lock for a fork.
        self.forking = threading.local()
        self._max_wait_s = MAX_WAIT_S

    @contextmanager
    def no_fork(self) -> Iterator[None]:
        """Hold back forks of this process while the body runs."""
        with self.lock:
            self._inside = threading.get_ident()
            try:
                yield
            finally:
                self._inside = None

    def before_fork(self) -> None:
        """Wait until no other thread is inside."""
        if self._inside == threading.get_ident():
            return  # it forks itself, such as a receiver that uses multiprocessing
        self.forking.holds = self.lock.acquire(timeout=self._max_wait_s)
        # After a fork has waited in vain, the next ones do not, until one finds nobody inside.
        self._max_wait_s = MAX_WAIT_S if self.forking.holds else 0.0

    def after_in_parent(self) -> None:
        """Let threads in again."""
        if getattr(self.forking, "holds", False):
            self.forking.holds = False
            self.lock.release()
