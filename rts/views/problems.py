"""What is wrong with servers, fleet and queues, in words: for the commands and for Flower."""

from __future__ import annotations

from collections.abc import Sequence

from rts.settings import Settings
from rts.unfinished.heartbeat import Heartbeat
from rts.views.fleet_state import LOSSES
from rts.views.plurals import counted
from rts.views.queue_state import QueueState
from rts.views.status import LedgerState, RedisState

#: Age of the oldest record in the outbox that is a problem, in seconds. A drain takes less than
#: one.
MAX_LAG_S = 60.0
#: Queues whose problems are told one by one, the longest.
MAX_QUEUES = 5


def problems(redis: RedisState, ledger: LedgerState) -> list[str]:
    """Return what is wrong with both servers and the fleet, with what to do about it."""
    found = [
        f"{which} at {server.url} is not reachable ({server.error}). Check the server and "
        f"{setting}"
        for which, server, setting in (
            ("Redis", redis.server, "rts_redis_url"),
            ("MongoDB", ledger.server, "rts_mongo_url"),
        )
        if not server.reachable
    ]
    return [*found, *fleet_problems(redis, ledger_up=ledger.server.reachable)]


def fleet_problems(redis: RedisState, *, ledger_up: bool) -> list[str]:
    """Return what is wrong with the fleet and with a Redis that answers. *ledger_up*: whether
    MongoDB answers.
    """
    found = []
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
    lag_s = redis.vitals.lag_s
    if lag_s > MAX_LAG_S:
        why = "It waits for MongoDB"
        if ledger_up:
            why = (
                "Is a drain running (a worker with rts_drain, or rts drain), and does MongoDB "
                "keep up?"
            )
        found.append(f"the oldest record has been in the outbox for {lag_s:.0f} s. {why}")
    dead = dead_fleet(redis)
    return found if dead is None else [*found, dead]


def refused_writes(redis: RedisState) -> str:
    """Return that Redis takes no records, and why."""
    return f"Redis at {redis.server.url} takes no records: {redis.refusal}"


def dropped_records(redis: RedisState) -> dict[str, int]:
    """Return the counters of records that were dropped, those above 0."""
    counters = redis.vitals.counters
    return {name: counters[name] for name in LOSSES if counters.get(name)}


def dead_fleet(redis: RedisState) -> str | None:
    """Return that no worker is alive, or none has slots, if tasks miss one. A Redis that
    refuses writes may refuse heartbeats, so it knows of none.
    """
    alive = redis.vitals.live_workers
    if not redis.overdue_tasks or redis.refusal is not None or any(map(_can_run, alive)):
        return None
    late = counted(redis.overdue_tasks, "task")
    return f"no worker {'has slots' if alive else 'is alive'}, with {late} past the deadline"


def _can_run(worker: Heartbeat) -> bool:
    return worker.slots != 0  # none after pool_shrink, say; None: not known


def queue_problems(
    states: Sequence[QueueState], redis: RedisState, settings: Settings
) -> list[str]:
    """Return which messages wait where no worker takes them: in the longest such queues, and
    in how many more. Names are as they are.
    """
    found = []
    for state in sorted(states, key=lambda state: -state.waiting):
        takers = redis.vitals.takers(state.name)
        told = [worker.ordered for worker in takers if worker.ordered is not None]
        ordered = state.ordered + state.demoted
        if ordered and not (any(told) if told else settings.scheduler == "edf"):
            found.append(
                f"{counted(ordered, 'message')} in deadline order in the queue {state.name}, "
                "which workers without rts_scheduler = 'edf' do not see. Set it for those of "
                "this queue, or rts queues --to-fifo moves them"
            )
        elif state.waiting and redis.vitals.live_workers and not any(map(_can_run, takers)):
            waiting = f"{counted(state.waiting, 'message')} in the queue {state.name}"
            if takers:
                found.append(
                    f"{waiting}, whose workers have no slots. Give one some, as with celery "
                    "control pool_grow"
                )
            else:
                found.append(
                    f"{waiting}, from which no worker with rts takes. Start one with "
                    f"-Q {state.name}"
                )
    more = len(found) - MAX_QUEUES
    if more > 0:
        others = counted(more, "more queue")
        found[MAX_QUEUES:] = [f"messages wait like this in {others}: rts watch shows which"]
    return found
