"""What was read, as metric families of prometheus_client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from rts.ledger.counting import MET
from rts.ledger.heartbeat import FIGURES
from rts.objectives import objective_of
from rts.settings import Settings
from rts.views.fleet_state import DROPPED
from rts.views.readings import BOUNDS, MAX_LABEL, Histogram, QueueReading, Reading
from rts.views.slo import ObjectiveStatus

#: Queues of the broker with a label of their own: as many as in the counters.
MAX_QUEUES = 1000

#: Counters that are exported from the start, at 0. One that first appeared with the first lost
#: records would hide them from ``rate()``, and so from alerts.
FROM_THE_START = (*DROPPED, "records_refused")

#: Help texts, by kind of histogram.
HISTOGRAMS = {
    "runtime": "Service time of runs, by task type.",
    "queueing_delay": "Time from arrival to start, by task type.",
    "lateness": "End minus deadline of tasks that have ended, by task type; negative is early.",
}


def info() -> Any:
    """Return the version."""
    try:
        installed = version("rts")
    except PackageNotFoundError:  # a checkout
        installed = "unknown"
    return InfoMetricFamily("rts", "This installation of rts.", value={"version": installed})


def up(servers: Mapping[str, bool]) -> Any:
    """Return which servers can be used, by name."""
    told = "Whether a server answers, and Redis takes records: 1 or 0."
    family = GaugeMetricFamily("rts_up", told, labels=["server"])
    for server, usable in servers.items():
        family.add_metric([server], float(usable))
    return family


def counts(reading: Reading) -> Iterator[Any]:
    """Yield the counters and histograms of the fleet; they start with the keys in Redis."""
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
    verdicts: Counter[tuple[str, str, str, str]] = Counter()
    missed: Counter[tuple[str, str]] = Counter()
    for (task_type, task, queue, cause), n in reading.verdicts.items():
        verdicts[task_type, task, queue, MET if cause == MET else "missed"] += n
        if cause != MET:
            missed[task_type, cause] += n
    for labels, n in sorted(verdicts.items()):
        deadlines.add_metric(labels, n)
    yield deadlines
    misses = CounterMetricFamily(
        "rts_misses",
        "Missed deadlines by cause: late, overdue (known before the end), or what ended it.",
        labels=["task_type", "cause"],
    )
    for miss, n in sorted(missed.items()):
        misses.add_metric(miss, n)
    yield misses
    for kind, text in HISTOGRAMS.items():
        family = HistogramMetricFamily(f"rts_{kind}_seconds", text, labels=["task_type"])
        for (of, task_type), histogram in sorted(reading.histograms.items()):
            if of == kind:
                buckets, total = _cumulative(kind, histogram)
                family.add_metric([task_type], buckets, total)
        yield family
    refused = CounterMetricFamily(
        "rts_refused",
        "The counters of rts status: input refused, records dropped, failures survived, "
        "webhook messages delivered and more, by name.",
        labels=["what"],
    )
    counters = {**dict.fromkeys(FROM_THE_START, 0), **reading.counters}
    opened = counters.pop("breaker_opened", 0)
    for name, n in sorted(counters.items()):
        refused.add_metric([name], n)
    yield refused
    yield CounterMetricFamily(
        "rts_breaker_opened",
        "Times that the circuit breaker of a process opened, because Redis failed.",
        value=opened,
    )


def _cumulative(
    kind: str, histogram: Histogram
) -> tuple[list[tuple[str, float]], float | None]:
    """Return the cumulative buckets of a histogram, and its sum.

    With negative values the sum may fall, which OpenMetrics forbids: it is ``None`` then.
    """
    buckets: list[tuple[str, float]] = []
    n = 0
    for bound in BOUNDS[kind]:
        n += histogram.counts.get(repr(bound), 0)
        buckets.append((repr(bound), n))
    buckets.append(("+Inf", n + histogram.counts.get("+Inf", 0)))
    return buckets, None if BOUNDS[kind][0] < 0 else histogram.sum


def gauges(reading: Reading) -> Iterator[Any]:
    """Yield the current state in Redis: taus, the outbox, open tasks, workers."""
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
        "Age of the oldest record on its way to the ledger; 0 if there is none.",
        value=reading.outbox_lag_s,
    )
    waiting = GaugeMetricFamily(
        "rts_open_tasks",
        "Tasks published and not ended, by queue, that were not found overdue: without workers "
        "or MongoDB none is.",
        labels=["queue"],
    )
    for queue, n in sorted(reading.open_tasks.items()):
        waiting.add_metric([queue], n)
    yield waiting
    overdue = GaugeMetricFamily(
        "rts_overdue_tasks",
        "Tasks not ended by their deadline, by queue: running, or waiting for a worker.",
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
        "rts_worker_slots", "Tasks that a worker can run at a time.", labels=["worker"]
    )
    load = GaugeMetricFamily(
        "rts_worker_load_ratio",
        "Load of a worker as a share of what it may use, by resource.",
        labels=["worker", "resource"],
    )
    for worker in reading.workers:
        if worker.slots is not None:
            slots.add_metric([worker.worker], worker.slots)
        for resource in FIGURES:
            if resource in worker.load:
                load.add_metric([worker.worker, resource], worker.load[resource])
    yield slots
    yield load


def targets(settings: Settings) -> Any:
    """Return the targets of the objectives."""
    target = GaugeMetricFamily(
        "rts_slo_target_ratio",
        "Share of tasks that are to meet their deadline, by objective.",
        labels=["objective"],
    )
    for objective, share in settings.slo.items():
        target.add_metric([objective], share)
    return target


def verdicts(reading: Reading, settings: Settings) -> Any:
    """Return the verdicts by objective. Each has both series from the start: a counter that
    first appeared with the first miss would hide it from ``rate()``.
    """
    family = CounterMetricFamily(
        "rts_slo_verdicts",
        "Tasks whose deadline was met or missed, by the objective they count towards.",
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


def objectives(standings: Iterable[ObjectiveStatus]) -> Iterator[Any]:
    """Yield budgets, burn rates and what they were computed from."""
    left = GaugeMetricFamily(
        "rts_slo_budget_left_ratio",
        "Share of the error budget that is left, by objective; overspent below 0.",
        labels=["objective"],
    )
    burn = GaugeMetricFamily(
        "rts_slo_burn_rate",
        "Burn rate of the error budget, by objective and window; 1 uses it up exactly.",
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
    for standing in standings:
        left.add_metric([standing.objective], standing.budget_left_ratio)
        for name, window in standing.windows.items():
            burn.add_metric([standing.objective, name], window.burn_rate)
            valid.add_metric([standing.objective, name], window.valid)
            bad.add_metric([standing.objective, name], window.valid - window.good)
    yield from (left, burn, valid, bad)


def queues(waiting: Iterable[QueueReading]) -> Iterator[Any]:
    """Yield what waits in the broker."""
    messages = GaugeMetricFamily(
        "rts_queue_messages",
        "Messages that wait, by queue and form: ordered, demoted (hopeless) or plain.",
        labels=["queue", "form"],
    )
    hopeless = GaugeMetricFamily(
        "rts_hopeless_tasks",
        "Messages that can no longer meet their deadline, by queue.",
        labels=["queue"],
    )
    for name, queue in _by_label(waiting).items():
        for form in ("ordered", "demoted", "plain"):
            messages.add_metric([name, form], getattr(queue, form))
        hopeless.add_metric([name], queue.hopeless)
    yield from (messages, hopeless)


def _by_label(waiting: Iterable[QueueReading]) -> dict[str, QueueReading]:
    """Return the readings by label. Duplicate series would fail the scrape, so queues whose
    names are cut to the same label are merged, as are those past ``MAX_QUEUES``.
    """
    found: dict[str, QueueReading] = {}
    for queue in waiting:
        name = queue.queue[:MAX_LABEL]
        if name not in found and len(found) >= MAX_QUEUES:
            name = "other"
        before = found.get(name, QueueReading(name, 0, 0, 0, 0))
        found[name] = QueueReading(
            name,
            before.ordered + queue.ordered,
            before.demoted + queue.demoted,
            before.plain + queue.plain,
            before.hopeless + queue.hopeless,
        )
    return found
