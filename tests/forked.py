"""What a forked child does, also in the middle of what another thread does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

#: Python 3.12 warns of it; web servers do it all the same.
forks_beside_threads = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)


def in_child(act: Callable[[], object]) -> tuple[int, int]:
    """Run *act* in a forked child; return its pid and, once it has ended, its exit code: 0, 1
    where *act* raised or returned False, or minus the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            status = 1 if act() is False else 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return child, os.waitstatus_to_exitcode(ended)


def holds_in_child(look: Callable[[], bool], *locks: Any) -> bool:
    """Return what *look* finds in a child that is forked while a thread holds *locks*;
    False where it does not come to an end.
    """
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)

    def act() -> bool:
        # The child's first thread gets the number of the holder, as if it had the locks.
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return look()

    _, code = in_child(act)
    over.set()
    holder.join(30)
    return code == 0
