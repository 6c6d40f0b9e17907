"""The process beside a worker: heartbeat, spool, drain, janitor, snapshots.

``python -m rts.ledger.companion`` reads one line of JSON on standard input (what
to do, with the settings) and goes on until standard input ends, which it does
when the worker ends, however that happens.

A process of its own, because no process of the host app shall hold pymongo: pool
children that are forked later would inherit it, its threads do not go with
greenlets, and the main process is the bottleneck of every prefork worker.
"""

from __future__ import annotations

import gc
import json
import logging
import logging.handlers
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pymongo.errors import PyMongoError

from rts import health
from rts.clock import FleetClock
from rts.errors import StoreUnavailable
from rts.ledger.drain import BATCH, Drain
from rts.ledger.janitor import Bulletin, Janitor, Orphans
from rts.ledger.mongo import MongoLedger
from rts.ledger.notes import NoteBoard
from rts.ledger.orders import Orders
from rts.ledger.outbox import RedisOutbox
from rts.ledger.ship import Shipper
from rts.ledger.sink import SpoolRunSink
from rts.ledger.spool import Spool
from rts.link.link import Link, shown_url
from rts.link.scripts import pack
from rts.load.sampler import LoadSampler
from rts.records import Execution, Learned
from rts.settings import Settings
from rts.tau.snapshot import Snapshots

logger = logging.getLogger("rts.drain")

#: Seconds between heartbeats; a tenth of what makes a worker count as lost.
BEAT_S = 1.0
#: Seconds between looks for lost runs, and between snapshots of the taus.
JANITOR_S, SNAPSHOT_S = 2.0, 10.0
#: Seconds between looks at the outbox, unless there was a full batch: what a record
#: waits at most, since a write costs nearly the same for one and for many.
POLL_S = 0.5
#: Seconds of the last drain when the worker ends.
LAST_DRAIN_S = 3.0
#: Seconds between looks at the spool: what a tau learns late, and what of the
#: records is lost if this host is.
SHIP_S = 0.2
#: Seconds after the worker's end in which this process ends, whatever hangs. It
#: may: nothing is acknowledged that is not done.
LAST_S = 5.0
#: Nobody's task waits for these connections, so they may take their time.
CONNECT_TIMEOUT_S, TIMEOUT_S, BREAKER_S = 2.0, 5.0, 1.0
#: Tasks go first where they and the drain want the same core.
NICENESS = 5


class Upkeep:
    """The work of a companion, or of a drain that runs alone (without *orders*)."""

    def __init__(self, settings: Settings, orders: Orders | None = None) -> None:
        patient = replace(
            settings,
            connect_timeout=CONNECT_TIMEOUT_S,
            timeout=TIMEOUT_S,
            breaker_period=BREAKER_S,
        )
        self._orders = orders
        self._keys = settings.keys
        self._link = Link(patient)
        self._clock = FleetClock()
        self._sampler = LoadSampler()
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._spool = Spool(settings.spool_dir, settings.spool_max_bytes)
        # A link of its own: a call that hangs must not open the heartbeat's breaker.
        self._ship_link = Link(patient)
        told = log_learned if logger.isEnabledFor(logging.INFO) else None
        self._shipper = Shipper(self._spool, self._ship_link, settings, told)
        self._janitor = Janitor(self._link, settings, self._clock, name)
        self._board: NoteBoard | None = None
        if orders is not None:
            self._board = NoteBoard(orders.board_slots, orders.board_fd)
            sink = SpoolRunSink(self._spool, self._link, settings)
            self._orphans = Orphans(self._board, sink, self._clock)
            self._bulletin = Bulletin(self._link, settings, self._board)
        self.drain: Drain | None = None
        self._outbox: RedisOutbox | None = None
        self._snapshots: Snapshots | None = None
        self._closes: list[Callable[[], None]] = [self._link.close, self._ship_link.close]
        if settings.drain or orders is None:
            try:
                ledger = MongoLedger(settings)
            except PyMongoError as exc:
                # A worker without a drain still beats and ships; others drain.
                logger.error(
                    "rts: the ledger cannot be used: %s. Check rts_mongo_url (%s); records "
                    "wait in the outbox",
                    type(exc).__name__,
                    shown_url(settings.mongo_url),
                )
            else:
                drain_link = Link(patient)
                self._outbox = RedisOutbox(drain_link, settings, name)
                self.drain = Drain(self._outbox, ledger)
                self._snapshots = Snapshots(drain_link, settings, ledger)
                self._closes += [drain_link.close, ledger.close]

    def start(self) -> None:
        """Start what the heartbeat tells of."""
        if self._orders is not None:
            self._sampler.start()

    def pulse(self) -> None:
        """One round trip: measure the clock, beat, deliver what was counted.

        Raises:
            StoreUnavailable: Redis is away.
        """
        commands = [pack("TIME")]
        if self._orders is not None:
            beat = self._heartbeat()
            commands.append(pack("HSET", self._keys.workers, self._orders.instance, beat))
        counts = health.take_counts()
        commands += [
            pack("HINCRBY", self._keys.counters, name, n) for name, n in counts.items()
        ]
        sent_at = time.time()
        try:
            (seconds, micros), *_ = self._link.call(*commands)
        except StoreUnavailable:
            health.give_back(counts)
            raise
        self._clock.measured(sent_at, int(seconds) + int(micros) / 1e6, time.time())
        if self._board is not None:
            self._board.clock_offset_s = self._clock.offset_s
            self._bulletin.step()

    def good_bye(self) -> None:
        """Take the worker off the list of those that live."""
        self._sampler.stop()
        if self._orders is not None:
            self._link.call(pack("HDEL", self._keys.workers, self._orders.instance))

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

    def clean(self) -> None:
        """Look for runs of workers that are gone."""
        self._janitor.step()

    @property
    def moved(self) -> int:
        """Records moved since the start."""
        return 0 if self.drain is None else self.drain.moved

    def move(self, seconds: float) -> int:
        """Drain for at most *seconds*; return the number of records moved."""
        return 0 if self.drain is None else self.drain.drain(seconds)

    def move_all(self, seconds: float) -> None:
        """Drain until nothing is left, for at most about *seconds*."""
        give_up_at = time.monotonic() + seconds
        while self.move(seconds) and time.monotonic() < give_up_at:
            pass

    def restore(self) -> None:
        """Restore the taus of a Redis that was wiped."""
        if self._snapshots is not None:
            self._snapshots.restore()

    def snapshot(self, turn_s: float = SNAPSHOT_S) -> None:
        """Keep the taus, unless another drain has done so within *turn_s* seconds."""
        if self._snapshots is not None:
            self._snapshots.save(turn_s=turn_s)

    def last(self) -> None:
        """Bring in what is left, and leave. Each step may fail on its own."""
        attempt("shipping the spool", self.ship_last)
        attempt("the last drain", lambda: self.move_all(LAST_DRAIN_S))
        attempt("the snapshot of the taus", lambda: self.snapshot(0.0))
        attempt("leaving", self._janitor.leave)
        if self._outbox is not None:
            attempt("leaving", self._outbox.leave)

    def close(self) -> None:
        """Close the connections."""
        for close in self._closes:
            close()

    def _heartbeat(self) -> str:
        assert self._orders is not None
        beat: dict[str, Any] = {
            "seen_at": self._clock.now(),
            "worker": self._orders.worker,
            "pid": self._orders.pid,
            "host": socket.gethostname(),
            "concurrency": self._orders.concurrency,
            "load": self._sampler.read().as_dict(),
        }
        return json.dumps(beat)


def attempt(what: str, work: Callable[[], object]) -> bool:
    """Do *work*; return whether it went well. An absent server has been logged already."""
    try:
        work()
        return True
    except StoreUnavailable as exc:
        logger.debug("rts: %s: %s", what, exc)
    except Exception as exc:  # noqa: BLE001  the next round may go better
        health.count("upkeep_errors")
        health.warn_once(
            f"upkeep:{what}:{type(exc).__name__}",
            "rts: %s failed: %s",
            what,
            exc,
            exc_info=True,
        )
    return False


def run(upkeep: Upkeep, stop: threading.Event) -> None:
    """Keep going until *stop*. Neither draining nor shipping delays the heartbeat."""
    upkeep.start()
    threads = [
        # Its own thread says good-bye: the others may hang in a server that does.
        _repeat(stop, BEAT_S, ("the heartbeat", upkeep.pulse), last=upkeep.good_bye),
        _repeat(
            stop,
            JANITOR_S,
            ("looking for orphaned runs", upkeep.orphans),
            ("looking for lost runs", upkeep.clean),
        ),
    ]
    threads.append(threading.Thread(target=upkeep.ship_until, args=(stop,), daemon=True))
    threads[-1].start()
    snapshot_at = restore_at = 0.0
    while not stop.is_set():
        if time.monotonic() >= restore_at:
            attempt("restoring the taus", upkeep.restore)
            restore_at = time.monotonic() + BEAT_S
        if time.monotonic() >= snapshot_at:
            attempt("the snapshot of the taus", upkeep.snapshot)
            snapshot_at = time.monotonic() + SNAPSHOT_S
        before = upkeep.moved
        attempt("draining", lambda: upkeep.move(BEAT_S))
        if upkeep.moved - before < BATCH:
            stop.wait(POLL_S)
    for thread in threads:
        thread.join(1.0)
    upkeep.last()


def _repeat(
    stop: threading.Event,
    every_s: float,
    *work: tuple[str, Callable[[], object]],
    last: Callable[[], object] | None = None,
) -> threading.Thread:
    """Do *work* again and again, in a thread of its own, until *stop*; then *last*."""

    def loop() -> None:
        while not stop.is_set():
            for what, step in work:
                attempt(what, step)
            stop.wait(every_s)
        if last is not None:
            attempt("the end of " + work[0][0], last)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


def log_learned(execution: Execution, learned: Learned) -> None:
    """Log what a run taught: old tau, new tau and the actual runtime, in seconds."""
    changes = [(execution.task_type, learned.tau_before, learned.tau_after)]
    if learned.name_tau_before is not None and learned.name_tau_after is not None:
        changes.append((execution.name, learned.name_tau_before, learned.name_tau_after))
    text = ", ".join(f"{name} {before:.6g} -> {after:.6g} s" for name, before, after in changes)
    logger.info("tau learned: %s (actual %.6g s)", text, execution.runtime_s)


def set_up_logging(orders: Orders) -> None:
    """Log where the worker logs, as it does; to standard error where that fails."""
    handler: logging.Handler = logging.StreamHandler()
    if orders.logfile:
        try:
            handler = logging.handlers.WatchedFileHandler(orders.logfile)
        except OSError:
            pass
    logging.basicConfig(
        level=orders.loglevel,
        format="[%(asctime)s: %(levelname)s/rts] %(message)s",
        handlers=[handler],
    )


def main() -> int:
    """Run beside a worker. Returns the exit status."""
    parent = os.getppid()
    # Python writes the number of a signal into this pipe. A handler that sets the
    # event itself could find its lock held by the very thread it interrupts.
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    signal.set_wakeup_fd(wake_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides
    signal.signal(signal.SIGTERM, lambda *_: None)
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return 0  # the worker died before it had said what to do
    orders = Orders.from_json(line)
    set_up_logging(orders)
    stop = threading.Event()
    upkeep = Upkeep(orders.settings, orders)
    try:
        os.nice(NICENESS)
    except OSError:
        pass  # a sandbox may forbid it; nothing depends on it
    gc.freeze()  # what was imported stays for good
    threading.Thread(target=watch, args=(parent, wake, stop), daemon=True).start()
    run(upkeep, stop)
    return 0


def watch(parent: int, wake: int, stop: threading.Event) -> None:
    """Set *stop* when the worker ends: standard input closes, or the parent changes
    (pool children that were forked since may hold the pipe open). Or on SIGTERM.

    Ends the process the hard way where it does not end by itself.
    """
    stdin = sys.stdin.fileno()
    while os.getppid() == parent:
        ready, _, _ = select.select([stdin, wake], [], [], 1.0)
        if wake in ready or (ready and not os.read(stdin, 4096)):
            break
    stop.set()
    time.sleep(LAST_S)
    os._exit(1)


def drain_alone(settings: Settings, stop: threading.Event, *, once: bool = False) -> int:
    """Drain without a worker, for ``celery rts drain``; return the number of records.

    *once*: until the outbox is empty, then end. The spool of this host is shipped
    too, lost runs are looked for, and the taus are kept.

    Raises:
        StoreUnavailable: rts_mongo_url cannot be used; with *once* also: Redis is
            away, or MongoDB is and records wait.
    """
    upkeep = Upkeep(settings)
    try:
        if upkeep.drain is None:
            raise StoreUnavailable("MongoDB cannot be used; check rts_mongo_url")
        if not once:
            run(upkeep, stop)
        else:
            upkeep.pulse()
            upkeep.ship_last()
            upkeep.restore()
            while upkeep.move(BEAT_S) and not stop.is_set():
                pass
            if not upkeep.drain.empty_handed:
                raise StoreUnavailable("MongoDB takes no records; they wait in the outbox")
            upkeep.last()
    finally:
        upkeep.close()
    return upkeep.moved


if __name__ == "__main__":
    sys.exit(main())
