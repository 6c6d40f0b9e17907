"""The state of the servers and the workers, for the commands and for Flower."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pymongo

from rts.keys import ASSIGNMENTS, REFUSED, TASKS
from rts.ledger.connection import connect
from rts.link.link import Link
from rts.link.replies import as_instant
from rts.link.scripts import pack
from rts.settings import Settings
from rts.unfinished.heartbeat import Heartbeat
from rts.urls import shown_url
from rts.views.fleet_state import Vitals, ask_vitals
from rts.views.json_values import utc
from rts.views.redis_facts import ask_facts, eviction_of, version_of


@dataclass(frozen=True)
class ServerState:
    """One server. ``error`` says why it is not reachable; the rest is ``None`` then."""

    url: str
    reachable: bool = False
    version: str | None = None
    #: One round trip on an open connection.
    latency_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class RedisState:
    """The state of Redis and of the fleet. If it does not answer, there is only ``server``."""

    server: ServerState
    vitals: Vitals = field(default_factory=Vitals)
    #: Its clock minus this host's, known to ± ``clock_error_s``.
    clock_offset_s: float | None = None
    clock_error_s: float | None = None
    #: Tasks that were published and have not ended, and those of them whose deadline
    #: has passed.
    open_tasks: int = 0
    overdue_tasks: int = 0
    #: Alerts that fire, and whether a leader evaluates them now.
    alerts: int = 0
    alerts_led: bool = False
    #: Messages that wait for each of ``rts_webhooks``.
    messages: tuple[int, ...] = ()
    #: Its ``maxmemory-policy``, if that evicts keys of rts when memory is short.
    eviction: str | None = None
    #: Why it refuses what rts writes, with what to do about it; ``None``: it says nothing.
    refusal: str | None = None


@dataclass(frozen=True)
class LedgerState:
    """The state of MongoDB. The numbers of documents are estimates."""

    server: ServerState
    documents: Mapping[str, int] = field(default_factory=dict)


def ask_redis(link: Link, settings: Settings) -> RedisState:
    """Query Redis over *link*, which stays open."""
    keys = settings.keys
    link.call(pack("TIME"))  # opens the connection
    sent_at, begin = time.time(), time.perf_counter()
    now = as_instant(*link.call(pack("TIME")))
    latency_s = time.perf_counter() - begin
    facts, refusal = ask_facts(link, settings)
    vitals, replies = ask_vitals(
        link,
        keys,
        pack("ZCARD", keys.open),
        pack("ZCOUNT", keys.open, "-inf", repr(now)),
        pack("ZCARD", keys.overdue),
        pack("HLEN", keys.alerts),
        pack("EXISTS", keys.alerting),
        *(pack("LLEN", keys.webhook(hook.id)) for hook in settings.webhooks),
    )
    waiting, due, late, alerts, led, *messages = map(int, replies)
    return RedisState(
        server=ServerState(shown_url(settings.redis_url), True, version_of(facts), latency_s),
        vitals=vitals,
        clock_offset_s=now - (sent_at + latency_s / 2),
        clock_error_s=latency_s / 2,
        open_tasks=waiting + late,
        overdue_tasks=due + late,
        alerts=alerts,
        alerts_led=bool(led),
        messages=tuple(messages),
        eviction=eviction_of(facts),
        refusal=refusal,
    )


def worker_document(worker: Heartbeat, now: float) -> dict[str, Any]:
    """Return a worker as JSON shows it, at the instant *now*."""
    age_s = worker.age_s(now)
    return {
        "instance": worker.instance,
        "worker": worker.worker,
        "host": worker.host,
        "pid": worker.pid,
        "concurrency": worker.slots,
        "seen_at": utc(now - age_s),
        "age_s": age_s,
        "silent": worker.is_silent(now),
        "load": worker.load,
        "queues": worker.queues,
        "ordered": worker.ordered,
    }


def ask_mongo(settings: Settings, timeout_s: float) -> LedgerState:
    """Query MongoDB, for at most *timeout_s* seconds."""
    database = connect(settings.mongo_url)
    client = database.client
    try:
        with pymongo.timeout(timeout_s):
            version = client.server_info()["version"]
            begin = time.perf_counter()
            client.admin.command("ping")
            latency_s = time.perf_counter() - begin
            documents = {
                name: database[name].estimated_document_count()
                for name in (TASKS, ASSIGNMENTS, REFUSED)
            }
    finally:
        client.close()
    server = ServerState(shown_url(settings.mongo_url), True, str(version), latency_s)
    return LedgerState(server, documents)
