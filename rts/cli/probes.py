"""What ``rts status`` asks the servers and this host. Each answer comes in time or
counts as none.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pymongo.errors import PyMongoError

from rts.cli.shared import BREAKER_S, link_to_redis, short
from rts.cli.states import LedgerState, RedisState, ServerState, WorkerState
from rts.errors import RtsError, StoreUnavailable
from rts.keys import ASSIGNMENTS, REFUSED, TASKS
from rts.ledger.connection import connect, database_of
from rts.ledger.heartbeat import LOST_AFTER_S
from rts.ledger.ship import Shipper
from rts.ledger.spool import Spool
from rts.link.link import Link, replies_as_text
from rts.link.scripts import pack
from rts.records import Execution
from rts.settings import Settings
from rts.urls import shown_url

#: Seconds for Redis to take a connection and for each answer.
PATIENCE_S = 1.0
#: Seconds for all answers of MongoDB, whose driver looks for a server until they are
#: over; and for both servers, whatever hangs: so that the driver's reason is heard.
MONGO_S, DEADLINE_S = 1.5, 2.0
#: Running notes that are fetched at once.
CHUNK = 500


def look(settings: Settings) -> tuple[RedisState, LedgerState]:
    """Ask both servers at once; answers that are not there in time count as none."""
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

    def no_redis(error: str) -> RedisState:
        return RedisState(ServerState(redis_url, error=error))

    def no_mongo(error: str) -> LedgerState:
        return LedgerState(ServerState(mongo_url, error=error))

    # Daemons: a name server may hang for longer than any timeout of the drivers.
    threads = [
        threading.Thread(target=ask, args=arguments, daemon=True)
        for arguments in (
            ("redis", lambda: ask_redis(settings), no_redis),
            ("mongo", lambda: ask_mongo(settings), no_mongo),
        )
    ]
    give_up_at = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, give_up_at - time.monotonic()))
    return found["redis"], found["mongo"]


def ask_redis(settings: Settings, link: Link | None = None) -> RedisState:
    """Return what Redis tells; over *link* where one is given, which stays open.

    Raises:
        StoreUnavailable: it does not answer.
    """
    keys = settings.keys
    mine = link is None
    if link is None:
        link = Link(
            replace(
                settings,
                connect_timeout=PATIENCE_S,
                timeout=PATIENCE_S,
                breaker_period=BREAKER_S,
            )
        )
    try:
        link.call(pack("TIME"))  # the first one makes the connection
        sent_at, begin = time.time(), time.perf_counter()
        ((whole, micros),) = link.call(pack("TIME"))
        latency_s = time.perf_counter() - begin
        now = int(whole) + int(micros) / 1e6
        try:
            (info,) = link.call(pack("INFO", "server"))
        except StoreUnavailable:  # a managed server may keep that to itself
            info = b""
        length, oldest, counters, beats, fields, waiting, due, late, *rest = link.call(
            pack("XLEN", keys.outbox),
            pack("XRANGE", keys.outbox, "-", "+", "COUNT", "1"),
            pack("HGETALL", keys.counters),
            pack("HGETALL", keys.workers),
            pack("HKEYS", keys.running),
            pack("ZCARD", keys.open),
            pack("ZCOUNT", keys.open, "-inf", repr(now)),
            pack("ZCARD", keys.overdue),
            pack("HLEN", keys.alerts),
            *(pack("LLEN", keys.webhook(hook.id)) for hook in settings.webhooks),
        )
        overdue = running = 0
        for i in range(0, len(fields), CHUNK):
            (notes,) = link.call(pack("HMGET", keys.running, *fields[i : i + CHUNK]))
            running += sum(note is not None for note in notes)
            overdue += sum(_is_overdue(note, now) for note in notes if note is not None)
    finally:
        if mine:
            link.close()
    oldest_at = int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else None
    return RedisState(
        server=ServerState(shown_url(settings.redis_url), True, _version(info), latency_s),
        clock_offset_s=now - (sent_at + latency_s / 2),
        clock_error_s=latency_s / 2,
        outbox_length=int(length),
        oldest_at=oldest_at,
        lag_s=0.0 if oldest_at is None else max(0.0, now - oldest_at),
        counters={
            name: int(n)
            for name, n in sorted(replies_as_text(counters).items())
            if n.isdigit() and int(n)
        },
        workers=tuple(_workers(replies_as_text(beats), now)),
        running=running,
        overdue=overdue,
        open_tasks=int(waiting) + int(late),
        overdue_tasks=int(due) + int(late),
        alerts=int(rest[0]),
        messages=tuple(int(n) for n in rest[1:]),
    )


def ask_mongo(settings: Settings) -> LedgerState:
    """Return what MongoDB tells.

    Raises:
        StoreUnavailable, ConfigurationError, PyMongoError: it does not answer.
    """
    import pymongo

    client = connect(settings.mongo_url)
    try:
        with pymongo.timeout(MONGO_S):
            version = client.server_info()["version"]
            begin = time.perf_counter()
            client.admin.command("ping")
            latency_s = time.perf_counter() - begin
            database = database_of(client)
            documents = {
                name: database[name].estimated_document_count()
                for name in (TASKS, ASSIGNMENTS, REFUSED)
            }
    finally:
        client.close()
    server = ServerState(shown_url(settings.mongo_url), True, str(version), latency_s)
    return LedgerState(server, documents)


def spooled_records(settings: Settings) -> int | None:
    """Return the records that wait on this host; ``None`` where that cannot be told:
    this user may not look, or Redis, which knows what it has, is away.
    """
    spool = Spool(settings.spool_dir, settings.spool_max_bytes)
    try:
        with link_to_redis(settings) as link:
            return Shipper(spool, link, settings).waiting()
    except (OSError, StoreUnavailable):
        return None


def forget_counters(settings: Settings, counters: Mapping[str, int]) -> None:
    """Take off what was shown; what was counted since stays.

    Raises:
        StoreUnavailable: Redis is away.
    """
    link = Link(settings)
    try:
        link.call(
            *(pack("HINCRBY", settings.keys.counters, k, -n) for k, n in counters.items())
        )
    finally:
        link.close()


def _version(info: bytes) -> str | None:
    for line in info.decode("utf-8", "replace").splitlines():
        if line.startswith("redis_version:"):
            return line.partition(":")[2]
    return None


def _is_overdue(note: bytes, now: float) -> bool:
    try:
        return bool(Execution.from_json(note).deadline < now)
    except (ValueError, TypeError):
        return False


def _workers(beats: Mapping[str, str], now: float) -> list[WorkerState]:
    """Return the heartbeats that can be read, sorted by worker."""
    workers = []
    for instance, beat in beats.items():
        try:
            told = json.loads(beat)
            age_s = max(0.0, now - float(told["seen_at"]))
            load = told.get("load")
            state = WorkerState(
                instance=instance,
                worker=str(told.get("worker") or instance),
                host=told.get("host"),
                pid=told.get("pid"),
                concurrency=told.get("concurrency"),
                seen_at=now - age_s,
                age_s=age_s,
                silent=age_s > LOST_AFTER_S,
                load=load if isinstance(load, Mapping) else {},
                queues=tuple(map(str, told.get("queues") or ())),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # of another version
        workers.append(state)
    return sorted(workers, key=lambda state: (state.worker, state.instance))
