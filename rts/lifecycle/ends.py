"""Ends that a run cannot report itself: killed, timed out, revoked, expired, unknown.

Runs in the worker's main process (which is also where tasks run with the solo
and threads pools).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

from rts.clock import FleetClock
from rts.headers import read_plan, write_plan
from rts.lifecycle.planning import Planner
from rts.lifecycle.runs import new_execution
from rts.ports import NoteBook, RunSink
from rts.records import Plan
from rts.settings import Settings


class ReceivedRequest(Protocol):
    """What is used of ``celery.worker.request.Request``."""

    id: str
    worker_pid: int | None

    @property
    def request_dict(self) -> dict[str, Any]:
        """The message's headers, as the pool child will see them."""


class Ends:
    """Writes the ends of runs on behalf of those that cannot."""

    def __init__(
        self,
        settings: Settings,
        planner: Planner,
        clock: FleetClock,
        notes: NoteBook,
        sink: RunSink,
        *,
        worker: str,
        instance: str,
    ) -> None:
        self._types = settings.task_types
        self._planner = planner
        self._clock = clock
        self._notes = notes
        self._sink = sink
        self._worker = worker
        self._instance = instance
        #: Celery's own request objects, as long as Celery keeps them.
        self._requests: MutableMapping[str, ReceivedRequest] = WeakValueDictionary()

    def received(self, request: ReceivedRequest) -> None:
        """Remember a request; plan it where its producer does not have rts.

        The plan is put among the attributes that Celery hands to the pool, so
        that the run finds it as if it had been published.
        """
        self._requests[request.id] = request
        attributes = request.request_dict
        if "rts_deadline" not in attributes:
            write_plan(attributes, self.plan_received(attributes))

    def broken_off(self, task_id: str, cause: str) -> None:
        """Note that the process of a run was killed, or its hard time limit struck."""
        request = self._requests.get(task_id)
        if request is not None:
            self._end(request.request_dict, "FAILURE", cause, True, request.worker_pid)

    def revoked(
        self, attributes: Mapping[str, Any], *, terminated: bool, expired: bool
    ) -> None:
        """Note that a task was revoked, terminated while it ran, or has expired."""
        cause = "terminated" if terminated else "expired" if expired else "revoked"
        request = self._requests.get(attributes["id"])
        pid = None if request is None else request.worker_pid
        self._end(attributes, "REVOKED", cause, terminated, pid)

    def unknown(self, attributes: Mapping[str, Any]) -> None:
        """Note that no such task is registered: the message was discarded."""
        self._end(attributes, "FAILURE", "unknown_task", False, None)

    def _end(
        self, attributes: Mapping[str, Any], state: str, cause: str, ran: bool, pid: int | None
    ) -> None:
        plan = read_plan(attributes, self._types) or self.plan_received(attributes)
        execution = new_execution(
            plan, attributes, worker=self._worker, instance=self._instance, pid=pid
        )
        ended = execution._replace(
            completed_at=self._clock.now(), state=state, cause=cause, ran=ran
        )
        if ran:
            note = self._notes.take(ended.task_id, ended.retries, pid)
            ended = ended.with_note(note)
        self._sink.ended(ended)

    def plan_received(self, attributes: Mapping[str, Any]) -> Plan:
        """Return a plan for a task that came without one, or with an impossible one."""
        properties = attributes.get("properties") or {}
        priority = properties.get("priority")
        return self._planner.plan(attributes["task"], attributes, priority, "received")
