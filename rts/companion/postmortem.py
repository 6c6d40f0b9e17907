"""What a killed worker leaves behind: runs without an end, tasks without a run.

The janitor of another companion knows of a run that died with its worker only if the run had
lasted a while. The worker's own companion, which outlives it for a moment, knows all of them.

The ends of runs that died with the worker are written to disk at once, whichever servers are
unavailable. Runs that go on (only the main process was killed) are published in Redis for the
other companions; if that fails, their ends are written to disk as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

from rts import health
from rts.clock import FleetClock
from rts.companion.attempts import attempt
from rts.companion.instructions import Instructions
from rts.headers import read_plan
from rts.ports import RunSink
from rts.records import LOST, Execution, new_execution
from rts.unfinished.shared_memory import SharedMemory

#: Seconds in which processes that were killed with the worker exit, and in which the runs that
#: go on are published.
EXIT_S, PUBLISH_S = 1.0, 2.0
#: Seconds between two checks, or attempts, meanwhile.
POLL_S = 0.05


class PostMortem:
    """Settles the last runs of a worker that has ended, by its notes. Works in two threads, as
    :meth:`publish` may hang in a server; :meth:`settle` asks none.

    All ends that it writes are provisional: the run's own end, if there is one, takes
    precedence. *publish_runs* publishes the runs that have notes.
    """

    def __init__(
        self,
        memory: SharedMemory,
        sink: RunSink,
        clock: FleetClock,
        instructions: Instructions,
        publish_runs: Callable[[], object],
    ) -> None:
        self._board = memory.notes
        self._acknowledged = memory.acknowledged
        self._sink = sink
        self._clock = clock
        self._instructions = instructions
        self._publish_runs = publish_runs
        #: Whether it is known which runs go on, and whether these are published.
        self._settled = threading.Event()
        self._published = threading.Event()

    def settle(self) -> None:
        """Write the ends; returns once every run has ended, was published or given up."""
        give_up_at = time.monotonic() + EXIT_S
        while True:
            attempt("settling the last runs", self.write_ends)
            if not self.has_runs() or time.monotonic() >= give_up_at:
                break
            time.sleep(POLL_S)
        self._settled.set()
        if self.has_runs() and not self._published.wait(PUBLISH_S):
            attempt("settling the last runs", self.give_up)

    def publish(self) -> None:
        """Publish the runs that go on, once it is known which do."""
        give_up_at = time.monotonic() + EXIT_S + PUBLISH_S
        self._settled.wait(EXIT_S)
        # By time, not by count: attempts fail at once while the link's breaker is open.
        while not attempt("publishing the last runs", self._publish_runs):
            if time.monotonic() >= give_up_at:
                return
            time.sleep(POLL_S)
        self._published.set()

    def write_ends(self) -> int:
        """Write the ends; return how many. Another call writes those that are new."""
        now, written = self._clock.now(), 0
        started = set()
        for slot, note in self._board.notes():
            started.add((note.task_id, note.retries))
            dead = note.pid is not None and has_ended(note.pid)
            if dead and self._board.release(slot, note):
                self._end_as_lost(note, now)
                written += 1
        # Acknowledged, but not started by any child; or its run has ended, which then counts.
        for task in self._acknowledged.tasks():
            plan = read_plan(task, self._instructions.settings.task_types)
            if plan is None:
                continue
            never_run = new_execution(
                plan,
                task,
                worker=self._instructions.worker,
                instance=self._instructions.instance,
            )
            if (never_run.task_id, never_run.retries) not in started:
                self._sink.ended(never_run._replace(completed_at=now, state=LOST, cause="lost"))
                written += 1
        self._acknowledged.clear()
        return written

    def has_runs(self) -> bool:
        """Return whether any runs go on."""
        return any(True for _ in self._board.notes())

    def give_up(self) -> None:
        """End the runs that go on as well: they could not be published. Their notes stay."""
        now = self._clock.now()
        for _, note in self._board.notes():
            self._end_as_lost(note, now)

    def _end_as_lost(self, note: Execution, now: float) -> None:
        health.count("runs_lost")  # first: the counts go along with the record
        self._sink.ended(note._replace(completed_at=now, state=LOST, cause="lost"))


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, even if it is a zombie: whoever inherits the
    children of a killed parent may reap them seconds later, or never.
    """
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError, ValueError):  # not visible: it may be alive
        return False
