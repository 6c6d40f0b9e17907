"""Trouble is logged once with its cause and cure, counted, and survived.

Counters are plain numbers of this process; :func:`take_counts` hands them to
whoever next talks to Redis, where ``rts status`` adds up all processes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter

logger = logging.getLogger("rts")

#: Distinct texts that are logged before rts only counts. A stranger who sends a
#: new bad value each time must not fill the disk.
MAX_DISTINCT_WARNINGS = 1000

#: Characters of a stranger's value that a log line may hold.
MAX_SHOWN = 80

#: Re-entrant: a signal handler of the app's may publish while its own thread counts.
_lock = threading.RLock()
_seen: set[str] = set()
_counts: Counter[str] = Counter()


def _after_fork() -> None:
    """Start at zero in a child: what its parent counted, its parent delivers."""
    global _lock
    _lock = threading.RLock()
    _counts.clear()


os.register_at_fork(after_in_child=_after_fork)


def count(name: str, n: int = 1) -> None:
    """Add *n* to the counter *name*."""
    with _lock:
        _counts[name] += n


def warn_once(key: str, text: str, *args: object, exc_info: bool = False) -> None:
    """Log a warning the first time that *key* is seen in this process."""
    with _lock:
        if key in _seen or len(_seen) >= MAX_DISTINCT_WARNINGS:
            return
        _seen.add(key)
    logger.warning(text, *args, exc_info=exc_info)


def hook_failed(hook: str, exc: BaseException) -> None:
    """Note that a hook failed. The host application does not notice."""
    count("hook_errors")
    warn_once(
        f"hook:{hook}:{type(exc).__name__}",
        "rts %s hook failed; the task goes on without it. This is a bug in rts: please "
        "report it with the traceback",
        hook,
        exc_info=True,
    )


def shown(value: object) -> str:
    """Return *value* as a short printable text for a log line.

    Strings are cut before they are quoted, so that a huge value costs nothing;
    containers are named by their type only.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "…")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**20 else "a huge integer"
    return f"a {type(value).__name__}"


def take_counts() -> dict[str, int]:
    """Return what was counted since the last call, and start again at zero."""
    with _lock:
        taken = dict(_counts)
        _counts.clear()
    return taken


def pending() -> bool:
    """Return whether anything was counted that :func:`take_counts` has not taken."""
    return bool(_counts)


def give_back(counts: dict[str, int]) -> None:
    """Put counts back that could not be delivered."""
    with _lock:
        _counts.update(counts)
