"""What is wrong with servers, fleet and queues, in words: for status, watch and check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rts.cli.common import NO_APP
from rts.cli.table import counted, printable, seconds
from rts.installation import installed
from rts.scheduling.queues import QueueState
from rts.settings import Settings
from rts.views.fleet_state import DROPPED
from rts.views.status import LedgerState, RedisState

#: Age of the oldest record in the outbox that is a problem, in seconds. A drain takes less than
#: one.
MAX_LAG_S = 60.0


def without_rts(app: Any, settings: Settings) -> list[str]:
    """Return a problem if *app* has rts off or not installed, even after importing what a
    worker imports.
    """
    if not settings.enabled:
        return ["rts_enabled is False, so tasks of this app get no deadline and no verdict"]
    if app not in installed and app.main != NO_APP:
        try:
            app.loader.import_default_modules()
        except Exception:  # noqa: BLE001  this host may lack what the workers have
            return []
    if app in installed or app.main == NO_APP:
        return []
    return [
        "rts is not installed in this app, so its tasks get no deadline and no verdict. Add "
        'rts.install(app) below the line that creates it, or imports = ("rts.auto",) to its '
        "celeryconfig, and restart workers and producers"
    ]


def problems(redis: RedisState, ledger: LedgerState) -> list[str]:
    """Return what is wrong, with what to do about it."""
    found = [
        f"{which} at {server.url} is not reachable ({server.error}). Check the server and "
        f"{setting}"
        for which, server, setting in (
            ("Redis", redis.server, "rts_redis_url"),
            ("MongoDB", ledger.server, "rts_mongo_url"),
        )
        if not server.reachable
    ]
    if redis.refusal is not None:
        found.append(refused_writes(redis))
    dropped = dropped_records(redis)
    if dropped:
        what = ", ".join(f"{name} {n}" for name, n in dropped.items())
        found.append(
            f"records were dropped ({what}). Keep the servers up, or raise rts_outbox_max or "
            "rts_spool_max_bytes; rts status --clear resets the count"
        )
    if redis.eviction is not None:
        found.append(
            f"Redis evicts keys when its memory is full (maxmemory-policy {redis.eviction}), "
            "records among them. Set noeviction, or give rts a server of its own "
            "(rts_redis_url)"
        )
    if redis.lag_s is not None and redis.lag_s > MAX_LAG_S:
        why = "It waits for MongoDB"
        if ledger.server.reachable:
            why = (
                "Is a drain running (a worker with rts_drain, or rts drain), and does MongoDB "
                "keep up?"
            )
        found.append(
            f"the oldest record has been in the outbox for {seconds(redis.lag_s)} s. {why}"
        )
    dead = dead_fleet(redis)
    return found if dead is None else [*found, dead]


def refused_writes(redis: RedisState) -> str:
    """Return that Redis takes no records, and why."""
    return f"Redis at {redis.server.url} takes no records: {redis.refusal}"


def dropped_records(redis: RedisState) -> dict[str, int]:
    """Return the counters of records that were dropped, those above 0."""
    return {name: redis.counters[name] for name in DROPPED if redis.counters.get(name)}


def dead_fleet(redis: RedisState) -> str | None:
    """Return that no worker is alive, if tasks miss one."""
    if not redis.overdue_tasks or redis.live_workers:
        return None
    overdue = counted(redis.overdue_tasks, "task")
    return f"no worker is alive, with {overdue} past the deadline"


def queue_problems(
    states: Sequence[QueueState], redis: RedisState, settings: Settings
) -> list[str]:
    """Return which messages wait where no worker takes them."""
    found = []
    for state in states:
        hidden = 0 if settings.scheduler == "edf" else state.ordered + state.demoted
        name = printable(state.name)
        if hidden:
            found.append(
                f"{counted(hidden, 'message')} in deadline order in the queue {name}, which "
                "workers without rts_scheduler = 'edf' do not see. rts queues --to-fifo moves "
                "them"
            )
        elif state.waiting and redis.live_workers and not redis.takers(state.name):
            found.append(
                f"{counted(state.waiting, 'message')} in the queue {name}, from which no "
                f"worker with rts takes. Start one with -Q {name}"
            )
    return found
