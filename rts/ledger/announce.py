"""Tells Redis which tasks were published, so that one that never ends is known.

Publishing puts a note into this process's memory and goes on. A thread delivers what
has gathered twice a second; where threads do not run (uWSGI without them), the next
look at the taus takes it along, and what is left goes when the process ends.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from weakref import WeakSet

from redis.exceptions import ResponseError

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.announcement import ARGUMENTS, packed
from rts.link.counters import TakenCounts
from rts.link.link import Link
from rts.link.scripts import OPEN, bulks
from rts.records import Announcement, OpenTask
from rts.settings import Settings

#: Seconds in which notes gather before they are delivered together.
EVERY_S = 0.5
#: Notes in one call: Redis serves nobody else meanwhile, about 5 µs for each.
CHUNK = 250
#: Notes that wait at most while Redis is away; what comes then is not noted.
MOST = 20_000
#: Seconds without a note after which the thread ends; the next note starts another.
#: An app that is dropped thus leaves nothing behind.
IDLE_S = 60.0
#: Seconds after which the thread evidently does not run.
STRANDED_S = 2.0

_all: WeakSet[Announcer] = WeakSet()


class Announcer:
    """Holds and delivers the notes of one app in one process.

    Safe with threads and greenlets. In a forked child it begins empty: what the
    parent has noted, the parent delivers.
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
        names = (keys.open, keys.open_info, keys.open_counts, keys.closed, keys.judged)
        others = (keys.counters, keys.ahead)
        self._names = bulks(*(name.encode() for name in (*names, *others)))
        self._counters = keys.counters
        self._most_open = str(settings.open_max).encode()
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._notes: deque[Announcement] = deque()
        #: Whether the thread knows that there is something to deliver.
        self._awake = False
        #: When the first note came that was not delivered.
        self._since = 0.0
        self._thread: threading.Thread | None = None
        # Re-entrant: a signal handler of the app's may publish in the middle of it.
        self._lock = threading.RLock()
        self._delivering = threading.RLock()
        self._work = threading.Event()
        self._stopped = threading.Event()

    def note(self, task: OpenTask, *, again: bool = False) -> None:
        """Note a task that was published; *again*: in the place of another one of its id,
        which has not ended. Waits for nothing.
        """
        if len(self._notes) >= MOST:
            health.count("open_notes_dropped")
            return
        self._notes.append((task, again))
        if not self._awake:
            self._wake()

    def flush(self) -> None:
        """Deliver now what waits, with what was counted, and wait for what is on its way.
        An absent server, or one that refuses, is no error: the next attempt is the thread's.
        """
        with self._delivering:
            try:
                while self._notes:
                    batch, counted = self.take(CHUNK), TakenCounts(self._counters)
                    try:
                        # What is refused here (a full memory, a replica) must not open
                        # the breaker: the taus can still be read.
                        call = self.pack(batch)
                        answer, *others = self._link.call_each(call, *counted.commands)
                    except BaseException:
                        self.give_back(batch)
                        counted.give_back()
                        raise
                    counted.give_back_refused(others)
                    if isinstance(answer, ResponseError):
                        self.give_back(batch)
                        _refused(answer)
                        return
            except StoreUnavailable:
                pass  # it was logged

    def take_stranded(self) -> list[Announcement]:
        """Return notes that wait for longer than the thread would let them, and forget
        them: the caller delivers them, or gives them back.
        """
        if not self._notes or self._now() - self._since < STRANDED_S:
            return []
        return self.take(CHUNK)

    def take(self, most: int) -> list[Announcement]:
        """Return up to *most* notes, the oldest first, and forget them."""
        taken: list[Announcement] = []
        try:
            while len(taken) < most:
                taken.append(self._notes.popleft())
        except IndexError:
            pass
        return taken

    def give_back(self, notes: Sequence[Announcement]) -> None:
        """Undo :meth:`take`: nothing of it has reached Redis."""
        self._notes.extendleft(reversed(notes))

    def pack(self, notes: Sequence[Announcement]) -> bytes:
        """Return the call that delivers *notes*."""
        each = "".join([packed(*note) for note in notes])
        # Each character of it is one byte.
        arguments = bulks(self._most_open) + each.encode("latin-1")
        return OPEN.head(1 + ARGUMENTS * len(notes), 7) + self._names + arguments

    def stop(self) -> None:
        """Deliver what waits and end the thread, if there is one."""
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
                self._thread = threading.Thread(
                    target=self._deliver, args=(self._work, self._stopped), daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # there are too many, or the interpreter ends
                    self._thread = None

    def _deliver(self, work: threading.Event, stopped: threading.Event) -> None:
        while not stopped.is_set():
            if not work.wait(IDLE_S) and self._retires(work):
                return
            work.clear()
            stopped.wait(self._every_s)
            self._awake = False  # first: what comes from here on wakes this again
            try:
                self.flush()
            except Exception as exc:  # noqa: BLE001  the next ones may be better
                health.hook_failed("announce", exc)
                self._notes.clear()
            if self._notes:
                self._since = self._now()  # they wait for Redis, not for a thread
                if not self._awake:
                    self._awake = True
                    work.set()

    def _retires(self, work: threading.Event) -> bool:
        """Return whether the thread may end, which then is no longer this one's."""
        with self._lock:
            if work.is_set():  # a note has come since
                return False
            self._thread = None
            return True

    def after_fork(self) -> None:
        """Begin anew, in a child."""
        self._begin()


def _refused(answer: ResponseError) -> None:
    health.count("open_notes_refused")
    health.warn_once(
        "open-notes",
        "rts: Redis does not take the notes of published tasks: %s. They wait; what is past "
        "%d is not noted. Give it memory, or name its primary in rts_redis_url",
        str(answer)[:200],
        MOST,
    )


def _after_fork() -> None:
    for announcer in list(_all):
        announcer.after_fork()


def _at_exit() -> None:
    for announcer in list(_all):
        try:
            announcer.flush()
        except Exception as exc:  # noqa: BLE001  the process must end
            health.hook_failed("announce", exc)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
