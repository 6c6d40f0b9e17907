"""The working parts of one installation, built once per process and handed down."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import Any

from rts.clock import FleetClock
from rts.ledger.orders import Orders
from rts.ledger.sink import RedisRunSink
from rts.ledger.spool import Spool
from rts.ledger.supervise import Companion
from rts.lifecycle.ends import Ends
from rts.lifecycle.planning import Planner
from rts.lifecycle.runs import Runs
from rts.link.link import Link
from rts.load.board import LoadBoard
from rts.load.sampler import LoadSampler
from rts.settings import Settings
from rts.tau.cache import TauCache


@dataclass
class Parts:
    """What publishing needs; in a worker also what running needs."""

    settings: Settings
    clock: FleetClock
    link: Link
    taus: TauCache
    planner: Planner
    #: ``None`` in processes that are not a worker's.
    worker: WorkerParts | None = None

    @classmethod
    def build(cls, settings: Settings, app: Any) -> Parts:
        """Build the parts that publishing needs. Talks to no server."""

        def task_options(name: str) -> object:
            task = app.tasks.get(name)
            return None if task is None else getattr(task, "rts", None) or {}

        clock = FleetClock()
        link = Link(settings)
        taus = TauCache(link, settings, clock)
        return cls(settings, clock, link, taus, Planner(settings, taus, clock, task_options))


@dataclass
class WorkerParts:
    """What a worker needs. Built before the pool forks, so that children share it."""

    settings: Settings
    hostname: str
    instance: str
    concurrency: int
    runs: Runs
    ends: Ends
    sampler: LoadSampler
    companion: Companion

    @classmethod
    def build(
        cls, parts: Parts, hostname: str, concurrency: int, *, threaded: bool
    ) -> WorkerParts:
        """Build the parts for the worker *hostname*; *threaded*: tasks share a process."""
        settings = parts.settings
        instance = f"{hostname}/{os.getpid()}-{secrets.token_hex(4)}"
        spool = Spool(settings.spool_dir, settings.spool_max_bytes)
        sink = RedisRunSink(parts.link, settings, spool)
        sampler = LoadSampler(LoadBoard())
        return cls(
            settings,
            hostname,
            instance,
            concurrency,
            Runs(
                parts.clock,
                sampler,
                sink,
                worker=hostname,
                instance=instance,
                threaded=threaded,
            ),
            Ends(
                settings, parts.planner, parts.clock, sink, worker=hostname, instance=instance
            ),
            sampler,
            Companion(),
        )

    def start(self) -> None:
        """Start what accompanies the worker: the load sampler and the companion process."""
        self.sampler.start()
        orders = Orders(
            self.settings, self.hostname, self.instance, self.concurrency, os.getpid()
        )
        self.companion.start(orders.to_json())

    def stop(self) -> None:
        """Stop both; the companion gets a few seconds for a last drain."""
        self.sampler.stop()
        self.companion.stop()

    def in_child(self) -> None:
        """Let go, in a new pool child, of what belongs to the main process."""
        self.companion.close_in_child()
