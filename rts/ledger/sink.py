"""The sink for the lifecycle's records."""

from __future__ import annotations

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.spool import Spool
from rts.link.link import Link
from rts.records import Execution
from rts.settings import Settings
from rts.tau.finish import FinishCall, finish_entry


class SpoolRunSink:
    """A :class:`rts.ports.RunSink`: the local spool, or Redis directly if that fails."""

    def __init__(self, spool: Spool, link: Link, settings: Settings) -> None:
        self._spool = spool
        self._link = link
        self._call = FinishCall(settings)

    def append_counts(self) -> None:
        """Send this process's counters by way of the spool. Never raises."""
        counts = health.take_counts()
        try:
            if counts:
                self._spool.append_counts(counts)
        except OSError:
            health.give_back(counts)

    def close(self) -> None:
        """Send the last counters and close this process's file, which is then removed once
        it is shipped. A later record starts a new file. Never raises.
        """
        self.append_counts()
        try:
            self._spool.close()
        except (OSError, ValueError):
            health.count("spool_failures")  # the released lock marks its end as well

    def ended(self, execution: Execution) -> None:
        """See :class:`rts.ports.RunSink`."""
        self.ended_line(execution.to_json().encode() + b"\n")

    def ended_line(self, line: bytes) -> None:
        """See :class:`rts.ports.RunSink`."""
        if health.pending():
            self.append_counts()
        try:
            self._spool.append_line(line)
            return
        except (OSError, ValueError, TypeError) as exc:
            health.count("spool_failures")
            health.warn_once(
                f"spool:{type(exc).__name__}:{getattr(exc, 'errno', None)}",
                "rts: records cannot be written to disk (%s) and go straight to Redis, which "
                "is slower. Set rts_spool_dir to a folder of this user's own; on a volume, to "
                "one below its mount point, which rts creates",
                exc,
            )
        try:
            record = line.rstrip()
            execution = Execution.from_json(record)
            call = self._call.pack(None, [finish_entry(execution, 1, record)])
            self._link.call(call)
        except (StoreUnavailable, ValueError, TypeError) as exc:
            health.count("records_lost")
            health.warn_once("lost", "rts: a record is lost, disk and Redis failed: %s", exc)
