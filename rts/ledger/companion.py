"""The process beside a worker: heartbeat, spool, drain, janitor, snapshots.

``python -m rts.ledger.companion`` reads one line of JSON on standard input (what
to do, with the settings) and goes on until standard input ends, which it does
when the worker ends, however that happens.

A process of its own, because no process of the host app shall hold pymongo: pool
children that are forked later would inherit it, its threads do not go with
greenlets, and the main process is the bottleneck of every prefork worker.
"""

from __future__ import annotations

import json
import logging
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

from rts import health
from rts.clock import FleetClock
from rts.errors import RtsError, StoreUnavailable
from rts.ledger.drain import Drain
from rts.ledger.janitor import Janitor, Orphans
from rts.ledger.mongo import MongoLedger
from rts.ledger.orders import Orders
from rts.ledger.outbox import RedisOutbox
from rts.ledger.ship import Shipper
from rts.ledger.spool import Spool
from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.tau.cache import TauCache
from rts.tau.snapshot import Snapshots

logger = logging.getLogger("rts.drain")

#: Seconds between heartbeats; a tenth of what makes a worker count as lost.
BEAT_S = 1.0
#: Seconds between looks for lost runs, and between snapshots of the taus.
JANITOR_S, SNAPSHOT_S = 2.0, 10.0
#: Seconds between looks at an empty outbox: what a record waits at most.
IDLE_S = 0.25
#: Seconds of the last drain when the worker ends.
LAST_DRAIN_S = 3.0
#: Nobody's task waits for these connections, so they may take their time.
CONNECT_TIMEOUT_S, TIMEOUT_S, BREAKER_S = 2.0, 10.0, 1.0


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
        # For its round trip: the clock's offset, and the delivery of counters.
        self._cache = TauCache(self._link, patient, self._clock)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        spool = Spool(settings.spool_dir, settings.spool_max_bytes)
        self._shipper = Shipper(spool, self._link, settings)
        self._janitor = Janitor(self._link, settings, self._clock, name)
        self._orphans = (
            None
            if orders is None
            else Orphans(self._link, settings, self._clock, orders.instance)
        )
        self.drain: Drain | None = None
        self._snapshots: Snapshots | None = None
        if settings.drain or orders is None:
            drain_link = Link(patient)
            ledger = MongoLedger(settings)
            self._outbox = RedisOutbox(drain_link, settings, name)
            self.drain = Drain(self._outbox, ledger)
            self._snapshots = Snapshots(drain_link, settings, ledger)

    def pulse(self) -> None:
        """What Redis alone is needed for: heartbeat, spool, lost runs."""
        self._cache.refresh()
        if self._orders is not None:
            self._link.call(
                pack("HSET", self._keys.workers, self._orders.instance, self._heartbeat())
            )
        self._shipper.ship()
        if self._orphans is not None:
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

    def snapshot(self) -> None:
        """Restore the taus of a wiped Redis, and keep those of a living one."""
        if self._snapshots is not None:
            self._snapshots.restore()
            self._snapshots.save()

    def last(self) -> None:
        """Bring in what is left, say good-bye."""
        self._shipper.ship()
        self.move(LAST_DRAIN_S)
        self.snapshot()
        if self.drain is not None and self.drain.empty_handed:
            self._outbox.leave()
        self._janitor.leave()
        if self._orders is not None:
            self._link.call(pack("HDEL", self._keys.workers, self._orders.instance))
        self._cache.refresh()

    def _heartbeat(self) -> str:
        assert self._orders is not None
        beat: dict[str, Any] = {
            "seen_at": self._clock.now(),
            "worker": self._orders.worker,
            "pid": self._orders.pid,
            "host": socket.gethostname(),
            "concurrency": self._orders.concurrency,
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
    """Keep going until *stop*. Draining does not delay the heartbeat."""

    def pulses() -> None:
        clean_at = 0.0
        while not stop.is_set():
            attempt("the heartbeat", upkeep.pulse)
            if time.monotonic() >= clean_at:
                attempt("looking for lost runs", upkeep.clean)
                clean_at = time.monotonic() + JANITOR_S
            stop.wait(BEAT_S)

    pulse = threading.Thread(target=pulses, name="rts-pulse", daemon=True)
    pulse.start()
    snapshot_at = 0.0
    while not stop.is_set():
        if time.monotonic() >= snapshot_at:
            attempt("the snapshot of the taus", upkeep.snapshot)
            snapshot_at = time.monotonic() + SNAPSHOT_S
        before = upkeep.moved
        attempt("draining", lambda: upkeep.move(BEAT_S))
        if upkeep.moved == before:
            stop.wait(IDLE_S)
    pulse.join(BEAT_S + TIMEOUT_S)
    attempt("the last drain", upkeep.last)


def main() -> int:
    """Run beside a worker. Returns the exit status."""
    logging.basicConfig(
        level=logging.WARNING, format="[%(asctime)s: %(levelname)s/rts] %(message)s"
    )
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    line = sys.stdin.readline()
    if not line:
        return 0
    orders = Orders.from_json(line)
    try:
        upkeep = Upkeep(orders.settings, orders)
    except RtsError as exc:
        logger.error("rts: the companion process cannot work: %s", exc)
        return 2
    threading.Thread(target=watch, args=(os.getppid(), stop), daemon=True).start()
    run(upkeep, stop)
    return 0


def watch(parent: int, stop: threading.Event) -> None:
    """Set *stop* when the worker ends: standard input closes, or the parent changes
    (pool children that were forked since may hold the pipe open).
    """
    while os.getppid() == parent:
        ready, _, _ = select.select([sys.stdin], [], [], 1.0)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            break
    stop.set()


def drain_alone(settings: Settings, stop: threading.Event, *, once: bool = False) -> int:
    """Drain without a worker, for ``celery rts drain``; return the number of records.

    *once*: until the outbox is empty, then end. The spool of this host is shipped
    too, lost runs are looked for, and the taus are kept.
    """
    upkeep = Upkeep(settings)
    if once:
        upkeep.pulse()
        upkeep.snapshot()
        while upkeep.move(BEAT_S) and not stop.is_set():
            pass
        upkeep.last()
    else:
        run(upkeep, stop)
    return upkeep.moved


if __name__ == "__main__":
    sys.exit(main())
