"""A companion's work for its worker: beat, ship, and end the runs that cannot do so.

Its work on the ledger: :mod:`rts.companion.ledger_chores`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import socket
import threading
import time
from dataclasses import replace

from pymongo.errors import PyMongoError

from rts import health
from rts.clock import FleetClock
from rts.companion.attempts import attempt
from rts.companion.final_runs import FinalRuns
from rts.companion.ledger_chores import LedgerChores
from rts.errors import StoreUnavailable
from rts.ledger.heartbeat import BEAT_S, Heartbeat
from rts.ledger.in_flight import InFlightRuns
from rts.ledger.instructions import Instructions
from rts.ledger.janitor import Janitor, Orphans
from rts.ledger.notes import NoteBoard
from rts.ledger.postmortem import PostMortem
from rts.ledger.shipper import Shipper
from rts.ledger.sink import SpoolRunSink
from rts.ledger.spool import Spool
from rts.link.counters import TakenCounts
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack
from rts.load.sampler import Probes, real_probes, take_sample
from rts.records import Execution, Learned
from rts.settings import Settings

logger = logging.getLogger("rts.drain")

#: Seconds between polls of the spool: the delay with which taus learn, and the window of
#: records that are lost if this host is.
SHIP_S = 0.2
#: Generous timeouts: no task waits for these connections.
CONNECT_TIMEOUT_S, TIMEOUT_S, BREAKER_S = 2.0, 5.0, 1.0


class WorkerChores:
    """The chores of a companion, or of a standalone drain (without *instructions*)."""

    def __init__(self, settings: Settings, instructions: Instructions | None = None) -> None:
        patient = replace(
            settings,
            connect_timeout=CONNECT_TIMEOUT_S,
            timeout=TIMEOUT_S,
            breaker_period=BREAKER_S,
        )
        self._instructions = instructions
        self._queues = () if instructions is None else instructions.queues
        self._keys = settings.keys
        self._link = Link(patient)
        self._clock = FleetClock()
        self._probes: Probes | None = None
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._spool = Spool(settings.spool_dir, settings.spool_max_bytes)
        # A link of its own: a call that hangs must not open the heartbeat's breaker.
        self._ship_link = Link(patient)
        on_learned = log_learned if logger.isEnabledFor(logging.INFO) else None
        self._shipper = Shipper(self._spool, self._ship_link, settings, on_learned)
        self._janitor = Janitor(self._link, settings, self._clock, name)
        self._board: NoteBoard | None = None
        if instructions is not None:
            self._board = NoteBoard(instructions.board_slots, instructions.board_fd)
            sink = SpoolRunSink(self._spool, self._link, settings)
            self._orphans = Orphans(self._board, sink, self._clock)
            self._in_flight = InFlightRuns(
                self._link, settings, self._board, instructions.instance
            )
            self._final_runs = FinalRuns(
                PostMortem(self._board, sink, self._clock, instructions), self._in_flight
            )
        #: The ledger chores; ``None`` if they are turned off or cannot be done.
        self.books: LedgerChores | None = None
        if settings.drain or instructions is None:
            try:
                self.books = LedgerChores(patient, self._clock, name)
            except PyMongoError as exc:
                # A worker without a drain still beats and ships; others drain.
                health.count("configuration_errors")
                logger.error(
                    "rts: the ledger cannot be used: rts_mongo_url = %s. Records wait in the "
                    "outbox until a worker, or celery rts drain, starts with a valid one",
                    exc,
                )

    def prepare_load(self) -> None:
        """Read the load a first time: CPU usage is measured between samples."""
        if self._instructions is not None:
            probes = real_probes()
            take_sample(probes)
            self._probes = probes

    def set_queues(self, line: bytes) -> None:
        """Take over the queues that the worker consumes from now on, as a line of JSON."""
        self._queues = tuple(json.loads(line))

    def beat(self) -> None:
        """In one round trip, measure the clock, beat and deliver the counters.

        Raises:
            StoreUnavailable: Redis is unavailable.
        """
        commands = [pack("TIME")]
        if self._instructions is not None and self._board is not None:
            beat = self._heartbeat(self._instructions, self._board)
            commands.append(pack("HSET", self._keys.workers, beat.instance, beat.to_json()))
        counted = TakenCounts(self._keys.counters)
        sent_at = time.time()
        try:
            time_, *_ = self._link.call(*commands, *counted.commands)
        except StoreUnavailable:
            counted.give_back()
            raise
        self._clock.measured(sent_at, as_instant(time_), time.time())
        if self._board is not None:
            self._board.clock_offset_s[0] = self._clock.offset_s
            self._in_flight.step()

    def deregister(self) -> None:
        """Remove the worker's heartbeat, and publish its runs that go on."""
        if self._instructions is not None:
            remove = pack("HDEL", self._keys.workers, self._instructions.instance)
            attempt("removing the heartbeat", lambda: self._link.call(remove))
            self._final_runs.publish()

    def ship_until(self, stop: threading.Event) -> None:
        """Ship the spool while this process holds the host's lease, until *stop* is set."""
        while not stop.is_set():
            with self._spool.lease() as mine:
                while mine and not stop.is_set():
                    attempt("shipping the spool", self._shipper.ship)
                    stop.wait(SHIP_S)
            stop.wait(BEAT_S)

    def ship_rest(self) -> None:
        """Ship what is left, unless another process of this host does."""
        with self._spool.lease() as mine:
            if mine:
                self._shipper.ship()

    def end_orphans(self) -> None:
        """End the runs of this worker whose process is gone."""
        if self._board is not None:
            self._orphans.step()

    def settle_final_runs(self, stop: threading.Event) -> None:
        """Wait for *stop*, the worker's end; then settle its last runs."""
        stop.wait()
        if self._board is not None:
            self._final_runs.settle()

    def end_lost_runs(self) -> None:
        """End the runs of workers that are gone."""
        self._janitor.step()

    def finish(self) -> None:
        """Ship and drain what is left, and hand over. Each step may fail alone."""
        # First this process's own file: one that has a writer is not removed.
        attempt("closing a file of the spool", self._spool.close)
        attempt("shipping the spool", self.ship_rest)
        if self.books is not None:
            self.books.finish()
        attempt("handing over", self._janitor.leave)
        if self.books is not None:
            self.books.leave()

    def close(self) -> None:
        """Close the connections."""
        self._link.close()
        self._ship_link.close()
        if self.books is not None:
            self.books.close()

    def _heartbeat(self, instructions: Instructions, board: NoteBoard) -> Heartbeat:
        slots = board.worker_slots[0]
        return Heartbeat(
            instance=instructions.instance,
            seen_at=self._clock.now(),
            worker=instructions.worker,
            # One sample per beat: the worker itself samples for its tasks.
            load={} if self._probes is None else take_sample(self._probes).as_dict(),
            host=socket.gethostname(),
            pid=instructions.pid,
            slots=slots,
            queues=self._queues,
            ahead=math.inf if instructions.ahead is None else slots * instructions.ahead,
            received=board.received.encoded(),
        )


def log_learned(execution: Execution, learned: Learned) -> None:
    """Log what a run taught: old and new tau and the actual runtime, in seconds."""
    changes = [(execution.task_type, learned.tau_before, learned.tau_after)]
    if learned.name_tau_before is not None and learned.name_tau_after is not None:
        changes.append((execution.name, learned.name_tau_before, learned.name_tau_after))
    text = ", ".join(f"{name} {before:.6g} -> {after:.6g} s" for name, before, after in changes)
    logger.info("tau learned: %s (actual %.6g s)", text, execution.runtime_s)
