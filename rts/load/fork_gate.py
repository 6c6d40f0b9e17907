"""Keeps forks from happening in the middle of a reading.

A child that is forked while another thread is inside NVML, an import or a
logger inherits their locks as held, for ever: a task that then uses NVML on
its own hangs. So the sampler reads inside the gate, and every ``os.fork`` of the
process waits for it to be free: a few milliseconds, four times a second.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: A reading that takes longer is stuck in a driver, and must not block forks.
MAX_WAIT_S = 1.0


class _Gate:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: Whether this thread holds the lock for a fork.
        self.forking = threading.local()

    def before_fork(self) -> None:
        self.forking.holds = self.lock.acquire(timeout=MAX_WAIT_S)

    def after_in_parent(self) -> None:
        if getattr(self.forking, "holds", False):
            self.forking.holds = False
            self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.Lock()
        self.forking = threading.local()


_gate = _Gate()
os.register_at_fork(
    before=_gate.before_fork,
    after_in_parent=_gate.after_in_parent,
    after_in_child=_gate.after_in_child,
)


@contextmanager
def no_fork() -> Iterator[None]:
    """Hold back forks of this process while the body runs."""
    with _gate.lock:
        yield
