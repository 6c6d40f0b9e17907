"""What commands ask both servers and this host. Each query has a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Generic, TypeVar

from pymongo.errors import PyMongoError

from rts.cli.common import link_to_redis
from rts.errors import RtsError, StoreUnavailable, short
from rts.ledger.shipper import Shipper
from rts.ledger.spool_folder import SpoolFolder
from rts.link.link import Link
from rts.link.scripts import pack
from rts.scheduling.discovery import FleetQueues, fleet_queues, queue_names
from rts.scheduling.queues import QueueState, ordered_channel, state_of
from rts.settings import Settings
from rts.urls import shown_url
from rts.views.status import LedgerState, RedisState, ServerState, ask_mongo, ask_redis

#: Seconds for Redis to take a connection and for each answer.
PATIENCE_S = 1.0
#: Seconds for all of MongoDB's answers, which its driver uses up while it looks for a server;
#: and for both servers, whatever hangs: longer, so that the driver can report its reason.
MONGO_S, DEADLINE_S = 1.5, 2.0

State = TypeVar("State")


def query_servers(settings: Settings) -> tuple[RedisState, LedgerState]:
    """Query both servers at once; one that does not answer in time counts as not reachable."""

    def redis_state() -> RedisState:
        with closing(Link.with_timeouts(settings, PATIENCE_S, PATIENCE_S)) as link:
            return ask_redis(link, settings)

    redis = _Query(redis_state, RedisState, settings.redis_url)
    ledger = _Query(lambda: ask_mongo(settings, MONGO_S), LedgerState, settings.mongo_url)
    give_up_at = time.monotonic() + DEADLINE_S
    return redis.wait(give_up_at), ledger.wait(give_up_at)


class _Query(Generic[State]):
    """Asks a server for its state, in a thread of its own: a daemon, since name resolution may
    hang for longer than any timeout of the drivers.
    """

    def __init__(
        self, ask: Callable[[], State], failed: Callable[[ServerState], State], url: str
    ) -> None:
        self._ask, self._failed, self._url = ask, failed, shown_url(url)
        self._found = self._without(f"no answer within {DEADLINE_S:g} s")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, until: float) -> State:
        """Return the state, or after the monotonic instant *until* that there is no answer."""
        self._thread.join(max(0.0, until - time.monotonic()))
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._ask()
        except (RtsError, PyMongoError, OSError, ValueError) as exc:
            self._found = self._without(short(exc.__cause__ or exc))

    def _without(self, error: str) -> State:
        return self._failed(ServerState(self._url, error=error))


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
    """Subtract the counts that were shown; what was counted since stays.

    Raises:
        StoreUnavailable: Redis is unavailable.
    """
    with link_to_redis(settings) as link:
        link.call(
            *(pack("HINCRBY", settings.keys.counters, k, -n) for k, n in counters.items())
        )
