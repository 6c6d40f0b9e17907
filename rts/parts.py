"""The working parts of one installation, built once per process and handed down."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.backends.base import Backend

from rts import health
from rts.clock import FleetClock
from rts.companion.instructions import Instructions
from rts.companion.supervisor import Companion
from rts.ledger.sink import SpoolRunSink
from rts.ledger.spool import Spool
from rts.lifecycle.batches import tasks_per_run
from rts.lifecycle.ends import Ends
from rts.lifecycle.owners import task_of
from rts.lifecycle.planning import Planner
from rts.lifecycle.runs import Runs
from rts.link.link import Link
from rts.listener import Listener
from rts.load.sampler import LoadSampler
from rts.scheduling.priority import Prioritise, prioritiser
from rts.scheduling.worker_capacity import kind_of_pool, prefetch_of, slots_of
from rts.settings import Settings
from rts.tau.cache import TauCache
from rts.unfinished.in_flight import new_instance
from rts.unfinished.open_tasks import OpenTasks
from rts.unfinished.shared_memory import SharedMemory

if TYPE_CHECKING:
    from rts.predictions.predictor import Predictor


@dataclass
class Parts:
    """What publishing needs; in a worker also what running needs."""

    app: Any
    settings: Settings
    clock: FleetClock
    link: Link
    taus: TauCache
    planner: Planner
    #: ``None`` unless ``rts_scheduler`` is "priority".
    prioritise: Prioritise | None = None
    #: Where published tasks are noted; ``None`` where ``rts_open_max`` is 0.
    open_tasks: OpenTasks | None = None
    #: ``None`` in processes that are not a worker's.
    worker: WorkerParts | None = None
    #: Made for the first prediction or route.
    predictor: Predictor | None = None
    #: Held while it is made. Re-entrant: a signal handler that publishes may interrupt it.
    predicting: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def build(cls, settings: Settings, app: Any) -> Parts:
        """Build the parts that publishing needs. Talks to no server."""

        def task_options(name: str) -> object:
            task = task_of(app, name)
            return None if task is None else getattr(task, "rts", None) or {}

        def native_chords() -> bool:
            # Such a backend starts chords in its own way; Celery's publishes chord_unlock.
            return getattr(app.backend.apply_chord, "__func__", None) is not Backend.apply_chord

        clock = FleetClock()
        link = Link(settings)
        open_tasks = OpenTasks(link, settings) if settings.open_max else None
        take_stranded = open_tasks.take_stranded if open_tasks else list
        taus = TauCache(link, settings, clock, take_stranded=take_stranded)
        planner = Planner(settings, taus, clock, task_options, native_chords)
        prioritise = prioritiser(app, settings, clock)
        return cls(app, settings, clock, link, taus, planner, prioritise, open_tasks)

    def forget_predictions(self) -> None:
        """Begin anew with predictions and routes, in a forked child."""
        self.predictor = None
        self.predicting = threading.RLock()

    def close(self) -> None:
        """Stop what runs in the background for the app, and close its connections. Hooks
        of a worker that still run connect again.
        """
        if self.open_tasks is not None:
            self.open_tasks.stop()
        if self.predictor is not None:
            self.predictor.close()
        self.link.close()


@dataclass
class WorkerParts:
    """What a worker needs. Built before the pool forks, so that children share it."""

    runs: Runs
    ends: Ends
    sampler: LoadSampler
    memory: SharedMemory
    sink: SpoolRunSink
    companion: Companion
    #: Returns the companion's instructions. Called at the start, not before: only then is the
    #: logging set up, and the process may be a fork of the one that built this.
    instructions: Callable[[], Instructions]
    listener: Listener
    #: Whether tasks share a process.
    threaded: bool

    @classmethod
    def build(cls, parts: Parts, worker: Any) -> WorkerParts:
        """Build the parts of *worker*, Celery's."""
        settings, clock, hostname = parts.settings, parts.clock, worker.hostname
        threaded = kind_of_pool(worker.pool_cls) not in ("prefork", "solo")
        # With autoscaling, the most tasks that may run at a time.
        concurrency = getattr(worker, "max_concurrency", None) or worker.concurrency or 1
        instance = new_instance(hostname)
        memory = SharedMemory.for_concurrency(concurrency, tasks_per_run(worker.app))
        memory.clock_offset_s[0] = clock.offset_s
        clock.follow(memory.clock_offset_s)
        spool = Spool(settings.spool_dir, settings.spool_max_bytes)
        sink = SpoolRunSink(spool, parts.link, settings)
        sampler = LoadSampler(memory.load)

        def on_look() -> None:
            sink.append_counts()
            memory.received.share()
            _update_capacity(worker, memory, companion)

        companion = Companion(on_look=on_look)
        return cls(
            runs=Runs(
                clock,
                sampler,
                memory.notes,
                sink,
                worker=hostname,
                instance=instance,
                threaded=threaded,
            ),
            ends=Ends(
                parts.planner,
                clock,
                memory,
                sink,
                worker=hostname,
                instance=instance,
            ),
            sampler=sampler,
            memory=memory,
            sink=sink,
            companion=companion,
            instructions=partial(_instructions, settings, worker, instance, memory),
            listener=Listener(settings, instance),
            threaded=threaded,
        )

    def start(self) -> None:
        """Start what accompanies the worker: the load sampler and the companion process."""
        self.sampler.start()
        self.companion.start(self.instructions().to_json(), pass_fds=(self.memory.fd,))
        self.listener.start()

    def stop(self) -> None:
        """Stop all of it; the companion gets a few seconds for a last drain. Idempotent."""
        self.listener.stop()
        self.sampler.stop()
        self.memory.acknowledged.clear()
        self.sink.close()  # before the companion reads the files for the last time
        self.companion.stop()


def _instructions(
    settings: Settings, worker: Any, instance: str, memory: SharedMemory
) -> Instructions:
    """Return what the companion of *worker*, Celery's, has to know."""
    return Instructions(
        settings,
        worker=worker.hostname,
        instance=instance,
        pid=os.getpid(),
        memory_fd=memory.fd,
        note_slots=memory.notes.slots,
        logfile=_logfile(worker),
        # Of the logger that takes all INFO of the companion.
        loglevel=logging.getLogger("rts.drain").getEffectiveLevel(),
        queues=tuple(worker.app.amqp.queues.consume_from),
        ahead=0 if settings.scheduler == "edf" else prefetch_of(worker),
        # Only a worker without an event loop, as its broker's transport has none, waits.
        pool_waits_s=0.0 if worker.use_eventloop else float(worker.worker_lost_wait or 10.0),
    )


def _update_capacity(worker: Any, memory: SharedMemory, companion: Companion) -> None:
    """Tell *companion* how many tasks *worker*, Celery's, may run at a time now, and which
    queues it consumes from: remote control may change both.
    """
    with health.guarded("capacity"):  # the previous values remain
        if worker.pool is not None and worker.pool.active:
            memory.worker_slots[0] = slots_of(worker)
        consumer = getattr(getattr(worker, "consumer", None), "task_consumer", None)
        if consumer is not None:  # else it is connecting
            companion.set_queues([queue.name for queue in consumer.queues])


def _logfile(worker: Any) -> str | None:
    """Return the file that *worker*'s main process logs to: Celery fills in %n, %h, %i."""
    from celery.utils.nodenames import node_format

    logfile = getattr(worker, "logfile", None)
    return node_format(logfile, worker.hostname) if isinstance(logfile, str) else None
