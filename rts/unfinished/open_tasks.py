"""Tells Redis which tasks were published, so that those that never end are known.

A publish only adds a note to a buffer in this process. A thread delivers the notes twice
a second. Where threads do not run (uWSGI without them), the next refresh of the taus
takes them along; what is left is delivered when the process exits.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

from redis.exceptions import ResponseError

from rts import forks, health
from rts.errors import StoreUnavailable, short
from rts.link.delivery import Taken, deliver, take_counters
from rts.link.link import Link
from rts.link.scripts import REGISTER_OPEN, bulks
from rts.records import OpenTask
from rts.settings import Settings
from rts.unfinished.open_task_format import ARGUMENTS, pack_task

#: Seconds for which notes are gathered before they are delivered together.
EVERY_S = 0.5
#: Notes per call. It blocks Redis for about 5 µs per note.
CHUNK = 250
#: Notes that are buffered while Redis is unavailable, at most; further ones are dropped.
MAX_NOTES = 20_000
#: Seconds without a note after which the thread ends; the next note starts another one.
#: So a discarded app leaves nothing behind, and a test suite may make one for each test.
IDLE_S = 5.0
#: Seconds without a delivery after which the thread evidently does not run.
STRANDED_S = 2.0

_all: WeakSet[OpenTasks] = WeakSet()
#: Id of the process in which :func:`_finalize` was called last.
_finalized_in: int | None = None

#: A published task, and whether it replaces another one of its id.
Note = tuple[OpenTask, bool]


class OpenTasks:
    """The tasks that an app has published in this process: buffers and delivers their notes.

    Safe with threads and greenlets. A forked child starts with an empty buffer: the
    parent delivers its notes itself.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        now: Callable[[], float] = time.monotonic,
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._link = link
        self._now = now
        self._every_s = every_s
        keys = settings.keys
        names = [keys.open, keys.open_info, keys.open_counts, keys.closed, keys.judged]
        names.append(keys.counters)
        #: The keys of ``register_open.lua``: how many, and packed.
        self._keys = len(names), bulks(*map(str.encode, names))
        self._counters = keys.counters
        self._most_open = str(settings.open_max).encode()
        self.reset()
        _all.add(self)
        forks.in_child(self.reset)

    def reset(self) -> None:
        """Start with an empty buffer and no thread, also in a forked child."""
        self._notes: deque[Note] = deque()
        #: Whether the thread was woken for the notes that wait.
        self._awake = False
        #: Monotonic instant since when notes have waited for the thread.
        self._since = 0.0
        self._thread: threading.Thread | None = None
        # Re-entrant: a signal handler of the app may publish while its thread holds it.
        self._lock = threading.RLock()
        self._delivering = threading.RLock()
        self._work = threading.Event()
        self._stopped = threading.Event()

    def note(self, task: OpenTask, *, replaces: bool = False) -> None:
        """Note a task that was published, or received from a producer without rts; waits for
        no server. *replaces*: it replaces another one with its id, which has not ended.
        """
        if len(self._notes) >= MAX_NOTES:
            health.count("open_notes_dropped")
            return
        self._notes.append((task, replaces))
        if not self._awake:
            self._wake()

    def undelivered(self) -> list[OpenTask]:
        """Return the tasks whose notes wait."""
        return [task for task, _ in list(self._notes)]

    def flush(self) -> None:
        """Deliver the notes now, since this process may end, after any delivery that is under
        way. Do so even if Redis failed a moment ago: it may be back.
        """
        with self._delivering:
            if self._notes:
                self._link.try_now()
            self._deliver_notes()

    def _deliver_notes(self) -> None:
        """Deliver the notes, and the counters with them. An unavailable server is no error: the
        thread tries again.
        """
        with self._delivering:
            try:
                while chunk := self._take_chunk():
                    # A refusal does not open the breaker: the taus can still be read.
                    reply, *_ = deliver(self._link, [*chunk, *take_counters(self._counters)])
                    if isinstance(reply, ResponseError):
                        _warn_refused(reply)
                        return
            except StoreUnavailable:
                pass  # it was logged

    def take_stranded(self) -> list[Taken]:
        """Take the notes that the thread should have delivered long ago."""
        if not self._notes or self._now() - self._since < STRANDED_S:
            return []
        if self._thread is None:  # it could not be started: the next note tries again
            self._awake = False
        return self._take_chunk()

    def _take_chunk(self) -> list[Taken]:
        notes: list[Note] = []
        try:
            while len(notes) < CHUNK:
                notes.append(self._notes.popleft())
        except IndexError:
            pass  # there are no more
        put_back = partial(self._notes.extendleft, notes[::-1])
        return [Taken(self._pack(notes), put_back)] if notes else []

    def _pack(self, notes: Sequence[Note]) -> bytes:
        each = "".join([pack_task(*note) for note in notes])
        # Each character stands for one byte.
        arguments = bulks(self._most_open) + each.encode("latin-1")
        number, names = self._keys
        return REGISTER_OPEN.head(1 + ARGUMENTS * len(notes), number) + names + arguments

    def stop(self) -> None:
        """Deliver the notes and end the thread, if there is one."""
        self._stopped.set()
        self._work.set()
        self.flush()

    def _wake(self) -> None:
        with self._lock:
            if self._awake:
                return
            self._awake = True
            self._since = self._now()
            self._work.set()
            if self._thread is None or not self._thread.is_alive():
                _finalize()
                self._thread = threading.Thread(
                    target=self._run, args=(self._work, self._stopped), daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # too many threads, or the interpreter is shutting down
                    self._thread = None

    def _run(self, work: threading.Event, stopped: threading.Event) -> None:
        while not stopped.is_set():
            if not work.wait(IDLE_S) and self._retires(work):
                return
            work.clear()
            stopped.wait(self._every_s)
            self._awake = False  # first: a note from here on wakes this thread again
            try:
                self._deliver_notes()
            except Exception as exc:  # noqa: BLE001  the next notes may be fine
                health.hook_failed("open tasks", exc)
                self._notes.clear()
            if self._notes:
                self._since = self._now()  # they wait for Redis, not for a thread
                if not self._awake:
                    self._awake = True
                    work.set()

    def _retires(self, work: threading.Event) -> bool:
        """Return whether the thread may end; if so, the next note starts another one."""
        with self._lock:
            if work.is_set():  # there is a note by now
                return False
            self._thread = None
            return True


def _warn_refused(reply: ResponseError) -> None:
    health.count("open_notes_refused")
    health.warn_once(
        "open-notes",
        "rts: Redis refuses the notes of published tasks: %s. Up to %d notes wait, further "
        "ones are dropped. celery -A proj rts status says what to do",
        short(reply),
        MAX_NOTES,
    )


def _finalize() -> None:
    """Deliver at the end of a multiprocessing child as well: it exits without ``atexit``,
    and its parent's finalizers are cleared when it starts.
    """
    global _finalized_in
    if _finalized_in != forks.pid:
        _finalized_in = forks.pid
        for name in ("multiprocessing.util", "billiard.util"):
            module: Any = sys.modules.get(name)
            if hasattr(module, "Finalize"):
                module.Finalize(None, _at_exit, exitpriority=0)


def _at_exit() -> None:
    for open_tasks in list(_all):
        with health.guarded("open tasks"):
            open_tasks.flush()


atexit.register(_at_exit)
