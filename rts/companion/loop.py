"""The main loop of a companion, and of a standalone drain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rts.alerting.leader import OBJECTIVES_S, OVERDUE_S, RENEW_S
from rts.companion.attempts import attempt
from rts.companion.host_chores import HostChores
from rts.companion.ledger_chores import ROLLUP_S, LedgerChores
from rts.companion.worker_chores import WorkerChores
from rts.errors import StoreUnavailable
from rts.ledger.drain import BATCH
from rts.ledger.outbox import TAKEOVER_S
from rts.settings import Settings
from rts.unfinished.heartbeat import BEAT_S

#: Seconds between polls of the outbox, except after a full batch: a write of one record costs
#: nearly as much as one of many. A record waits this long at most, in a fleet up to
#: ``GATHER_S`` longer.
POLL_S = 0.5
#: Seconds between snapshots of the taus, in the whole fleet.
SNAPSHOT_S = 10.0
#: Seconds between searches for lost runs.
JANITOR_S = 2.0
#: Seconds between searches for tasks whose deadline has passed.
LOOK_S = 1.0

#: What is done, for the log, and the function that does it.
_Chore = tuple[str, Callable[[], object]]


def run(chores: HostChores, stop: threading.Event, worker: WorkerChores | None = None) -> None:
    """Run until *stop* is set, which for a companion is when its *worker* ends. The heartbeat
    has a thread of its own: neither draining nor shipping delays it, nor a driver that hangs.
    """
    beat: Callable[[], object] = chores.beat
    deregister = last_runs = None
    searches: list[_Chore] = [("looking for lost runs", chores.janitor.step)]
    if worker is not None:
        # First: the worker may be killed before its companion gets any further.
        last_runs = threading.Thread(target=worker.settle_last_runs, args=(stop,), daemon=True)
        last_runs.start()
        beat, deregister = worker.beat, worker.deregister
        searches.insert(0, ("looking for orphaned runs", worker.orphans.step))
    shipping = threading.Thread(target=chores.ship_until, args=(stop,), daemon=True)
    shipping.start()
    threads = [
        # Deregisters in the same thread: the others may hang, in a server that hangs.
        _repeat(stop, BEAT_S, ("the heartbeat", beat), last=deregister),
        _repeat(stop, JANITOR_S, *searches),
        shipping,
    ]
    draining = None if chores.ledger is None else _keep_ledger(chores.ledger, stop)
    stop.wait()
    if last_runs is not None:
        last_runs.join()
    for thread in threads:
        thread.join(1.0)
    # Before the wait for MongoDB, which may hang: this host's disk may go with the worker.
    chores.ship_last()
    if draining is not None:
        draining.join()
    chores.finish()


def _keep_ledger(ledger: LedgerChores, stop: threading.Event) -> threading.Thread:
    """Do the chores of the ledger in threads until *stop* is set; return the one that drains.
    They are started here: if one cannot be, as where a limit is reached, the process ends.
    """
    leader = ledger.leader
    _repeat(stop, ROLLUP_S, ("rolling up past hours", ledger.roll_up))
    _repeat(stop, RENEW_S, ("alerting", leader.lead))
    _repeat(stop, OVERDUE_S, ("alerting on overdue tasks", leader.evaluate_overdue))
    _repeat(stop, OBJECTIVES_S, ("alerting on objectives", leader.evaluate_objectives))
    _repeat(stop, LOOK_S, ("looking for overdue tasks", ledger.overdue.step))
    draining = threading.Thread(target=_drain_until, args=(stop, ledger), daemon=True)
    draining.start()
    return draining


def _drain_until(stop: threading.Event, ledger: LedgerChores) -> None:
    """Drain, and save and restore the taus, until *stop* is set."""
    snapshot_at = restore_at = 0.0
    while not stop.is_set():
        if time.monotonic() >= restore_at:
            attempt("restoring the taus", ledger.snapshots.restore)
            restore_at = time.monotonic() + BEAT_S
        if time.monotonic() >= snapshot_at:
            attempt(
                "the snapshot of the taus", lambda: ledger.snapshots.save(lease_s=SNAPSHOT_S)
            )
            snapshot_at = time.monotonic() + SNAPSHOT_S
        before = ledger.drain.moved
        attempt("draining", ledger.drain.step)
        if ledger.drain.moved - before < BATCH:
            stop.wait(POLL_S)


def _repeat(
    stop: threading.Event,
    every_s: float,
    *work: _Chore,
    last: Callable[[], object] | None = None,
) -> threading.Thread:
    """Do *work* every *every_s* seconds in a thread until *stop* is set; then *last*."""

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


def drain_alone(settings: Settings, stop: threading.Event, *, once: bool = False) -> int:
    """Drain without a worker, for ``celery rts drain``; return the number of records.

    Also ships this host's spool, saves the taus, looks for lost runs and overdue tasks,
    and alerts. *once*: end when the outbox is empty, without these last three.

    Raises:
        StoreUnavailable: rts_mongo_url cannot be used; with *once* also: Redis is
            unavailable, or MongoDB is and records wait.
    """
    chores = HostChores(settings, drain=True)
    try:
        ledger = chores.ledger
        if ledger is None:
            raise StoreUnavailable("MongoDB cannot be used: the log says why")
        if not once:
            run(chores, stop)
        else:
            chores.beat()
            ledger.outbox.hurry()
            try:
                chores.ship_rest()
                ledger.snapshots.restore()
            finally:  # a Redis that is full refuses both, until draining has made room
                _drain_out(ledger, stop)
            chores.finish()
    finally:
        chores.close()
    return ledger.drain.moved


def _drain_out(ledger: LedgerChores, stop: threading.Event) -> None:
    """Drain until the outbox is empty or *stop* is set. Waits for entries that another
    drain has claimed, and takes them over should that drain be gone.

    Raises:
        StoreUnavailable: Redis is unavailable, or MongoDB is and records wait.
    """
    give_up_at = time.monotonic() + 2 * TAKEOVER_S
    while not stop.is_set():
        if ledger.drain.step():
            give_up_at = time.monotonic() + 2 * TAKEOVER_S
            continue
        if not ledger.drain.caught_up:
            raise StoreUnavailable("MongoDB accepts no records; they wait in the outbox")
        if not ledger.outbox.waiting() or time.monotonic() >= give_up_at:
            return
        stop.wait(POLL_S)
