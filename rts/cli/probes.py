"""What commands ask both servers and this host. Each query has a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

from rts.cli.common import link_to_redis, outages_not_logged
from rts.errors import StoreUnavailable
from rts.ledger.shipper import Shipper
from rts.ledger.spool_folder import SpoolFolder
from rts.link.link import Link
from rts.link.scripts import pack
from rts.scheduling.discovery import FleetQueues, fleet_queues, queue_names
from rts.scheduling.queues import ordered_channel, state_of
from rts.settings import Settings
from rts.urls import shown_url
from rts.views.background import BackgroundQuery
from rts.views.fleet_time import FleetTime
from rts.views.queue_state import QueueState
from rts.views.status import LedgerState, RedisState, ServerState, ask_mongo, ask_redis

#: Seconds for Redis to take a connection and for each answer.
PATIENCE_S = 1.0
#: Seconds for all of MongoDB's answers, which its driver uses up while it looks for a server;
#: and for both servers, whatever hangs: longer, so that the driver can report its reason.
MONGO_S, DEADLINE_S = 1.5, 2.0


def query_servers(settings: Settings) -> tuple[RedisState, LedgerState]:
    """Query both servers at once; one that does not answer in time counts as not reachable."""

    def redis_state() -> RedisState:
        with closing(Link.with_timeouts(settings, PATIENCE_S, PATIENCE_S)) as link:
            return ask_redis(link, settings)

    redis = BackgroundQuery("Redis", redis_state)
    ledger = BackgroundQuery("MongoDB", lambda: ask_mongo(settings, MONGO_S))
    redis.ask()
    ledger.ask()
    give_up_at = time.monotonic() + DEADLINE_S
    of_redis, redis_error = redis.answer(give_up_at)
    of_ledger, ledger_error = ledger.answer(give_up_at)
    return (
        of_redis or RedisState(_unreachable(settings.redis_url, redis_error)),
        of_ledger or LedgerState(_unreachable(settings.mongo_url, ledger_error)),
    )


def _unreachable(url: str, error: str) -> ServerState:
    return ServerState(shown_url(url), error=error or f"no answer within {DEADLINE_S:g} s")


def query_broker(app: Any, settings: Settings, redis: RedisState) -> list[QueueState]:
    """Return what waits in the queues of the app, of its workers and of open tasks; nothing if
    the broker is not Redis.

    Raises:
        StoreUnavailable: a server does not answer.
    """
    fleet = FleetQueues()
    if redis.server.reachable:
        with link_to_redis(settings) as link:
            fleet = fleet_queues(link, settings)
    with ordered_channel(app, settings, PATIENCE_S) as channel:
        if channel is None:
            return []
        names = queue_names(app, settings, channel, fleet)
        return [state_of(channel, name) for name in names]


def fleet_now(settings: Settings) -> datetime:
    """Return the time by the clock of Redis, or this host's if that does not answer."""
    with (
        closing(Link.with_timeouts(settings, PATIENCE_S, PATIENCE_S)) as link,
        outages_not_logged(),
    ):
        return FleetTime(link, 3 * PATIENCE_S).measured()  # the link fails sooner


@contextmanager
def noted(wrong: list[str]) -> Iterator[None]:
    """Add an outage to *wrong* instead of raising it: what is known is shown all the same."""
    try:
        yield
    except StoreUnavailable as exc:
        wrong.append(str(exc))


def spooled_records(settings: Settings) -> int | None:
    """Return how many records wait on this host; ``None`` if that is not known: this user may
    not look, or Redis, which knows what has arrived, is unavailable.
    """
    try:
        with link_to_redis(settings) as link:
            return Shipper(SpoolFolder(settings.spool_dir), link, settings).waiting()
    except (OSError, StoreUnavailable):
        return None


def subtract_counters(settings: Settings, counters: Mapping[str, int]) -> None:
    """Subtract the counts that were shown; what was counted since stays."""
    key = settings.keys.counters
    with link_to_redis(settings) as link:
        link.call(*(pack("HINCRBY", key, name, -n) for name, n in counters.items()))
