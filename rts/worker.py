"""The bootsteps of a worker: they build its parts before the pool forks, and start them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps

from rts import health
from rts.errors import ConfigurationError
from rts.installation import parts_of
from rts.settings import Settings

if TYPE_CHECKING:
    from rts.parts import WorkerParts


class RtsStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no type information
    """Runs in the worker's main process.

    It is created with the worker (before the pool forks, so that children inherit
    the load board) and started after the pool (so that the first children do not
    inherit threads). The ``worker_shutdown`` signal stops it, after the pool has
    finished its last tasks.
    """

    name = "rts"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker_parts: WorkerParts | None = None
        try:
            self._worker_parts = self._build(worker)
        except ConfigurationError as exc:
            # At startup, in view of the person who can correct it; without frames, as at
            # install.
            raise exc.with_traceback(None) from None
        except Exception as exc:  # noqa: BLE001  the worker must start
            health.hook_failed("worker", exc)

    def _build(self, worker: Any) -> WorkerParts | None:
        from rts.parts import WorkerParts
        from rts.scheduling.activation import turn_on

        turn_on(worker.app, Settings.from_conf(worker.app.conf))
        parts = parts_of(worker.app)
        if parts is None:
            return None
        parts.taus.refresh()
        if parts.worker is not None:
            parts.worker.stop()  # of an earlier worker in this process, as in tests
        parts.worker = WorkerParts(parts, worker)
        return parts.worker

    def start(self, parent: Any) -> None:
        """Start what runs beside the worker."""
        with health.guarded("worker"):
            if self._worker_parts is not None:
                self._worker_parts.start()

    def stop(self, parent: Any) -> None:
        """Do nothing yet: the pool is still finishing its tasks."""

    def terminate(self, parent: Any) -> None:
        """Stop at once, on a cold shutdown, which sends no signal."""
        with health.guarded("worker"):
            if self._worker_parts is not None:
                self._worker_parts.stop()


class SlotsStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no type information
    """Gives the channel that a worker consumes from access to the worker's slots."""

    name = "rts-slots"
    requires = ("celery.worker.consumer.tasks:Tasks",)
    _slots: Any = None

    def start(self, parent: Any) -> None:
        """Let no more be claimed than there are free slots. Runs at each new connection."""
        if "redis" not in str(parent.connection.transport.driver_type):
            return
        from rts.scheduling.slots import limit_to_slots

        self._slots = limit_to_slots(parent, self._slots)


def add_steps(app: Any) -> None:
    """Add the steps of rts to the workers of *app*."""
    app.steps["worker"].add(RtsStep)
    app.steps["consumer"].add(SlotsStep)


def remove_steps(app: Any) -> None:
    """Undo :func:`add_steps`."""
    app.steps["worker"].discard(RtsStep)
    app.steps["consumer"].discard(SlotsStep)
