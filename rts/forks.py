"""What a forked child needs at once: its process id, and a reset of what it has inherited.

The id is kept here since ``os.getpid`` costs as much as a function call each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from weakref import WeakMethod

#: Id of this process; updated in a forked child.
pid = os.getpid()

_resets: set[WeakMethod[Callable[[], None]]] = set()


def in_child(reset: Callable[[], None]) -> None:
    """Call *reset*, a method, in each forked child, as long as its object lives."""
    # Dead ones are removed here, not by callbacks of theirs, which fail when Python exits.
    _resets.difference_update([known for known in list(_resets) if known() is None])
    _resets.add(WeakMethod(reset))


def _after_fork() -> None:
    global pid
    pid = os.getpid()
    for reference in list(_resets):
        reset = reference()
        if reset is not None:
            reset()


os.register_at_fork(after_in_child=_after_fork)
