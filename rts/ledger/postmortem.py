"""What a worker that was killed leaves behind: runs without an end, tasks without a run.

Whoever is killed with its worker is not seen by the janitor of another one, unless it
ran for a while: only this worker's own companion, which lives on for a moment, knows.
"""

from __future__ import annotations

import psutil

from rts import health
from rts.clock import FleetClock
from rts.headers import read_plan
from rts.ledger.instructions import Instructions
from rts.ledger.notes import NoteBoard
from rts.ports import RunSink
from rts.records import LOST, Execution, new_execution


class PostMortem:
    """Writes the ends that follow from a worker's notes, once it has ended.

    All of them are provisional: a run that has written its own end keeps it.
    """

    def __init__(
        self, board: NoteBoard, sink: RunSink, clock: FleetClock, instructions: Instructions
    ) -> None:
        self._board = board
        self._sink = sink
        self._clock = clock
        self._instructions = instructions

    def settle(self) -> int:
        """Write the ends; return how many. Again: those that are new."""
        now, written = self._clock.now(), 0
        begun = set()
        for slot, note in self._board.notes():
            begun.add((note.task_id, note.retries))
            dead = note.pid is not None and has_ended(note.pid)
            if dead and self._board.release(slot, note):
                self._lose(note, now)
                written += 1
        # Acknowledged, and no child has come to begin it; or its run has ended.
        for task in self._board.acknowledged.tasks():
            plan = read_plan(task, self._instructions.settings.task_types)
            if plan is None or (task["id"], task["retries"] or 0) in begun:
                continue
            never_run = new_execution(
                plan,
                task,
                worker=self._instructions.worker,
                instance=self._instructions.instance,
                pid=None,
            )
            ended = never_run._replace(completed_at=now, state=LOST, cause="lost", ran=False)
            self._sink.ended(ended)
            written += 1
        self._board.acknowledged.clear()
        return written

    def left(self) -> bool:
        """Return whether there are runs that go on."""
        return any(True for _ in self._board.notes())

    def give_up(self) -> None:
        """End those too: nobody else could be told of them. They keep their notes."""
        now = self._clock.now()
        for _, note in self._board.notes():
            self._lose(note, now)

    def _lose(self, note: Execution, now: float) -> None:
        health.count("runs_lost")  # first: what is counted goes along with the record
        self._sink.ended(note._replace(completed_at=now, state=LOST, cause="lost"))


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, also where nobody has asked after it yet: who
    takes the place of a parent that was killed may take seconds, or never ask.
    """
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError, ValueError):  # it cannot be seen: it may live
        return False
