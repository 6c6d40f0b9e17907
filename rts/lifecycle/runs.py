"""Running: one :class:`Execution` per run, from ``task_prerun`` to ``task_postrun``.

Runs in the process that executes tasks: a pool child, or the worker itself with
the threads, solo and gevent pools.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rts.clock import FleetClock
from rts.load.sample import LoadSample
from rts.load.usage import RunUsage
from rts.ports import NoteBook, RunSink
from rts.records import Execution, Plan
from rts.signals import deadline_missed, run_ended

#: The attribute of ``task.request`` that holds the run. The request lives as
#: long as the run does, so nothing is kept beyond it.
ATTRIBUTE = "rts_run"

#: Celery's state of a task that raised ``Reject``.
REJECTED = "REJECTED"


class LoadReader(Protocol):
    """Where a run reads the load of its worker: shared memory, no system call."""

    def read(self) -> LoadSample:
        """Return the latest sample, at most 0.5 s old."""


class Run:
    """A run that goes on."""

    __slots__ = ("execution", "slot", "started_monotonic", "usage")

    def __init__(
        self, execution: Execution, slot: int | None, started_monotonic: float, usage: RunUsage
    ) -> None:
        self.execution = execution
        self.slot = slot
        self.started_monotonic = started_monotonic
        self.usage = usage


def run_of(request: Any) -> Run | None:
    """Return the run that *request* belongs to; ``None`` where rts has started none.

    Headers become attributes of the request, so a stranger may have sent one of
    this name.
    """
    run = getattr(request, ATTRIBUTE, None)
    return run if isinstance(run, Run) else None


class Runs:
    """Starts and finishes runs."""

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
        monotonic: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._load = load
        self._notes = notes
        self._sink = sink
        self._worker = worker
        self._instance = instance
        self._threaded = threaded
        self._monotonic = monotonic

    def start(self, plan: Plan, request: Mapping[str, Any]) -> Run:
        """Note that a run begins; *request* are the attributes of ``task.request``."""
        execution = new_execution(
            plan,
            request,
            worker=self._worker,
            instance=self._instance,
            pid=os.getpid(),
            started_at=self._clock.now(),
            load_at_start=self._load.read().as_dict(),
        )
        slot = self._notes.put(execution)
        usage = RunUsage.begin(threaded=self._threaded)
        # Last, so that the service time holds nothing of ours.
        return Run(execution, slot, self._monotonic(), usage)

    def finish(self, run: Run, state: str) -> None:
        """Hand on the finished run. *state* is Celery's."""
        runtime_s = self._monotonic() - run.started_monotonic
        usage = run.usage.end()
        started = run.execution
        assert started.started_at is not None
        cause = "rejected" if state == REJECTED else None
        ended = started._replace(
            completed_at=started.started_at + runtime_s,
            runtime_s=runtime_s,
            cpu_s=usage.cpu_s,
            max_rss_bytes=usage.max_rss_bytes,
            state=state,
            cause=cause,
        )
        self._sink.ended(ended)
        # Only now: a process that dies in between has its end written by another.
        if run.slot is not None:
            self._notes.clear(run.slot)
        if deadline_missed.receivers:
            run_ended(ended)


def new_execution(
    plan: Plan,
    request: Mapping[str, Any],
    *,
    worker: str,
    instance: str,
    pid: int | None,
    started_at: float | None = None,
    load_at_start: Mapping[str, Any] | None = None,
) -> Execution:
    """Return the record of a run of the task that *request* describes."""
    task_id = request["id"]
    retries = request.get("retries") or 0
    delivery_info = request.get("delivery_info") or {}
    # pid and start instant: no process runs two tasks within the same microsecond,
    # and a redelivered task has the same id and number of retries.
    moment = "-" if started_at is None else f"{started_at * 1e6:.0f}"
    # By position, in the order of the fields: this is on the path of every task.
    return Execution(
        f"{task_id}:{retries}:{pid or instance}:{moment}",
        task_id,
        request["task"],
        plan.task_type,
        plan.type_source,
        plan.tau,
        plan.k,
        plan.arrival,
        plan.deadline,
        plan.arrival_source,
        delivery_info.get("routing_key"),
        retries,
        request.get("parent_id"),
        request.get("root_id"),
        worker,
        instance,
        pid,
        started_at,
        load_at_start,
    )
