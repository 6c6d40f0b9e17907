"""Where the lifecycle's records go: Redis, or the local spool while it is away."""

from __future__ import annotations

from typing import Protocol

from rts import health
from rts.errors import StoreUnavailable
from rts.keys import running_field
from rts.link.link import Link
from rts.link.scripts import pack
from rts.records import Execution, Learned
from rts.settings import Settings
from rts.tau.finish import FinishCall, read_answer


class SpoolWriter(Protocol):
    """Where records wait while Redis is away. Never raises."""

    def append(
        self, execution: Execution, *, elsewhere: bool, suspect: tuple[str, int] | None
    ) -> None:
        """Keep one ended run; *suspect* as in :class:`StoreUnavailable`."""


class RedisRunSink:
    """A :class:`rts.ports.RunSink` on Redis. A run's end costs one round trip."""

    def __init__(self, link: Link, settings: Settings, spool: SpoolWriter) -> None:
        self._link = link
        self._running = settings.keys.running
        self._call = FinishCall(settings)
        self._spool = spool

    def started(self, execution: Execution) -> None:
        """Post the note of a start. Without Redis there is none, and the run's end
        is all that the ledger gets.
        """
        field = running_field(
            execution.task_id, execution.retries, execution.instance, execution.pid
        )
        try:
            self._link.post(
                pack(
                    "HSET", self._running, field.encode("utf-8", "replace"), execution.to_json()
                )
            )
        except StoreUnavailable:
            health.count("starts_unnoted")

    def finished(self, execution: Execution) -> Learned | None:
        """Deliver a run's end; returns what was learned, if Redis says so now."""
        return self._deliver(execution, elsewhere=False)

    def ended_elsewhere(self, execution: Execution) -> None:
        """Deliver an end on behalf of the process that ran it."""
        self._deliver(execution, elsewhere=True)

    def _deliver(self, execution: Execution, *, elsewhere: bool) -> Learned | None:
        try:
            answer = self._link.call_numbered(
                lambda producer, seq, whole: self._call.pack(
                    execution, producer, seq, elsewhere=elsewhere, whole=whole
                )
            )
        except StoreUnavailable as exc:
            self._spool.append(execution, elsewhere=elsewhere, suspect=exc.suspect)
            return None
        return read_answer(answer)
