"""Ships the records of this host from the spool to Redis, where the taus learn from them.

Each file has one writer, and each line its number there. Redis knows the last number that it
applied (see ``finish.lua``), and a new shipper asks for it: nothing is learned twice, wherever
a process crashes or a reply gets lost. If Redis has lost what it had applied lately, as in a
failover, the lines of files that are still in use are shipped again. If it lost everything,
these lines teach nothing: what they taught comes back with the snapshot of the taus.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rts import health
from rts.errors import StoreUnavailable
from rts.ledger.recent import RecentRuns
from rts.ledger.spool_folder import SUFFIX, SpoolFolder, opened, read_all, read_counts, try_lock
from rts.link.link import Link
from rts.link.scripts import pack
from rts.records import Execution
from rts.settings import Settings
from rts.tau.finish import RECORDS_LOST, FinishCall, FinishEntry, finish_entry, log_learned

#: Records per call. It blocks Redis for about 20 µs per record.
CHUNK = 100
#: Seconds for which Redis still knows the lines of a file that is gone: a call that was given
#: up may arrive later, as the kernel goes on sending it once the network is back.
LATE_S = 300


@dataclass(slots=True)
class _Tail:
    """How far Redis has applied a file, and how far this shipper has read it."""

    #: The generation of the Redis that *applied* is about: a wiped one gets another generation.
    generation: object
    #: The last line that Redis has applied; and whether this is known, or has to be asked.
    applied: int = 0
    is_known: bool = False
    #: The last line that Redis had learned from before it was wiped; 0 if it was not.
    learned: int = 0
    #: Bytes and lines that were read.
    offset: int = 0
    lines: int = 0


class Shipper:
    """Ships the spool of this host; one of its companions does at a time, until it ends."""

    def __init__(self, spool: SpoolFolder, link: Link, settings: Settings) -> None:
        self._spool = spool
        self._link = link
        self._call = FinishCall(settings)
        self._keys = settings.keys
        self._most_waiting = settings.outbox_max
        #: Whether the outbox was full, and has not been half empty since.
        self._full = False
        self._tails: dict[str, _Tail] = {}
        self._recent = RecentRuns(settings.keys)

    def ship(self) -> int:
        """Ship everything and return the number of records.

        Raises:
            StoreUnavailable: Redis is unavailable; the rest keeps waiting.
            OSError: a file of the spool cannot be read or removed; the others were shipped.
        """
        files = self._spool.files()
        for gone in self._tails.keys() - files:
            del self._tails[gone]
        self._find_tails(files)
        shipped, failure = 0, None
        for path in files:
            try:
                shipped += self._ship_file(path)
            except OSError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure
        return shipped

    def waiting(self) -> int:
        """Return the number of records that wait on this host, for a person to look at."""
        files = self._spool.files()
        _, lasts = self._last_of(files) if files else (None, [])
        count = 0
        for path, last in zip(files, lasts, strict=True):
            with opened(path) as fd:
                lines = read_all(fd).count(b"\n") if fd >= 0 else 0
            count += max(0, lines - last)
        return count

    def _find_tails(self, files: Sequence[str]) -> None:
        """Ask Redis what it has applied of those files of which this is not known."""
        tails = self._tails
        unknown = [path for path in files if path not in tails or not tails[path].is_known]
        if not unknown:
            return
        generation, lasts = self._last_of(unknown)
        for path, last in zip(unknown, lasts, strict=True):
            tail = tails.setdefault(path, _Tail(generation))
            if tail.generation != generation:  # it was wiped
                tail.learned = max(tail.learned, tail.applied)
            tail.generation, tail.applied, tail.is_known = generation, last, True
            tail.offset, tail.lines = 0, 0

    def _last_of(self, files: Sequence[str]) -> tuple[object, list[int]]:
        """Return the generation of Redis, and the last line of each file that it applied."""
        generation, *answers = self._link.call(
            pack("GET", self._keys.generation),
            *(pack("GET", self._keys.seq + producer_of(f)) for f in files),
        )
        return generation, [int(answer or 0) for answer in answers]

    def _ship_file(self, path: str) -> int:
        tail = self._tails[path]
        with opened(path) as fd:
            if fd < 0:
                return 0
            # In this order: once the writer is gone, what is read is complete.
            ended = try_lock(fd)
            whole, _, torn = read_all(fd, tail.offset).rpartition(b"\n")
            try:
                shipped = self._send(path, tail, whole) if whole else 0
            except StoreUnavailable:
                tail.is_known = False  # some lines may have been applied
                raise
            if ended:
                if torn:
                    self._spool.refuse(torn)
                os.unlink(path)
        if ended:
            # Nobody ships its lines again.
            self._link.call(pack("EXPIRE", self._keys.seq + producer_of(path), LATE_S))
        return shipped

    def _send(self, path: str, tail: _Tail, whole: bytes) -> int:
        producer = producer_of(path)
        lines = whole.split(b"\n")
        for start in range(0, len(lines), CHUNK):
            chunk = lines[start : start + CHUNK]
            runs, counts = self._read(chunk, tail)
            tail.lines += len(chunk)
            if tail.lines > tail.applied:
                tail.generation = self._deliver(producer, tail, runs, counts)
                tail.applied = tail.lines
            tail.offset += sum(map(len, chunk)) + len(chunk)
        return len(lines)

    def _read(
        self, lines: Sequence[bytes], tail: _Tail
    ) -> tuple[list[tuple[Execution, FinishEntry]], Counter[str]]:
        """Return the runs and the counts in the *lines* that follow *tail*, without those that
        Redis has applied; set aside what is neither.
        """
        runs: list[tuple[Execution, FinishEntry]] = []
        counts: Counter[str] = Counter()
        for number, line in enumerate(lines, start=tail.lines + 1):
            if number <= tail.applied:
                continue
            try:
                if line.startswith(b"{"):
                    counts.update(read_counts(line))
                    continue
                execution = Execution.from_json(line)
                entry = finish_entry(execution, number, line)
            except (ValueError, TypeError, OverflowError):
                self._spool.refuse(line)
                continue
            if number <= tail.learned:
                entry = entry._replace(actual_s=None)
            runs.append((execution, entry))
        return runs, counts

    def _deliver(
        self,
        producer: str,
        tail: _Tail,
        runs: Sequence[tuple[Execution, FinishEntry]],
        counts: Counter[str],
    ) -> object:
        """Deliver the chunk up to *tail* and return the generation of the Redis that took it.

        Raises:
            StoreUnavailable: Redis is unavailable, or has lost lines before the chunk.
        """
        recent = self._recent.pack((run, entry.record) for run, entry in runs)
        # The last one marks the last line as applied, whatever that holds.
        entries = [entry for _, entry in runs] + [FinishEntry(tail.lines, b"", None, "", "")]
        answer, generation, waiting = self._link.call(
            self._call.pack(producer, entries, counts, tail.applied),
            # Each time: a wiped Redis may be restored only after shipping has begun.
            pack("GET", self._keys.generation),
            pack("XLEN", self._keys.outbox),
        )
        if answer == RECORDS_LOST:
            raise self._records_lost()
        self._watch(waiting)
        if recent:
            # A refusal, such as a key of another type, is not worth losing a record for.
            self._link.call_each(*recent)
        log_learned([run for run, _ in runs], answer)
        return generation

    def _records_lost(self) -> StoreUnavailable:
        """Have Redis asked again for each file's last line, and return the error to raise."""
        for tail in self._tails.values():
            tail.is_known = False
        health.warn_once(
            "records lost by Redis",
            "rts: Redis has lost records that it had taken, as in a failover. Those still in "
            "the spool are sent again",
        )
        return StoreUnavailable("Redis has lost records that it had taken")

    def _watch(self, waiting: int) -> None:
        """Log if the outbox, of *waiting* records, is full; again after it was half empty."""
        if waiting < self._most_waiting:
            self._full = self._full and waiting > self._most_waiting / 2
        elif not self._full:
            self._full = True
            health.logger.error(
                "rts: the outbox is full: with each new record the oldest one is lost. Bring "
                "MongoDB back, see that a worker or celery rts drain drains, or raise "
                "rts_outbox_max (%d)",
                self._most_waiting,
            )


def producer_of(path: str) -> str:
    """Return the identity of a file's writer, unique for ever and across hosts."""
    return os.path.basename(path).removesuffix(SUFFIX)
