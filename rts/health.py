"""Problems are logged once with their cause and cure, counted, and survived.

Counters are plain numbers of this process; :func:`take_counts` hands them to
whatever next talks to Redis, where ``rts status`` sums those of all processes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("rts")

#: Warnings of one kind that are logged at most; further ones are only counted. A stranger who
#: sends a new bad value each time must not fill the disk, nor silence warnings of other kinds.
MAX_DISTINCT_WARNINGS = 1000

#: Characters of a stranger's value that a log line may hold.
MAX_SHOWN = 80

#: Seconds between two logged outages of a server, at first and at most.
MIN_LOG_GAP_S, MAX_LOG_GAP_S = 10.0, 3600.0

#: Re-entrant: a Unix signal handler of the app may publish while its thread is counting.
_lock = threading.RLock()
#: The keys of the warnings that were logged, by their kind.
_seen: defaultdict[str, set[str]] = defaultdict(set)
_counts: Counter[str] = Counter()


def _after_fork() -> None:
    """Start at zero in a child: the parent delivers its own counts."""
    global _lock
    _lock = threading.RLock()
    _counts.clear()


os.register_at_fork(after_in_child=_after_fork)


def count(name: str, n: int = 1) -> None:
    """Add *n* to the counter *name*."""
    with _lock:
        _counts[name] += n


def warn_once(key: str, text: str, *args: object, exc_info: bool = False) -> None:
    """Log a warning the first time that *key* is seen in this process. What precedes the first
    colon in *key* is its kind.
    """
    with _lock:
        seen = _seen[key.partition(":")[0]]
        if key in seen or len(seen) >= MAX_DISTINCT_WARNINGS:
            return
        seen.add(key)
    logger.warning(text, *args, exc_info=exc_info)


class Outages:
    """Decides which outages of a server are logged: one line each, and one when it ends. While
    the server goes on failing and coming back, ever fewer are. Connections to one server may
    share it: what all of them meet is logged once.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        #: What was logged of the current outage.
        self._told: set[str] = set()
        #: For how many seconds after a logged outage no other is logged, and until when.
        self._gap_s, self._quiet_until = 0.0, -1e9

    def tell(self, what: str = "") -> bool:
        """Return whether to log that the server does not answer, or refuses *what*."""
        with _lock:
            now = self._now()
            if what in self._told or now < self._quiet_until:
                return False
            self._told.add(what)
            calm = now - self._quiet_until > self._gap_s
            self._gap_s = MIN_LOG_GAP_S if calm else min(MAX_LOG_GAP_S, 2 * self._gap_s)
            self._quiet_until = now + self._gap_s
            return True

    def tell_end(self) -> bool:
        """Return whether to log that it answers again."""
        told, self._told = self._told, set()
        return bool(told)


def hook_failed(hook: str, exc: BaseException) -> None:
    """Count and log that a hook failed. The host application does not notice."""
    count("hook_errors")
    warn_once(
        f"hook:{hook}:{type(exc).__name__}",
        "rts %s hook failed; the task goes on without it. This is a bug in rts: please "
        "report it with the traceback",
        hook,
        exc_info=True,
    )


@contextmanager
def guarded(hook: str) -> Iterator[None]:
    """Count and log any exception of the body, a hook, and go on after it. Also a decorator."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001  whatever it is, the host app goes on
        hook_failed(hook, exc)


def shown(value: object) -> str:
    """Return *value* as short printable text for a log line.

    Strings are truncated before they are quoted, so that a huge value costs nothing;
    of containers only the type is shown.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "…")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**20 else "a huge integer"
    return f"a {type(value).__name__}"


def one_line(text: str, most: int) -> str:
    """Return the first *most* characters of *text*, with a space for each line break or
    unprintable character.

    >>> one_line("a" + chr(10) + "b" + chr(0x202e) + "c", 4)
    'a b '
    """
    return "".join(c if c.isprintable() else " " for c in text[:most])


def take_counts() -> dict[str, int]:
    """Return the counts since the last call, and reset them to zero."""
    with _lock:
        taken = dict(_counts)
        _counts.clear()
    return taken


def pending() -> bool:
    """Return whether there are counts that :func:`take_counts` has not taken."""
    return bool(_counts)


def give_back(counts: dict[str, int]) -> None:
    """Add back counts that could not be delivered."""
    with _lock:
        _counts.update(counts)
