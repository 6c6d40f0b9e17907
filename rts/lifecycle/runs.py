"""Running: one :class:`Execution` per run, from ``task_prerun`` to ``task_postrun``.

Used in the process that executes tasks: a pool child, or the worker itself with
the threads, solo and gevent pools.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from weakref import ref as weakref

from celery.states import REJECTED, RETRY

from rts import forks
from rts.clock import FleetClock
from rts.fields import MAX_TEXT, priority_of, queue_of
from rts.headers import PUBLISHED_HEADER, instant
from rts.lifecycle.outcomes import again_at
from rts.load.sample import MAX_AGE_S, LoadSample
from rts.load.usage import ProcessMeter, ThreadMeter
from rts.ports import RunSink
from rts.records import (
    IGNORED,
    REPLACED,
    START_FIELDS,
    Execution,
    Plan,
    encode,
    kind_as_json,
    new_execution,
)
from rts.signals import deadline_missed, run_ended

if TYPE_CHECKING:
    from rts.load.sampler import LoadSampler
    from rts.unfinished.notes import NoteBoard

#: Seconds for which a process reuses its reading of the load and of its memory, while
#: its runs are short.
REFRESH_EVERY_S = 0.1
#: A shorter run gets the peak of memory that was read last, and no CPU time of
#: subprocesses: to start one takes longer than that.
SHORT_S = 0.0005
#: Seconds by which an end in a record may differ from the one that was measured.
ROUNDED_S = 1e-6

_REQUEST_FIELDS = itemgetter("id", "task", "parent_id", "root_id", "retries", "delivery_info")


@dataclass(slots=True, init=False, eq=False)
class Run:
    """A run in progress."""

    #: What has started it, and will finish it.
    runs: Runs
    plan: Plan
    #: Epoch seconds, and by ``time.monotonic``.
    started_at: float
    started_monotonic: float
    load: LoadSample
    #: The first fields of its record, as a JSON list; and the slot that holds this note.
    note: bytes
    slot: int | None
    #: Of its message; 0 where it has none.
    priority: int
    #: When that was published, if it has an eta; ``None``: it has none, or this is unknown.
    published_at: float | None
    #: By the meter's ``cpu_time``.
    cpu_start_s: float
    #: Whether the task has published another one in its place.
    replaced: bool
    #: Whether postrun came without a state, since the task, or its process, was stopped. (Not
    #: for an error outside the task, once another signal has told of it.)
    aborted: bool

    @property
    def load_at_start(self) -> Mapping[str, Any]:
        """The load of the worker when the run started, as in the record."""
        return self.load.as_dict(self.started_monotonic)


class _Current(threading.local):
    """The run that this thread, or greenlet, started last, with a weak reference to its
    request.

    Not an attribute of the request: apps read those, and serialize them as JSON.
    """

    run: tuple[Callable[[], Any], Run | None] = (lambda: None, None)


_current = _Current()


def set_run(request: Any, run: Run) -> None:
    """Make *run*, which is that of *request*, the current one of this thread."""
    _current.run = weakref(request), run


def run_of(request: Any) -> Run | None:
    """Return the run of *request*; ``None`` if rts has not started it in this thread."""
    known, run = _current.run
    return run if known() is request else None


def take_aborted(task_id: str) -> Run | None:
    """Return the run of this task if it was just aborted in this thread; only once."""
    known, run = _current.run
    request = known()
    if run is None or request is None or request.id != task_id or not run.aborted:
        return None
    run.aborted = False
    return run


class Runs:
    """Starts and finishes runs.

    This is on the path of every task, with CPU caches gone cold since the last one: each
    function called, and each object touched, costs more than what is computed. So what
    can serve many runs is refreshed only now and then, and the record is written in one
    go, as text.
    """

    def __init__(
        self,
        clock: FleetClock,
        load: LoadSampler,
        board: NoteBoard,
        sink: RunSink,
        *,
        worker: str,
        instance: str,
        threaded: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._load = load
        self._board = board
        self._sink = sink
        self._worker = worker
        self._instance = instance
        self._worker_fields = f"{quoted(worker)},{quoted(instance)}"
        self._meter: ThreadMeter | ProcessMeter = ThreadMeter() if threaded else ProcessMeter()
        self._cpu_time = self._meter.cpu_time
        self._monotonic = monotonic
        #: By ``time.monotonic``: when to read load and memory again, and the last reading.
        self._refresh_at = -1.0
        self._sample: LoadSample
        self._peak_bytes = 0

    def start(self, plan: Plan, request: Mapping[str, Any]) -> Run:
        """Start a run; *request* are the attributes of ``task.request``."""
        now = self._monotonic()
        if now >= self._refresh_at:
            self._refresh(now)
        run = Run()
        run.runs = self
        run.plan = plan
        run.replaced = run.aborted = False
        run.load = load = self._sample
        published = request.get(PUBLISHED_HEADER)
        run.published_at = None if published is None else instant(published)
        run.started_at = started_at = self._clock.now()
        try:
            # Like Execution.to_json: the fields up to load_at_start, in order. A fixed number
            # of digits, or an integer, is quicker to write than a float in its shortest form.
            started_us = int(started_at * 1e6)
            task_type, type_source, tau, k, arrival, deadline, arrival_source = plan
            task_id, name, parent, root, retries, delivery_info = _REQUEST_FIELDS(request)
            queue = queue_of(delivery_info["routing_key"])
            run.priority = priority_of(delivery_info.get("priority"))
            pid = forks.pid
            quoted_id = quoted(task_id)
            note = (
                f'[{quoted_id[:-1]}:{retries:d}:{pid}:{started_us}",{quoted_id},'
                f"{kind_as_json(name, task_type, type_source, tau, k)},"
                f'{arrival:.7f},{deadline:.7f},"{arrival_source}",'
                f"{'null' if queue is None else quoted(queue)},{retries:d},"
                f"{'null' if parent is None else quoted(parent)},"
                f"{'null' if root is None else quoted_id if root == task_id else quoted(root)},"
                f"{self._worker_fields},{pid},{started_us}e-6,"
                f'{load.json}"age_s":{now - load.sampled_at:.4f}}}]'
            ).encode()
            if len(note) - len(load.json) > MAX_TEXT:  # with eight GPUs the load is long
                raise ValueError("a field may be too long")
        except (TypeError, ValueError, LookupError, AttributeError):
            # A serializer of the app's own, or a producer other than Celery.
            note = self._slow_note(plan, request, started_at, load.as_dict(now))
            run.priority = priority_of((request.get("delivery_info") or {}).get("priority"))
        run.note = note
        run.slot = self._board.put(note)
        run.cpu_start_s = self._cpu_time()
        # Last, so that the service time excludes our own work.
        run.started_monotonic = self._monotonic()
        return run

    def finish(self, run: Run, state: str, returned: object = None) -> None:
        """Pass the record of a finished run to the sink. *state* is Celery's, *returned* what
        comes with it: of a retry the exception.
        """
        runtime_s = self._monotonic() - run.started_monotonic
        if runtime_s < SHORT_S:
            cpu_s, peak_bytes = self._cpu_time() - run.cpu_start_s, self._peak_bytes
        else:
            cpu_s, peak_bytes = self._meter.measure(run.cpu_start_s)
            self._refresh_at = -1.0
        if state == IGNORED and run.replaced:
            state = REPLACED
        cause = '"rejected"' if state == REJECTED else '"killed"' if run.aborted else "null"
        completed_at = run.started_at + runtime_s
        more = f",{run.priority}" if run.priority else ""
        again = again_at(returned, completed_at) if state == RETRY else None
        if run.published_at is not None:
            at = "null" if again is None else f"{again:.6f}"
            more = f",{run.priority},{at},{run.published_at:.6f}"
        elif again is not None:
            more = f",{run.priority},{again:.6f}"
        end = (
            f",{completed_at:.6f},{runtime_s:.9f},{cpu_s:.6f},{peak_bytes},"
            f"{quoted(state)},{cause},true{more}]\n"
        )
        # Replaces the note's closing bracket.
        line = run.note[:-1] + end.encode()
        self._sink.ended_line(line)
        # Only now: should this process die before, another one writes the end of the run.
        if run.slot is not None:
            self._board.clear(run.slot)
        if deadline_missed.receivers and (
            cause != "null" or completed_at > run.plan.deadline - ROUNDED_S
        ):
            run_ended(Execution.from_json(line))  # which knows whether it is a miss

    def _refresh(self, now: float) -> None:
        """Read the load and the memory."""
        self._sample = self._load.read(now)
        until = self._sample.sampled_at + MAX_AGE_S
        self._refresh_at = min(until, now + REFRESH_EVERY_S)
        self._peak_bytes = self._meter.refresh(now)

    def _slow_note(
        self, plan: Plan, request: Mapping[str, Any], started_at: float, load: Mapping[str, Any]
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
        return encode(execution[:START_FIELDS]).encode()
