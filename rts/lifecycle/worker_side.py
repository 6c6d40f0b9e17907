"""Receivers of a worker's signals, in its main process and in those that run tasks.

The first three are on the path of every task, and catch exceptions themselves: a wrapper
would cost as much as what it wraps. The others are wrapped where they are connected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import current_app
from celery.exceptions import Reject, SoftTimeLimitExceeded, TimeLimitExceeded
from celery.states import FAILURE, REJECTED

from rts import health
from rts.headers import open_task, write_plan
from rts.lifecycle import batches
from rts.lifecycle.outcomes import end_state, process_outlives
from rts.lifecycle.owners import is_celerys
from rts.lifecycle.runs import Run, run_of, set_run, take_aborted
from rts.lifecycle.soft_time_limit import hook_in_task_failed
from rts.lifecycle.tracing import TRACING

if TYPE_CHECKING:
    from rts.parts import Parts, WorkerParts


class WorkerSide:
    """Follows each task from its receipt to its end.

    *parts_of* returns the parts of an app; ``None`` where it does not have rts.
    """

    def __init__(self, parts_of: Callable[[Any], Parts | None]) -> None:
        self._parts_of = parts_of

    def received(self, sender: Any = None, request: Any = None, **_: Any) -> None:
        """Plan a task that has no plan, and track its acknowledgement."""
        try:
            parts = self._parts_of(sender.app)
            if parts is None or parts.worker is None:
                return
            attributes = request.request_dict
            parts.worker.memory.received.put(attributes["id"])
            if is_celerys(attributes["task"]):
                return
            if "rts_deadline" not in attributes:
                _plan_received(parts, attributes)
            ends = parts.worker.ends
            ends.track_ack(request)
            if parts.worker.threaded:
                ends.track_exit(request)
        except Exception as exc:  # noqa: BLE001  the task must run
            health.hook_failed("received", exc)

    def prerun(self, task: Any = None, args: Any = None, **_: Any) -> None:
        """Start a run."""
        try:
            parts = self._parts_of(task.app)
            request = task.request
            if (
                parts is None
                or parts.worker is None
                or request.is_eager
                or is_celerys(task.name)
            ):
                return
            attributes = vars(request)
            if "id" not in attributes:
                batches.start(request, args, parts.planner, parts.worker.runs)
                return
            plan = parts.planner.plan_of(attributes)
            set_run(request, parts.worker.runs.start(plan, attributes))
            if TRACING.enabled:
                TRACING.started(task)
        except Exception as exc:  # noqa: BLE001  the task must run
            hook_in_task_failed("start", exc)

    def postrun(
        self, task: Any = None, state: Any = None, retval: Any = None, **_: Any
    ) -> None:
        """Finish the run, where its task has ended in a state."""
        try:
            run = run_of(task.request)
            if run is None and "id" in vars(task.request):
                return  # rts did not start it, and it is no batch
            if run is not None and not state:
                # The main process reports it, unless it is an error outside the task.
                run.aborted = True
                self._finish_unreported(task, run)
                return
            state = end_state(task, state, retval)
            if run is not None:
                run.runs.finish(run, state, retval)
            elif state and (worker := self._worker_of(task.app)) is not None:
                batches.finish(task.request, state, worker.runs)
        except SoftTimeLimitExceeded:
            # It strikes only once. A record written twice counts as one in the ledger;
            # without one the run would seem to go on until its process ends.
            self.postrun(task=task, state=state, retval=retval)
        except Exception as exc:  # noqa: BLE001  the task has run
            health.hook_failed("finish", exc)

    def _finish_unreported(self, task: Any, run: Run) -> None:
        """Finish an aborted run whose process goes on: with a result backend, Celery before
        5.7 fails to store why, and then sends no signal. (In a thread, see ``track_exit``.)
        """
        worker = self._worker_of(task.app)
        if worker is not None and not worker.threaded and process_outlives(sys.exc_info()[1]):
            worker.runs.finish(run, FAILURE)

    def internal_error(self, sender: Any = None, task_id: Any = None, **_: Any) -> None:
        """Finish a run aborted by an error outside its task, such as in storing its result."""
        run = take_aborted(task_id)
        worker = None if run is None else self._worker_of(sender.app)
        if run is not None and worker is not None:
            worker.runs.finish(run, FAILURE)

    def failed(
        self, sender: Any = None, task_id: Any = None, exception: Any = None, **_: Any
    ) -> None:
        """Report the end of a run that was killed, or that a hard time limit struck."""
        # Where the run itself reports this, postrun follows. So it does for a rejected task,
        # and for what is no Exception, which the main process reports once more. (Not by the
        # request alone: Celery 5.7 puts it on the stack in the main process, too.)
        request = sender.request
        if isinstance(exception, Reject) or (
            request.id == task_id and run_of(request) is not None
        ):
            return
        worker = self._worker_of(sender.app)
        if worker is not None and (worker.threaded or not process_outlives(exception)):
            cause = "time_limit" if isinstance(exception, TimeLimitExceeded) else "killed"
            worker.ends.aborted(task_id, cause)

    def retried(self, sender: Any = None, request: Any = None, **_: Any) -> None:
        """Report the end of a run in a greenlet that Celery has cancelled: outside a run, it
        sends this signal for nothing else. (The companion sees the end of one in a process.)
        """
        worker = self._worker_of(sender.app)
        if worker is not None and worker.threaded and run_of(request) is None:
            worker.ends.cancelled(request.id)

    def revoked(
        self,
        sender: Any = None,
        request: Any = None,
        terminated: Any = False,
        expired: Any = False,
        **_: Any,
    ) -> None:
        """Report the end of a task that was revoked, terminated, expired or dropped."""
        worker = self._worker_of(sender.app)
        if worker is not None and not is_celerys(sender.name):
            worker.ends.revoked(
                vars(request), terminated=bool(terminated), expired=bool(expired)
            )

    def unknown(self, sender: Any = None, message: Any = None, **_: Any) -> None:
        """Report the end of a message whose task is not registered."""
        self._discarded(sender, message, FAILURE, "unknown_task")

    def rejected(self, sender: Any = None, message: Any = None, **_: Any) -> None:
        """Report the end of a message that Celery refuses, such as for its serializer."""
        self._discarded(sender, message, REJECTED, "rejected")

    def _discarded(self, consumer: Any, message: Any, state: str, cause: str) -> None:
        worker, headers = self._worker_of(consumer.app), message.headers
        if worker is None or not headers or "id" not in headers or "task" not in headers:
            return
        if not is_celerys(str(headers["task"])):
            # As Celery's own requests have them.
            own = {"properties": message.properties, "delivery_info": message.delivery_info}
            worker.ends.discarded({**headers, **own}, state, cause)

    def process_shutdown(self, **_: Any) -> None:
        """Deliver the notes on what the tasks of a pool child published, and close its file of
        the spool, before it exits.
        """
        parts = self._parts_of(current_app._get_current_object())
        if parts is None:
            return
        if parts.open_tasks is not None:
            parts.open_tasks.flush()
        if parts.worker is not None:
            parts.worker.sink.close()  # or each child would leave one of full size

    def shutdown(self, sender: Any = None, **_: Any) -> None:
        """Stop what runs beside the worker."""
        worker = self._worker_of(sender.app)
        if worker is not None:
            worker.stop()

    def _worker_of(self, app: Any) -> WorkerParts | None:
        parts = self._parts_of(app)
        return None if parts is None else parts.worker


def _plan_received(parts: Parts, attributes: dict[str, Any]) -> None:
    """Plan a task on receipt and note it as open, because its producer does not have rts.

    The plan is added to the attributes that Celery passes to the pool, so that the run finds
    it as if it had been published.
    """
    write_plan(attributes, parts.planner.plan_received(attributes))
    if parts.open_tasks is not None:
        queue = (attributes.get("delivery_info") or {}).get("routing_key")
        parts.open_tasks.note(open_task(attributes, queue))
