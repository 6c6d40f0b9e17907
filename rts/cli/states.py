"""What the servers and the workers told of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ServerState:
    """One server. ``error`` says why it is not reachable; the rest is ``None`` then."""

    url: str
    reachable: bool = False
    version: str | None = None
    #: One round trip on a connection that stands.
    latency_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class WorkerState:
    """The last heartbeat of one life of a worker."""

    instance: str
    worker: str
    host: str | None
    pid: int | None
    concurrency: int | None
    seen_at: float
    age_s: float
    #: No heartbeat for so long that it counts as gone.
    silent: bool
    #: Fractions of what the worker may use.
    load: Mapping[str, Any]
    #: Names of those that it takes from; empty where it does not tell.
    queues: tuple[str, ...] = ()


@dataclass(frozen=True)
class RedisState:
    """What Redis tells. Instants are seconds since the epoch by its clock."""

    server: ServerState
    #: Time there minus time here, known to ± ``clock_error_s``.
    clock_offset_s: float | None = None
    clock_error_s: float | None = None
    outbox_length: int | None = None
    #: Instant of the oldest record in the outbox; ``None`` where it is empty.
    oldest_at: float | None = None
    #: Age of that, 0 where the outbox is empty.
    lag_s: float | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    workers: tuple[WorkerState, ...] = ()
    running: int | None = None
    overdue: int | None = None
    #: Tasks that were published and have not ended, and those of them whose deadline
    #: has passed.
    open_tasks: int | None = None
    overdue_tasks: int | None = None
    #: Alerts that fire.
    alerts: int | None = None
    #: Messages that wait for each of ``rts_webhooks``.
    messages: tuple[int, ...] = ()


@dataclass(frozen=True)
class LedgerState:
    """What MongoDB tells. The numbers of documents are estimates."""

    server: ServerState
    documents: Mapping[str, int] = field(default_factory=dict)
