"""What a companion does beside its worker: it beats, ships, and ends runs that cannot.

What it does with the ledger: :mod:`rts.companion.bookkeeping`.
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
from rts.companion.bookkeeping import Bookkeeping
from rts.companion.final_runs import FinalRuns
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
from rts.link.link import Link, as_instant
from rts.link.scripts import pack
from rts.load.sampler import Probes, real_probes, take_sample
from rts.records import Execution, Learned
from rts.settings import Settings

logger = logging.getLogger("rts.drain")

#: Seconds between looks at the spool: what a tau learns late, and what of the
#: records is lost if this host is.
SHIP_S = 0.2
#: Nobody's task waits for these connections, so they may take their time.
CONNECT_TIMEOUT_S, TIMEOUT_S, BREAKER_S = 2.0, 5.0, 1.0


class Upkeep:
    """The work of a companion, or of a drain that runs alone (without *instructions*)."""

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
        told = log_learned if logger.isEnabledFor(logging.INFO) else None
        self._shipper = Shipper(self._spool, self._ship_link, settings, told)
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
        #: What it does with the ledger; ``None`` where it does not, or cannot.
        self.books: Bookkeeping | None = None
        if settings.drain or instructions is None:
            try:
                self.books = Bookkeeping(patient, self._clock, name)
            except PyMongoError as exc:
                # A worker without a drain still beats and ships; others drain.
                health.count("configuration_errors")
                logger.error(
                    "rts: the ledger cannot be used: rts_mongo_url = %s. Records wait in the "
                    "outbox until workers start with one that is, or celery rts drain does",
                    exc,
                )

    def start(self) -> None:
        """Start what the heartbeat tells of."""
        if self._instructions is not None:
            attempt("reading the load", self._first_look)

    def _first_look(self) -> None:
        probes = real_probes()
        take_sample(probes)  # from which on the first beat tells the CPU
        self._probes = probes

    def hear(self, line: bytes) -> None:
        """Take a line of the worker's: the queues that it takes tasks from now."""
        self._queues = tuple(json.loads(line))

    def pulse(self) -> None:
        """One round trip: measure the clock, beat, deliver what was counted.

        Raises:
            StoreUnavailable: Redis is away.
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

    def good_bye(self) -> None:
        """Take the worker off the list of those that live, and tell other companions of
        its runs that go on.
        """
        if self._instructions is not None:
            gone = pack("HDEL", self._keys.workers, self._instructions.instance)
            attempt("the good-bye", lambda: self._link.call(gone))
            self._final_runs.tell()

    def ship(self) -> int:
        """Bring what waits on this host's disk to Redis; return the number of records."""
        return self._shipper.ship()

    def ship_until(self, stop: threading.Event) -> None:
        """Ship whenever it is this process's turn, until *stop*."""
        while not stop.is_set():
            with self._spool.lease() as mine:
                while mine and not stop.is_set():
                    attempt("shipping the spool", self.ship)
                    stop.wait(SHIP_S)
            stop.wait(BEAT_S)

    def ship_last(self) -> None:
        """Ship what is left, if no other process of this host does."""
        with self._spool.lease() as mine:
            if mine:
                self._shipper.ship()

    def orphans(self) -> None:
        """Look for runs of this worker whose process is gone."""
        if self._board is not None:
            self._orphans.step()

    def bequeath(self, stop: threading.Event) -> None:
        """Leave word of the worker's last runs, once it has ended."""
        stop.wait()
        if self._board is not None:
            self._final_runs.settle()

    def clean(self) -> None:
        """Look for runs of workers that are gone."""
        self._janitor.step()

    def last(self) -> None:
        """Bring in what is left, and leave. Each step may fail on its own."""
        # First what this process has written itself: a file that has a writer stays.
        attempt("ending a file of the spool", self._spool.close)
        attempt("shipping the spool", self.ship_last)
        if self.books is not None:
            self.books.last()
        attempt("leaving", self._janitor.leave)
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
            # At each beat and no more often: the worker itself samples for its tasks.
            load={} if self._probes is None else take_sample(self._probes).as_dict(),
            host=socket.gethostname(),
            pid=instructions.pid,
            slots=slots,
            queues=self._queues,
            ahead=math.inf if instructions.ahead is None else slots * instructions.ahead,
            received=board.received.encoded(),
        )


def log_learned(execution: Execution, learned: Learned) -> None:
    """Log what a run taught: old tau, new tau and the actual runtime, in seconds."""
    changes = [(execution.task_type, learned.tau_before, learned.tau_after)]
    if learned.name_tau_before is not None and learned.name_tau_after is not None:
        changes.append((execution.name, learned.name_tau_before, learned.name_tau_after))
    text = ", ".join(f"{name} {before:.6g} -> {after:.6g} s" for name, before, after in changes)
    logger.info("tau learned: %s (actual %.6g s)", text, execution.runtime_s)
