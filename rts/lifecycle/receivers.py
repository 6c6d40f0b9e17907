"""The receivers of Celery's signals: the boundary between the host app and rts.

Each catches every exception, counts it and logs it once: Celery would log a
traceback for every task, and the host app must not notice at all.

=======================  =======================================================
signal                   where it is sent
=======================  =======================================================
before_task_publish      whatever process publishes, including retries, beat
                         and canvas
after_task_publish       the same, once the broker has the message
task_received            worker, main process
task_prerun              process that runs the task (a pool child with prefork)
task_postrun             the same
task_internal_error      the same, after postrun, for errors outside of the task
task_failure             the same, before postrun; and in the main process for
                         runs whose process was killed or whose hard time limit
                         struck
task_retry               the process that runs the task; and the worker's main
                         process for runs that it has cancelled
task_revoked             worker, main process
task_unknown             worker, main process
task_rejected            worker, main process, for messages, not for tasks that
                         raise Reject
worker_process_shutdown  a pool child (prefork) that exits cleanly
worker_shutdown          worker, main process, when it exits cleanly
=======================  =======================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import signals

from rts import health
from rts.lifecycle.producer_side import ProducerSide
from rts.lifecycle.tracing import TRACING
from rts.lifecycle.worker_side import WorkerSide

if TYPE_CHECKING:
    from rts.parts import Parts

_connected: list[tuple[Any, str]] = []


def connect(
    parts_of: Callable[[Any], Parts | None], publisher: Callable[[str], Parts | None]
) -> None:
    """Connect all receivers, once per process.

    *parts_of* returns the parts of an app, *publisher* those of the app that publishes a
    task, by the task's name; ``None`` where it does not have rts.
    """
    if _connected:
        return
    producer, worker = ProducerSide(parts_of, publisher), WorkerSide(parts_of)
    TRACING.connect(parts_of, publisher)
    for signal, receiver in (
        (signals.before_task_publish, producer.publishing),
        (signals.after_task_publish, producer.published),
        (signals.task_received, worker.received),
        (signals.task_prerun, worker.prerun),
        (signals.task_postrun, worker.postrun),
        (signals.task_internal_error, _guarded(worker.internal_error)),
        (signals.task_failure, _guarded(worker.failed)),
        (signals.task_retry, _guarded(worker.retried)),
        (signals.task_revoked, _guarded(worker.revoked)),
        (signals.task_unknown, _guarded(worker.unknown)),
        (signals.task_rejected, _guarded(worker.rejected)),
        (signals.worker_process_shutdown, _guarded(worker.process_shutdown)),
        (signals.worker_shutdown, _guarded(worker.shutdown)),
    ):
        # Disconnected by its uid: a bound method is a new object each time.
        uid = f"rts.{receiver.__name__}"
        signal.connect(receiver, weak=False, dispatch_uid=uid)
        _connected.append((signal, uid))


def _guarded(receiver: Callable[..., None]) -> Callable[..., None]:
    """Return *receiver* so that its exceptions are counted, and logged once."""
    return health.guarded(receiver.__name__)(receiver)


def disconnect() -> None:
    """Disconnect all receivers."""
    TRACING.disconnect()
    while _connected:
        signal, uid = _connected.pop()
        signal.disconnect(dispatch_uid=uid)
