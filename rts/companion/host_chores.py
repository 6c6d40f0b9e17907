"""A companion's work for its host and the fleet: beat, ship, and end lost runs.

Its work for its own worker: :mod:`rts.companion.worker_chores`; on the ledger:
:mod:`rts.companion.ledger_chores`.
"""

from __future__ import annotations

import logging
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
from rts.companion.ledger_chores import LedgerChores
from rts.ledger.shipper import Shipper
from rts.ledger.spool import Spool
from rts.link.delivery import deliver, take_counters
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack
from rts.settings import Settings
from rts.unfinished.heartbeat import BEAT_S
from rts.unfinished.janitor import Janitor

logger = logging.getLogger("rts.drain")

#: Seconds between polls of the spool. Taus are learned that much later, and the records of that
#: many seconds are lost with this host.
SHIP_S = 0.2
#: Generous timeouts: no task waits for these connections.
CONNECT_TIMEOUT_S, TIMEOUT_S, BREAKER_S = 2.0, 5.0, 1.0


class HostChores:
    """The chores that a companion and a standalone drain have in common. *drain*: whether the
    ledger's are among them.
    """

    def __init__(self, settings: Settings, *, drain: bool) -> None:
        patient = replace(
            settings,
            connect_timeout=CONNECT_TIMEOUT_S,
            timeout=TIMEOUT_S,
            breaker_period=BREAKER_S,
        )
        self._counters = settings.keys.counters
        outages = health.Outages(time.monotonic)
        self.link = Link(patient, outages=outages)
        self.clock = FleetClock()
        self.spool = Spool(settings.spool_dir, settings.spool_max_bytes)
        # A link of its own: a call that hangs must not open the heartbeat's breaker.
        self._ship_link = Link(patient, outages=outages)
        self._shipper = Shipper(self.spool, self._ship_link, settings)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        #: Ends the runs of workers that are gone.
        self.janitor = Janitor(self.link, settings, self.clock, name)
        #: The ledger chores; ``None`` if they are turned off or cannot be done.
        self.ledger: LedgerChores | None = None
        if drain:
            try:
                self.ledger = LedgerChores(patient, self.clock, name, outages)
            except PyMongoError as exc:
                # A worker without a drain still beats and ships; others drain.
                health.count("configuration_errors")
                logger.error(
                    "rts: the ledger cannot be used: rts_mongo_url = %s. Records wait in the "
                    "outbox until a worker, or celery rts drain, starts with a valid one",
                    exc,
                )

    def beat(self, *commands: bytes) -> None:
        """Measure the clock and send *commands*, in one round trip; then deliver counters."""
        sent_at = time.time()
        time_, *_ = self.link.call(pack("TIME"), *commands)
        self.clock.measured(sent_at, as_instant(time_), time.time())
        if counts := take_counters(self._counters):
            deliver(self.link, counts)

    def ship_until(self, stop: threading.Event) -> None:
        """Ship the spool while this process holds the host's lease, until *stop* is set."""
        while not stop.is_set():
            with self.spool.lease() as mine:
                while mine and not stop.is_set():
                    attempt("shipping the spool", self._shipper.ship)
                    stop.wait(SHIP_S)
            stop.wait(BEAT_S)

    def ship_rest(self) -> None:
        """Ship what is left, unless another process of this host does."""
        with self.spool.lease() as mine:
            if mine:
                self._shipper.ship()

    def ship_last(self) -> None:
        """Ship what is left when the worker ends, its last runs included. Never raises."""
        # First this process's own file: one that has a writer is not removed.
        attempt("closing a file of the spool", self.spool.close)
        attempt("shipping the spool", self.ship_rest)

    def finish(self) -> None:
        """Drain what is left, and hand over. Each step may fail alone; none raises."""
        attempt("handing over", self.janitor.leave)
        if self.ledger is not None:
            self.ledger.finish()

    def close(self) -> None:
        """Close the connections."""
        self.link.close()
        self._ship_link.close()
        if self.ledger is not None:
            self.ledger.close()
