"""The metrics, for Prometheus: a collector over Redis, MongoDB and the broker.

What is counted stands in Redis for the whole fleet (:mod:`rts.ledger.counting`), so one
exporter tells it all and a restart of anything takes nothing back. Objectives come from
the ledger, by :mod:`rts.views.slo`. Each of the three servers is asked in a thread of
its own: one that is away costs its own metrics, and a scrape a few seconds at most.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, TypeVar

import pymongo
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import CollectorRegistry
from pymongo.errors import PyMongoError

from rts import health
from rts.errors import RtsError
from rts.ledger.connection import connect, database_of
from rts.ledger.counting import MET
from rts.link.link import Link
from rts.objectives import objective_of
from rts.settings import Settings
from rts.views.readings import BOUNDS, Histogram, QueueReading, Reading, missed, read
from rts.views.slo import Standing, standings

logger = logging.getLogger("rts")

T = TypeVar("T")

#: Seconds that one server gets for its answers.
CONNECT_TIMEOUT_S, TIMEOUT_S, MONGO_S = 0.5, 1.0, 2.0
#: Seconds that a scrape waits for all of them.
PATIENCE_S = 2.5
#: Seconds without a new attempt after a failure: a scrape just asks again.
BREAKER_S = 1e-3

#: What a metric is called, by the kind of a histogram.
_HISTOGRAMS = {
    "runtime": "Service time of runs, by task type.",
    "queueing_delay": "Time from arrival to start, by task type.",
    "lateness": "End minus deadline of tasks that have ended, by task type; negative is early.",
}


class _Source(Generic[T]):
    """Asks one server in a thread of its own, one question at a time."""

    def __init__(self, name: str, question: Callable[[], T]) -> None:
        self.name = name
        self._question = question
        self._thread: threading.Thread | None = None
        #: The last answer, ``None`` where the server failed; and when it came.
        self._answer: T | None = None
        self._answered_at = -1e9

    def ask(self) -> None:
        """Ask, unless the last question is still open."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()

    def answer(self, until: float, max_age_s: float) -> T | None:
        """Return the answer, having waited for it until the monotonic instant *until*;
        else one that is at most *max_age_s* old; else ``None``.
        """
        assert self._thread is not None
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive() and time.monotonic() - self._answered_at > max_age_s:
            return None
        return self._answer

    def _ask(self) -> None:
        try:
            answer: T | None = self._question()
        except (RtsError, PyMongoError, OSError) as exc:
            logger.debug("rts: %s cannot be read: %s", self.name, type(exc).__name__)
            answer = None
        except Exception as exc:  # noqa: BLE001  a scrape must be answered
            health.hook_failed("metrics", exc)
            answer = None
        self._answer, self._answered_at = answer, time.monotonic()


class RtsCollector:
    """A collector of prometheus_client. Never raises; registers itself nowhere.

    *queues* tells what waits in the broker, where that is known. *patience_s* is what
    a scrape waits for, and *max_age_s* how old an answer may be where it is not there
    by then.
    """

    def __init__(
        self,
        settings: Settings,
        queues: Callable[[], Sequence[QueueReading]] | None = None,
        *,
        patience_s: float = PATIENCE_S,
        max_age_s: float = 0.0,
    ) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._max_age_s = max_age_s
        self._link = Link(
            replace(
                settings,
                connect_timeout=CONNECT_TIMEOUT_S,
                timeout=TIMEOUT_S,
                breaker_period=BREAKER_S,
            )
        )
        self._client: Any = None
        self._redis = _Source("Redis", lambda: read(self._link, settings))
        self._mongo = _Source("MongoDB", self._standings)
        self._broker = None if queues is None else _Source("the broker", queues)
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Any]:
        """Return nothing: so that registering asks no server."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Return the metrics as they are now."""
        with self._lock:
            sources: list[_Source[Any]] = [self._redis, self._mongo]
            if self._broker is not None:
                sources.append(self._broker)
            for source in sources:
                source.ask()
            until = time.monotonic() + self._patience_s
            reading = self._redis.answer(until, self._max_age_s)
            stands = self._mongo.answer(until, self._max_age_s)
            waiting = (
                None if self._broker is None else self._broker.answer(until, self._max_age_s)
            )
        yield _info()
        up = GaugeMetricFamily("rts_up", "Whether a server answers: 1 or 0.", labels=["server"])
        up.add_metric(["redis"], float(reading is not None))
        up.add_metric(["mongodb"], float(stands is not None))
        if self._broker is not None:
            up.add_metric(["broker"], float(waiting is not None))
        yield up
        yield _targets(self._settings)
        if reading is not None:
            yield from _counts(reading)
            yield _verdicts(reading, self._settings)
            yield from _gauges(reading)
        if stands is not None:
            yield from _objectives(stands)
        if waiting is not None:
            yield from _queues(waiting)

    def close(self) -> None:
        """Close the connections."""
        self._link.close()
        if self._client is not None:
            self._client.close()

    def _standings(self) -> list[Standing]:
        if self._client is None:
            self._client = connect(self._settings.mongo_url)
        database = database_of(self._client, self._settings.mongo_url)
        with pymongo.timeout(MONGO_S):
            return standings(database, self._settings, datetime.now(timezone.utc))


def register(
    registry: CollectorRegistry,
    settings: Settings,
    queues: Callable[[], Sequence[QueueReading]] | None = None,
    *,
    patience_s: float = 0.25,
    max_age_s: float = 60.0,
) -> RtsCollector:
    """Add the metrics to those of a process that has others to do than to wait, such as
    Flower: a scrape shows what was known the last time where a server takes its time.
    """
    collector = RtsCollector(settings, queues, patience_s=patience_s, max_age_s=max_age_s)
    registry.register(collector)
    return collector


def _info() -> Any:
    try:
        installed = version("rts")
    except PackageNotFoundError:  # a checkout
        installed = "unknown"
    return InfoMetricFamily("rts", "This installation of rts.", value={"version": installed})


def _counts(reading: Reading) -> Iterator[Any]:
    runs = CounterMetricFamily(
        "rts_runs",
        "Runs that ended, by task type, task name and state; retried ones included.",
        labels=["task_type", "task", "state"],
    )
    for run, n in sorted(reading.runs.items()):
        runs.add_metric(run, n)
    yield runs
    deadlines = CounterMetricFamily(
        "rts_deadlines",
        "Tasks whose deadline was met or missed, by task type, task name and queue.",
        labels=["task_type", "task", "queue", "verdict"],
    )
    verdicts: dict[tuple[str, str, str, str], int] = {}
    for (task_type, task, queue, cause), n in reading.verdicts.items():
        key = (task_type, task, queue, MET if cause == MET else "missed")
        verdicts[key] = verdicts.get(key, 0) + n
    for labels, n in sorted(verdicts.items()):
        deadlines.add_metric(labels, n)
    yield deadlines
    misses = CounterMetricFamily(
        "rts_misses",
        "Missed deadlines by cause: late, overdue (known before the end), or what ended it.",
        labels=["task_type", "cause"],
    )
    for miss, n in sorted(missed(reading.verdicts).items()):
        misses.add_metric(miss, n)
    yield misses
    for kind, text in _HISTOGRAMS.items():
        family = HistogramMetricFamily(f"rts_{kind}_seconds", text, labels=["task_type"])
        for (of, task_type), histogram in sorted(reading.histograms.items()):
            if of == kind:
                buckets, total = _cumulated(kind, histogram)
                family.add_metric([task_type], buckets, total)
        yield family
    refused = CounterMetricFamily(
        "rts_refused",
        "Input that was refused or dropped, and failures that were survived, by kind.",
        labels=["what"],
    )
    for name, n in sorted(reading.counters.items()):
        if name != "breaker_opened":
            refused.add_metric([name], n)
    yield refused
    yield CounterMetricFamily(
        "rts_breaker_opened",
        "Times that a process gave up on Redis for a while.",
        value=reading.counters.get("breaker_opened", 0),
    )


def _cumulated(kind: str, histogram: Histogram) -> tuple[list[tuple[str, float]], float | None]:
    """Return the buckets of a histogram, each with all below it, and its sum.

    Negative values make a sum that may fall, which OpenMetrics forbids: none then.
    """
    buckets: list[tuple[str, float]] = []
    n = 0
    for bound in BOUNDS[kind]:
        n += histogram.counts.get(repr(bound), 0)
        buckets.append((repr(bound), n))
    buckets.append(("+Inf", n + histogram.counts.get("+Inf", 0)))
    return buckets, None if BOUNDS[kind][0] < 0 else histogram.sum


def _gauges(reading: Reading) -> Iterator[Any]:
    tau = GaugeMetricFamily(
        "rts_tau_seconds",
        "Learned runtime, by task type and task name (empty: of the whole type).",
        labels=["task_type", "task"],
    )
    for (task_type, task), value in sorted(
        reading.taus.items(), key=lambda item: (item[0][0], item[0][1] or "")
    ):
        tau.add_metric([task_type, task or ""], value)
    yield tau
    yield GaugeMetricFamily(
        "rts_outbox_records",
        "Records on their way to the ledger.",
        value=reading.outbox_length,
    )
    yield GaugeMetricFamily(
        "rts_outbox_lag_seconds",
        "Age of the oldest of them; 0 where there is none.",
        value=reading.outbox_lag_s,
    )
    waiting = GaugeMetricFamily(
        "rts_open_tasks",
        "Tasks that were published and have not ended, before their deadline, by queue.",
        labels=["queue"],
    )
    for queue, n in sorted(reading.open_tasks.items()):
        waiting.add_metric([queue], n)
    yield waiting
    overdue = GaugeMetricFamily(
        "rts_overdue_tasks",
        "Tasks that have not ended by their deadline, by queue: a worker runs them, or "
        "nobody does.",
        labels=["queue", "state"],
    )
    for state, by_queue in (
        ("running", reading.overdue_running),
        ("waiting", reading.overdue_waiting),
    ):
        for queue, n in sorted(by_queue.items()):
            overdue.add_metric([queue, state], n)
    yield overdue
    slots = GaugeMetricFamily(
        "rts_worker_slots", "Tasks that a worker runs at a time.", labels=["worker"]
    )
    load = GaugeMetricFamily(
        "rts_worker_load_ratio",
        "Load of a worker as a share of what it may use, by resource.",
        labels=["worker", "resource"],
    )
    for worker in reading.workers:
        slots.add_metric([worker.worker], worker.slots)
        for resource, value in worker.loads.items():
            load.add_metric([worker.worker, resource], value)
    yield slots
    yield load


def _targets(settings: Settings) -> Any:
    target = GaugeMetricFamily(
        "rts_slo_target_ratio",
        "Share of tasks that shall be in time, by objective.",
        labels=["objective"],
    )
    for objective, share in settings.slo.items():
        target.add_metric([objective], share)
    return target


def _verdicts(reading: Reading, settings: Settings) -> Any:
    """Return the verdicts by objective. Each has both series from the start: a counter
    that began with the first miss would hide it from a rate.
    """
    family = CounterMetricFamily(
        "rts_slo_verdicts",
        "Tasks whose deadline was met or missed, by the objective that is meant for them.",
        labels=["objective", "verdict"],
    )
    counts = {(key, verdict): 0 for key in settings.slo for verdict in (MET, "missed")}
    for (task_type, task, queue, cause), n in reading.verdicts.items():
        key = objective_of(settings.slo, task_type, task, queue)
        if key is not None:
            counts[key, MET if cause == MET else "missed"] += n
    for labels, n in counts.items():
        family.add_metric(labels, n)
    return family


def _objectives(stands: Iterable[Standing]) -> Iterator[Any]:
    left = GaugeMetricFamily(
        "rts_slo_budget_left_ratio",
        "Share of the error budget that is left, by objective; below 0 it is overspent.",
        labels=["objective"],
    )
    burn = GaugeMetricFamily(
        "rts_slo_burn_rate",
        "Times the pace that uses up the budget exactly, by objective and window.",
        labels=["objective", "window"],
    )
    valid = GaugeMetricFamily(
        "rts_slo_window_verdicts",
        "Verdicts in a window, by objective and window.",
        labels=["objective", "window"],
    )
    bad = GaugeMetricFamily(
        "rts_slo_window_missed",
        "Missed deadlines in a window, by objective and window.",
        labels=["objective", "window"],
    )
    for standing in stands:
        left.add_metric([standing.objective], standing.budget_left_ratio)
        for name, window in standing.windows.items():
            burn.add_metric([standing.objective, name], window.burn_rate)
            valid.add_metric([standing.objective, name], window.valid)
            bad.add_metric([standing.objective, name], window.valid - window.good)
    yield from (left, burn, valid, bad)


def _queues(waiting: Iterable[QueueReading]) -> Iterator[Any]:
    messages = GaugeMetricFamily(
        "rts_queue_messages",
        "Messages that wait, by queue and form: ordered, demoted (hopeless) or plain.",
        labels=["queue", "form"],
    )
    hopeless = GaugeMetricFamily(
        "rts_hopeless_tasks",
        "Messages that cannot be in time any more, by queue.",
        labels=["queue"],
    )
    for queue in waiting:
        name = queue.queue[:200]
        messages.add_metric([name, "ordered"], queue.ordered)
        messages.add_metric([name, "demoted"], queue.demoted)
        messages.add_metric([name, "plain"], queue.plain)
        hopeless.add_metric([name], queue.hopeless)
    yield from (messages, hopeless)
