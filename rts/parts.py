"""The working parts of one installation, built once per process and handed down."""

from __future__ import annotations

import logging
import os
import threading
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
from rts.scheduling.priority import prioritiser
from rts.scheduling.worker_capacity import kind_of_pool, prefetch_of, slots_of
from rts.settings import Settings
from rts.tau.cache import TauCache
from rts.unfinished.in_flight import new_instance
from rts.unfinished.open_tasks import OpenTasks
from rts.unfinished.shared_memory import SharedMemory
from rts.urls import shown_url

if TYPE_CHECKING:
    from rts.predictions.predictor import Predictor


class Parts:
    """What publishing needs; in a worker also what running needs."""

    def __init__(self, settings: Settings, app: Any) -> None:
        """Talks to no server."""

        def task_options(name: str) -> object:
            task = task_of(app, name)
            return None if task is None else getattr(task, "rts", None) or {}

        def native_chords() -> bool:
            # Such a backend starts chords in its own way; Celery's publishes chord_unlock.
            return getattr(app.backend.apply_chord, "__func__", None) is not Backend.apply_chord

        self.settings = settings
        self.app = app
        self.clock = clock = FleetClock()
        self.link = link = Link(settings)
        #: Where published tasks are noted; ``None`` where ``rts_open_max`` is 0.
        self.open_tasks = OpenTasks(link, settings) if settings.open_max else None
        take_stranded = self.open_tasks.take_stranded if self.open_tasks else list
        self.taus = TauCache(link, settings, clock, take_stranded=take_stranded)
        self.planner = Planner(settings, self.taus, clock, task_options, native_chords)
        #: ``None`` unless ``rts_scheduler`` is "priority".
        self.prioritise = prioritiser(app, settings, clock)
        #: ``None`` in processes that are not a worker's.
        self.worker: WorkerParts | None = None
        self.forget_predictions()

    def forget_predictions(self) -> None:
        """Begin anew with predictions and routes, also in a forked child."""
        #: Made for the first prediction or route.
        self.predictor: Predictor | None = None
        #: Held while it is made. Re-entrant: a signal handler that publishes may interrupt it.
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


class WorkerParts:
    """What running tasks needs in *worker*, Celery's. Built before the pool forks, so that
    children share it.
    """

    def __init__(self, parts: Parts, worker: Any) -> None:
        self._settings = settings = parts.settings
        self._worker = worker
        self._instance = new_instance(worker.hostname)
        names = {"worker": worker.hostname, "instance": self._instance}
        #: Whether tasks share a process.
        self.threaded = kind_of_pool(worker.pool_cls) not in ("prefork", "solo")
        # With autoscaling, the most tasks that may run at a time.
        concurrency = getattr(worker, "max_concurrency", None) or worker.concurrency or 1
        self.memory = SharedMemory.for_concurrency(concurrency, tasks_per_run(worker.app))
        clock = parts.clock
        self.memory.clock_offset_s[0] = clock.offset_s
        clock.follow(self.memory.clock_offset_s)
        spool = Spool(settings.spool_dir, settings.spool_max_bytes)
        self.sink = SpoolRunSink(spool, parts.link, settings)
        self._sampler = LoadSampler(self.memory.load)
        self.runs = Runs(
            clock,
            self._sampler,
            self.memory.notes,
            self.sink,
            **names,
            threaded=self.threaded,
        )
        self.ends = Ends(parts.planner, clock, self.memory, self.sink, **names)
        self._companion = Companion(self._look)
        self._listener = Listener(settings, self._instance)

    def start(self) -> None:
        """Start what runs beside the worker, and log it for whoever has just added rts."""
        self._sampler.start()
        self._companion.start(self._instructions().to_json(), pass_fds=(self.memory.fd,))
        self._listener.start()
        settings = self._settings
        health.logger.info(
            "rts uses Redis at %s and MongoDB at %s; order of the queues: %s",
            shown_url(settings.redis_url),
            shown_url(settings.mongo_url),
            settings.scheduler or "the broker's",
        )

    def stop(self) -> None:
        """Stop all of it; the companion gets a few seconds for a last drain. Idempotent."""
        self._listener.stop()
        self._sampler.stop()
        self.memory.acknowledged.clear()
        self.sink.close()  # before the companion reads the files for the last time
        self._companion.stop()

    def _instructions(self) -> Instructions:
        """Return what the companion has to know. Not before the start: only then is the logging
        set up, and the process may be a fork of the one that built this.
        """
        settings, worker = self._settings, self._worker
        return Instructions(
            settings,
            worker=worker.hostname,
            instance=self._instance,
            pid=os.getpid(),
            memory_fd=self.memory.fd,
            note_slots=self.memory.notes.slots,
            logfile=_logfile(worker),
            # Of the logger that takes all INFO of the companion.
            loglevel=logging.getLogger("rts.drain").getEffectiveLevel(),
            queues=tuple(worker.app.amqp.queues.consume_from),
            ahead=0 if settings.scheduler == "edf" else prefetch_of(worker),
            # Only a worker without an event loop, as its broker's transport has none, waits.
            pool_waits_s=0.0
            if worker.use_eventloop
            else float(worker.worker_lost_wait or 10.0),
        )

    def _look(self) -> None:
        """Tell the companion what has changed. Runs at its start and once a second."""
        self.sink.append_counts()
        self.memory.received.share()
        worker = self._worker
        with health.guarded("capacity"):  # the previous values remain
            # Remote control may change the slots, and the queues that it consumes from.
            if worker.pool is not None and worker.pool.active:
                self.memory.worker_slots[0] = slots_of(worker)
            consumer = getattr(getattr(worker, "consumer", None), "task_consumer", None)
            if consumer is not None:  # else it is connecting
                self._companion.set_queues([queue.name for queue in consumer.queues])


def _logfile(worker: Any) -> str | None:
    """Return the file that *worker*'s main process logs to: Celery fills in %n, %h, %i."""
    from celery.utils.nodenames import node_format

    logfile = getattr(worker, "logfile", None)
    return node_format(logfile, worker.hostname) if isinstance(logfile, str) else None
