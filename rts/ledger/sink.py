"""Where the lifecycle's records go."""

from __future__ import annotations

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.spool import Spool
from rts.link.link import Link
from rts.records import Execution
from rts.settings import Settings
from rts.tau.finish import FinishCall, finish_entry


class SpoolRunSink:
    """A :class:`rts.ports.RunSink`: a local file, and Redis itself where there is no disk."""

    def __init__(self, spool: Spool, link: Link, settings: Settings) -> None:
        self._spool = spool
        self._link = link
        self._call = FinishCall(settings)

    def counted(self) -> None:
        """Send what this process has counted the same way. Never raises."""
        counts = health.take_counts()
        try:
            if counts:
                self._spool.append_counts(counts)
        except OSError:
            health.give_back(counts)

    def close(self) -> None:
        """Send what was counted last, and end this process's file: once it has been
        shipped, nothing of it stays. What comes later begins another. Never raises.
        """
        self.counted()
        try:
            self._spool.close()
        except (OSError, ValueError):
            health.count("spool_failures")  # its end is told from the lock as well

    def ended(self, execution: Execution) -> None:
        """See :class:`rts.ports.RunSink`."""
        self.line(execution.to_json().encode() + b"\n")

    def line(self, line: bytes) -> None:
        """See :class:`rts.ports.RunSink`."""
        if health.pending():
            self.counted()
        try:
            self._spool.append_line(line)
            return
        except (OSError, ValueError, TypeError) as exc:
            health.count("spool_failures")
            health.warn_once(
                f"spool:{type(exc).__name__}:{getattr(exc, 'errno', None)}",
                "rts: records cannot be written to disk (%s) and go straight to Redis, which "
                "is slower. Set rts_spool_dir to a folder of this user's own; on a volume to "
                "one below its mount point, which is then made",
                exc,
            )
        try:
            record = line.rstrip()
            execution = Execution.from_json(record)
            call = self._call.pack(None, [finish_entry(execution, 1, record)])
            self._link.call(call)
        except (StoreUnavailable, ValueError, TypeError) as exc:
            health.count("records_lost")
            health.warn_once("lost", "rts: a record is lost, disk and Redis fail: %s", exc)
