"""The rounds of a companion, and of a drain that runs alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rts.alerting.leader import OBJECTIVES_S, OVERDUE_S, RENEW_S
from rts.companion.attempts import attempt
from rts.companion.bookkeeping import SNAPSHOT_S, SUMS_S, Bookkeeping
from rts.companion.upkeep import Upkeep
from rts.errors import StoreUnavailable
from rts.ledger.drain import BATCH
from rts.ledger.heartbeat import BEAT_S
from rts.ledger.outbox import TAKEOVER_S
from rts.settings import Settings

#: Seconds between looks at the outbox, unless there was a full batch: what a record
#: waits at most, since a write costs nearly the same for one and for many.
POLL_S = 0.5
#: Seconds between looks for lost runs.
JANITOR_S = 2.0
#: Seconds between looks for tasks whose deadline has passed.
LOOK_S = 1.0


def run(upkeep: Upkeep, stop: threading.Event) -> None:
    """Keep going until *stop*. Neither draining nor shipping delays the heartbeat."""
    # First: a worker may be killed before its companion has come this far.
    final_runs = threading.Thread(target=upkeep.bequeath, args=(stop,), daemon=True)
    final_runs.start()
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
    if upkeep.books is not None:
        _keep_books(upkeep.books, stop)
    stop.wait()
    final_runs.join()
    for thread in threads:
        thread.join(1.0)
    upkeep.last()


def _keep_books(books: Bookkeeping, stop: threading.Event) -> None:
    """Drain, and keep the taus, until *stop*; look at the ledger meanwhile."""
    leader = books.leader
    _repeat(stop, SUMS_S, ("summing up past hours", books.sum_up))
    _repeat(stop, RENEW_S, ("alerting", leader.lead))
    _repeat(stop, OVERDUE_S, ("telling of overdue tasks", leader.evaluate_overdue))
    _repeat(stop, OBJECTIVES_S, ("looking at the objectives", leader.evaluate_objectives))
    _repeat(stop, LOOK_S, ("looking for overdue tasks", books.overdue.step))
    snapshot_at = restore_at = 0.0
    while not stop.is_set():
        if time.monotonic() >= restore_at:
            attempt("restoring the taus", books.restore)
            restore_at = time.monotonic() + BEAT_S
        if time.monotonic() >= snapshot_at:
            attempt("the snapshot of the taus", books.snapshot)
            snapshot_at = time.monotonic() + SNAPSHOT_S
        before = books.drain.moved
        attempt("draining", lambda: books.drain.drain(BEAT_S))
        if books.drain.moved - before < BATCH:
            stop.wait(POLL_S)


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


def drain_alone(settings: Settings, stop: threading.Event, *, once: bool = False) -> int:
    """Drain without a worker, for ``celery rts drain``; return the number of records.

    The spool of this host is shipped too, and the taus are kept; lost runs and overdue
    tasks are looked for, and alerts sent. *once*: until the outbox is empty, then end,
    without these last three.

    Raises:
        StoreUnavailable: rts_mongo_url cannot be used; with *once* also: Redis is
            away, or MongoDB is and records wait.
    """
    upkeep = Upkeep(settings)
    try:
        books = upkeep.books
        if books is None:
            raise StoreUnavailable(
                "MongoDB cannot be used; check rts_mongo_url (the log says why)"
            )
        if not once:
            run(upkeep, stop)
        else:
            upkeep.pulse()
            upkeep.ship_last()
            books.restore()
            books.outbox.hurry()
            _drain_out(books, stop)
            upkeep.last()
    finally:
        upkeep.close()
    return books.drain.moved


def _drain_out(books: Bookkeeping, stop: threading.Event) -> None:
    """Drain until the outbox is empty, or *stop*. What another drain has in hand is waited
    for until it is taken over, should that drain be gone.

    Raises:
        StoreUnavailable: Redis is away, or MongoDB is and records wait.
    """
    give_up_at = time.monotonic() + 2 * TAKEOVER_S
    while not stop.is_set():
        if books.drain.drain(BEAT_S):
            give_up_at = time.monotonic() + 2 * TAKEOVER_S
            continue
        if not books.drain.caught_up:
            raise StoreUnavailable("MongoDB takes no records; they wait in the outbox")
        if not books.outbox.waiting() or time.monotonic() >= give_up_at:
            return
        stop.wait(POLL_S)
