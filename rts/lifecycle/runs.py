"""Running: one :class:`Execution` per run, from ``task_prerun`` to ``task_postrun``.

Runs in the process that executes tasks: a pool child, or the worker itself with
the threads, solo and gevent pools.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii as quoted
from operator import itemgetter
from typing import Any, Protocol
from weakref import ref as weakref

from rts import forks
from rts.clock import FleetClock
from rts.load.sample import MAX_AGE_S, LoadSample
from rts.load.usage import ProcessMeter, ThreadMeter
from rts.ports import NoteBook, RunSink
from rts.records import BEGINNING, REPLACED, Execution, Plan, new_execution
from rts.signals import deadline_missed, run_ended

#: Celery's state of a task that raised ``Reject``.
REJECTED = "REJECTED"

#: Seconds for which a process uses what it has seen of the load and of its memory,
#: while its runs are short.
LOOK_EVERY_S = 0.05
#: A run of less is told the peak of memory that was seen last, and no CPU time of
#: subprocesses: to start one takes longer.
SHORT_S = 0.0005


_DESCRIBED = itemgetter("id", "task", "parent_id", "root_id", "retries", "delivery_info")


class LoadReader(Protocol):
    """Where a run reads the load of its worker: shared memory, no system call."""

    def read(self, now: float | None = None) -> LoadSample:
        """Return the latest sample, at most 0.5 s old; *now* by ``time.monotonic``."""


class Run:
    """A run that goes on."""

    __slots__ = (
        *("begun", "broken_off", "load", "note", "plan", "replaced"),
        *("slot", "started_at", "started_monotonic"),
    )

    plan: Plan
    #: Epoch seconds, and by ``time.monotonic``.
    started_at: float
    started_monotonic: float
    load: LoadSample
    #: The beginning of its record, as JSON, and where it is noted.
    note: bytes
    slot: int | None
    #: What the meter needs at the end.
    begun: float
    #: Set where the task has published another one in its place.
    replaced: bool
    #: Set where the task has come to no state: somebody else knows what became of it.
    broken_off: bool

    @property
    def load_at_start(self) -> Mapping[str, Any]:
        """The load of the worker when the run started, as in the record."""
        return self.load.as_dict(self.started_monotonic)


class _Going(threading.local):
    """The run that this thread, or greenlet, began last, and a weak reference to the
    request that it is of.

    Not an attribute of the request: apps look at those, and write them down as JSON.
    """

    on: tuple[Callable[[], Any], Run | None] = (lambda: None, None)


_going = _Going()


def go_on(request: Any, run: Run) -> None:
    """Note that the run of *request* goes on from here, in this thread."""
    _going.on = weakref(request), run


def run_of(request: Any) -> Run | None:
    """Return the run that *request* belongs to; ``None`` where rts has started none, or
    another thread is at it.
    """
    known, run = _going.on
    return run if known() is request else None


def run_broken_off(task_id: str) -> Run | None:
    """Return the run of this task that was broken off in this thread just now, once."""
    known, run = _going.on
    request = known()
    if run is None or request is None or request.id != task_id:
        return None
    if not getattr(run, "broken_off", False):
        return None
    run.broken_off = False
    return run


class Meter(Protocol):
    """What measures the use of CPU and memory by runs."""

    #: CPU seconds that count for a run, from any beginning.
    cpu_time: Callable[[], float]

    def look(self, now: float) -> int:
        """Prepare for the runs to come; returns the peak of memory so far, bytes."""

    def end(self, begun: float) -> tuple[float, int]:
        """Return CPU seconds since *begun*, and the peak of memory in bytes."""


class Runs:
    """Starts and finishes runs.

    This is on the path of every task, whose processor has forgotten all about it since
    the last one: each function called, and each object touched, costs more than what is
    computed. So what can serve many runs is looked at now and then, and the record is
    written in one go, as text.
    """

    def __init__(
        self,
        clock: FleetClock,
        load: LoadReader,
        notes: NoteBook,
        sink: RunSink,
        *,
        worker: str,
        instance: str,
        threaded: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._load = load
        self._notes = notes
        self._sink = sink
        self._worker = worker
        self._instance = instance
        self._who = f"{quoted(worker)},{quoted(instance)}"
        self._meter: Meter = ThreadMeter() if threaded else ProcessMeter()
        self._cpu_time = self._meter.cpu_time
        self._monotonic = monotonic
        #: By ``time.monotonic``: when to look again, and what was seen then.
        self._look_at = -1.0
        self._seen: LoadSample
        self._peak_bytes = 0

    def start(self, plan: Plan, request: Mapping[str, Any]) -> Run:
        """Note that a run begins; *request* are the attributes of ``task.request``."""
        now = self._monotonic()
        if now >= self._look_at:
            self._look(now)
        run = Run()
        run.plan = plan
        run.load = load = self._seen
        run.started_at = started_at = self._clock.now()
        try:
            # As Execution.to_json: its fields up to load_at_start, in their order.
            task_type, type_source, tau, k, arrival, deadline, arrival_source = plan
            task_id, name, parent, root, retries, delivery_info = _DESCRIBED(request)
            queue = delivery_info["routing_key"]
            pid = forks.pid
            own = quoted(task_id)
            note = (
                f'[{own[:-1]}:{retries:d}:{pid}:{started_at * 1e6:.0f}",{own},'
                f'{quoted(name)},"{task_type}","{type_source}",'
                f'{tau!r},{k!r},{arrival!r},{deadline!r},"{arrival_source}",'
                f"{'null' if queue is None else quoted(queue)},{retries:d},"
                f"{'null' if parent is None else quoted(parent)},"
                f"{'null' if root is None else own if root == task_id else quoted(root)},"
                f"{self._who},{pid},{started_at:.6f},"
                f'{load.json}"age_s":{now - load.sampled_at:.4f}}}]'
            ).encode()
        except (TypeError, ValueError, LookupError, AttributeError):
            # A serializer of the app's own, or a producer other than Celery.
            note = self._odd_note(plan, request, started_at, load.as_dict(now))
        run.note = note
        run.slot = self._notes.put(note)
        run.begun = self._cpu_time()
        # Last, so that the service time holds nothing of ours.
        run.started_monotonic = self._monotonic()
        return run

    def finish(self, run: Run, state: str) -> None:
        """Hand on the finished run. *state* is Celery's."""
        runtime_s = self._monotonic() - run.started_monotonic
        if runtime_s < SHORT_S:
            cpu_s, peak_bytes = self._cpu_time() - run.begun, self._peak_bytes
        else:
            cpu_s, peak_bytes = self._meter.end(run.begun)
            self._look_at = -1.0
        if state == "IGNORED" and getattr(run, "replaced", False):
            state = REPLACED
        cause = '"rejected"' if state == REJECTED else "null"
        end = (
            f",{run.started_at + runtime_s:.6f},{runtime_s:.9f},{cpu_s:.6f},{peak_bytes},"
            f"{quoted(state)},{cause},true]\n"
        )
        # In the place of the note's closing bracket.
        line = run.note[:-1] + end.encode()
        self._sink.line(line)
        # Only now: a process that dies in between has its end written by another.
        if run.slot is not None:
            self._notes.clear(run.slot)
        if deadline_missed.receivers:
            run_ended(Execution.from_json(line))

    def _look(self, now: float) -> None:
        """Look at the load and the memory."""
        self._seen = self._load.read(now)
        until = self._seen.sampled_at + MAX_AGE_S
        self._look_at = min(until, now + LOOK_EVERY_S)
        self._peak_bytes = self._meter.look(now)

    def _odd_note(
        self,
        plan: Plan,
        request: Mapping[str, Any],
        started_at: float,
        load: Mapping[str, Any],
    ) -> bytes:
        execution = new_execution(
            plan,
            request,
            worker=self._worker,
            instance=self._instance,
            pid=forks.pid,
            started_at=started_at,
            load_at_start=load,
        )
        return json.dumps(execution[:BEGINNING], default=repr).encode()
