"""Ends that a run cannot report itself: killed, timed out, revoked, expired, unknown.

Used in the worker's main process (which is also where tasks run with the solo
and threads pools).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.states import FAILURE, REVOKED

from rts import health
from rts.clock import FleetClock
from rts.headers import DROPPED_HEADER
from rts.lifecycle.planning import Planner
from rts.ports import RunSink
from rts.records import DROPPED, LOST, Execution, new_execution
from rts.signals import deadline_missed, run_ended

if TYPE_CHECKING:
    from rts.unfinished.shared_memory import SharedMemory

#: Celery's strategy, which passes each request to the pool.
_ONE_BY_ONE = "celery.worker.strategy:default"


@dataclass(frozen=True)
class Ends:
    """Reports the ends of runs that cannot report them themselves."""

    planner: Planner
    clock: FleetClock
    #: Where the worker's runs, and the tasks that it acknowledged last, are noted.
    memory: SharedMemory
    sink: RunSink
    #: As in :class:`rts.records.Execution`.
    worker: str
    instance: str

    def track_ack(self, request: Any) -> None:
        """Have the task noted when Celery acknowledges its message."""
        acknowledge, attributes = request._on_ack, request.request_dict
        note = self.memory.acknowledged.put

        def acknowledged(*args: Any, **kwargs: Any) -> Any:
            try:
                note(attributes)
            except Exception as exc:  # noqa: BLE001  the message must be acknowledged
                health.hook_failed("acknowledged", exc)
            return acknowledge(*args, **kwargs)

        request._on_ack = acknowledged

    def track_exit(self, request: Any) -> None:
        """Have the run reported if its task, in a thread or a greenlet, ends in a way that
        Celery sends no signal of.

        It may raise something that is no ``Exception``, such as ``SystemExit``: Celery passes
        that to a method which cannot take it (a ``TypeError`` that nobody sees), and would
        count the task among the active ones for ever. Or its hard time limit strikes in
        gevent (Celery < 5.7).
        """
        if request.task.Strategy != _ONE_BY_ONE:
            return  # such as a batch, at whose end nothing would untrack it

        def untrack() -> None:
            # They refer to the request that holds them. Both may be called, so either may be
            # gone: a time limit may strike after the task, as its message is acknowledged.
            vars(request).pop("on_success", None)
            vars(request).pop("on_timeout", None)

        def on_success(result: Any, **kwargs: Any) -> Any:
            untrack()
            if isinstance(result, ExceptionInfo):
                with health.guarded("exit"):
                    from celery.worker.state import task_ready

                    task_ready(request)
                    self.aborted(request.id, "killed")
            return request.on_success(result, **kwargs)

        def on_timeout(soft: bool, timeout: float) -> Any:
            untrack()
            with health.guarded("time limit"):
                self.aborted(request.id, "time_limit")
            return request.on_timeout(soft, timeout)

        request.on_success, request.on_timeout = on_success, on_timeout

    def aborted(self, task_id: str, cause: str) -> None:
        """Report that the process of a run was killed, or that its hard time limit struck.

        Celery may say so twice, but the run's note can be taken only once. Without a note, the
        process has either not started the run, or written the end itself. That end counts then:
        LOST is provisional.
        """
        note = self.memory.notes.take(task_id)
        attributes = self.memory.acknowledged.take(task_id)
        if note is not None:
            self._end(note, FAILURE, cause)
        elif attributes is not None:
            self._end(self._never_run(attributes), LOST, cause)

    def cancelled(self, task_id: str) -> None:
        """Report that Celery has cancelled a run, whose message is to be delivered again."""
        note = self.memory.notes.take(task_id)
        if note is not None:
            self._end(note, LOST, "killed")

    def revoked(
        self, attributes: Mapping[str, Any], *, terminated: bool, expired: bool
    ) -> None:
        """Report a task that was revoked, terminated while it ran, has expired, or was
        dropped from its queue as hopeless.
        """
        if terminated:
            cause = "terminated"
        elif expired:
            cause = DROPPED if attributes.get(DROPPED_HEADER) else "expired"
        else:
            cause = "revoked"
        note = self.memory.notes.take(attributes["id"]) if terminated else None
        self._end(note or self._never_run(attributes), REVOKED, cause)

    def discarded(self, attributes: Mapping[str, Any], state: str, cause: str) -> None:
        """Report a message that Celery could not make a task of."""
        self._end(self._never_run(attributes), state, cause)

    def _end(self, begun: Execution, state: str, cause: str) -> None:
        now = self.clock.now()
        runtime_s = None if begun.started_at is None else max(0.0, now - begun.started_at)
        ended = begun._replace(completed_at=now, runtime_s=runtime_s, state=state, cause=cause)
        self.sink.ended(ended)
        if deadline_missed.receivers:
            run_ended(ended)

    def _never_run(self, attributes: Mapping[str, Any]) -> Execution:
        plan = self.planner.plan_of(attributes)
        return new_execution(plan, attributes, worker=self.worker, instance=self.instance)
