"""What commands ask both servers and this host. Each query has a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pymongo.errors import PyMongoError

from rts.cli.common import link_to_redis, patient_link
from rts.errors import RtsError, StoreUnavailable, short
from rts.ledger.shipper import Shipper
from rts.ledger.spool import Spool
from rts.link.scripts import pack
from rts.settings import Settings
from rts.urls import shown_url
from rts.views.status import LedgerState, RedisState, ServerState, ask_mongo, ask_redis

#: Seconds for Redis to take a connection and for each answer.
PATIENCE_S = 1.0
#: Seconds for all of MongoDB's answers, which its driver uses up while it looks for a server;
#: and for both servers, whatever hangs: longer, so that the driver can report its reason.
MONGO_S, DEADLINE_S = 1.5, 2.0


def query_servers(settings: Settings) -> tuple[RedisState, LedgerState]:
    """Query both servers at once; one that does not answer in time counts as not reachable."""
    mongo_url = shown_url(settings.mongo_url)
    redis_url = shown_url(settings.redis_url)
    late = f"no answer within {DEADLINE_S:g} s"
    found: dict[str, Any] = {
        "redis": RedisState(ServerState(redis_url, error=late)),
        "mongo": LedgerState(ServerState(mongo_url, error=late)),
    }

    def ask(name: str, question: Callable[[], Any], failed: Callable[[str], Any]) -> None:
        try:
            found[name] = question()
        except (RtsError, PyMongoError, OSError, ValueError) as exc:
            found[name] = failed(short(exc.__cause__ or exc))

    def ask_patiently() -> RedisState:
        link = patient_link(settings, PATIENCE_S, PATIENCE_S)
        try:
            return ask_redis(link, settings)
        finally:
            link.close()

    def no_redis(error: str) -> RedisState:
        return RedisState(ServerState(redis_url, error=error))

    def no_mongo(error: str) -> LedgerState:
        return LedgerState(ServerState(mongo_url, error=error))

    # Daemons: name resolution may hang for longer than any timeout of the drivers.
    threads = [
        threading.Thread(target=ask, args=arguments, daemon=True)
        for arguments in (
            ("redis", ask_patiently, no_redis),
            ("mongo", lambda: ask_mongo(settings, MONGO_S), no_mongo),
        )
    ]
    give_up_at = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, give_up_at - time.monotonic()))
    return found["redis"], found["mongo"]


def spooled_records(settings: Settings) -> int | None:
    """Return how many records wait on this host; ``None`` if that is not known: this user may
    not look, or Redis, which knows what has arrived, is unavailable.
    """
    spool = Spool(settings.spool_dir, settings.spool_max_bytes)
    try:
        with link_to_redis(settings) as link:
            return Shipper(spool, link, settings).waiting()
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
