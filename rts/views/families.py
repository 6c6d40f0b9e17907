"""What was read, as metric families of prometheus_client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from rts.ledger.counting import DURATIONS, LATENESS, MET
from rts.load.sample import FIGURES
from rts.objectives import objective_of
from rts.records import OVERDUE
from rts.settings import Settings
from rts.views.fleet_state import LOSSES
from rts.views.queue_state import WaitingQueue
from rts.views.readings import MAX_LABEL, Reading
from rts.views.slo import ObjectiveStatus
from rts.views.tally import LATE

#: The verdict on a task whose deadline was not met.
MISSED = "missed"

#: Queues of the broker with a label of their own: as many as in the counters.
MAX_QUEUES = 1000

#: Counters that are exported from the start, at 0. One that first appeared with the first lost
#: records would hide them from ``rate()``, and so from alerts.
FROM_THE_START = (*LOSSES, "records_refused")

#: By kind of histogram, the upper bounds of its buckets and its help text.
HISTOGRAMS = {
    "runtime": (DURATIONS, "Service time of runs, by task type."),
    "queueing_delay": (DURATIONS, "Time from arrival to start, by task type."),
    "lateness": (
        LATENESS,
        "End minus deadline of tasks that have ended, by task type; negative is early.",
    ),
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
    return _gauge("rts_up", told, ("server",), servers.items())


def counts(reading: Reading) -> Iterator[Any]:
    """Yield the counters and histograms of the fleet; they start with the keys in Redis."""
    yield _counter(
        "rts_runs",
        "Runs that ended, by task type, task name and state; retried ones included.",
        ("task_type", "task", "state"),
        sorted(reading.runs.items()),
    )
    # Where deadlines were met, misses start at 0: a counter that first appeared with the first
    # misses would hide them from rate().
    judged: Counter[tuple[str, str, str, str]] = Counter()
    missed: Counter[tuple[str, str]] = Counter()
    for (task_type, task, queue, cause), n in reading.verdicts.items():
        judged[task_type, task, queue, _verdict(cause)] += n
        judged[task_type, task, queue, MISSED] += 0
        missed[task_type, LATE] += 0
        missed[task_type, OVERDUE] += 0
        if cause != MET:
            missed[task_type, cause] += n
    yield _counter(
        "rts_deadlines",
        "Tasks whose deadline was met or missed, by task type, task name and queue.",
        ("task_type", "task", "queue", "verdict"),
        sorted(judged.items()),
    )
    yield _counter(
        "rts_misses",
        "Missed deadlines by cause: late, overdue (known before the end), or what ended it.",
        ("task_type", "cause"),
        sorted(missed.items()),
    )
    yield from _histograms(reading)
    yield from _status_counters(reading)


def _verdict(cause: str) -> str:
    return MET if cause == MET else MISSED


def _histograms(reading: Reading) -> Iterator[Any]:
    for kind, (bounds, text) in HISTOGRAMS.items():
        family = HistogramMetricFamily(f"rts_{kind}_seconds", text, labels=["task_type"])
        names = [*map(repr, bounds), "+Inf"]
        for (of, task_type), histogram in sorted(reading.histograms.items()):
            if of == kind:
                sums = accumulate(histogram.counts.get(name, 0) for name in names)
                # The client leaves out the sum if there are negative values: it may fall.
                family.add_metric([task_type], [*zip(names, sums, strict=True)], histogram.sum)
        yield family


def _status_counters(reading: Reading) -> Iterator[Any]:
    counters = {**dict.fromkeys(FROM_THE_START, 0), **reading.vitals.counters}
    opened = counters.pop("breaker_opened", 0)
    yield _counter(
        "rts_refused",
        "The counters of rts status: input refused, records dropped, failures survived, "
        "webhook messages delivered and more, by name.",
        ("what",),
        sorted(counters.items()),
    )
    yield CounterMetricFamily(
        "rts_breaker_opened",
        "Times that the circuit breaker of a process opened, because Redis failed.",
        value=opened,
    )


def gauges(reading: Reading) -> Iterator[Any]:
    """Yield the current state in Redis: taus, the outbox, open tasks, workers."""
    yield _gauge(
        "rts_tau_seconds",
        "Learned runtime, by task type and task name (empty: of the whole type).",
        ("task_type", "task"),
        sorted(((kind, task or ""), tau) for (kind, task), tau in reading.taus.items()),
    )
    yield GaugeMetricFamily(
        "rts_outbox_records",
        "Records on their way to the ledger.",
        value=reading.vitals.outbox_length,
    )
    yield GaugeMetricFamily(
        "rts_outbox_lag_seconds",
        "Age of the oldest record on its way to the ledger; 0 if there is none.",
        value=reading.vitals.lag_s,
    )
    yield _gauge(
        "rts_open_tasks",
        "Tasks published and not ended, by queue, that were not found overdue: without workers "
        "or MongoDB none is.",
        ("queue",),
        sorted(reading.open_tasks.items()),
    )
    overdue = (("running", reading.overdue_running), ("waiting", reading.overdue_waiting))
    yield _gauge(
        "rts_overdue_tasks",
        "Tasks not ended by their deadline, by queue: running, or waiting to start.",
        ("queue", "state"),
        (((queue, state), n) for state, of in overdue for queue, n in sorted(of.items())),
    )
    workers = reading.workers
    yield _gauge(
        "rts_worker_slots",
        "Tasks that a worker can run at a time.",
        ("worker",),
        ((worker.worker, worker.slots) for worker in workers if worker.slots is not None),
    )
    yield _gauge(
        "rts_worker_load_ratio",
        "Load of a worker as a share of what it may use, by resource.",
        ("worker", "resource"),
        (((w.worker, of), w.load[of]) for w in workers for of in FIGURES if of in w.load),
    )


def targets(settings: Settings) -> Any:
    """Return the targets of the objectives."""
    return _gauge(
        "rts_slo_target_ratio",
        "Share of tasks that are to meet their deadline, by objective.",
        ("objective",),
        settings.slo.items(),
    )


def verdicts(reading: Reading, settings: Settings) -> Any:
    """Return the verdicts by objective. Each has both series from the start: a counter that
    first appeared with the first miss would hide it from ``rate()``.
    """
    judged = {(key, verdict): 0 for key in settings.slo for verdict in (MET, MISSED)}
    for (task_type, task, queue, cause), n in reading.verdicts.items():
        key = objective_of(settings.slo, task_type, task, queue)
        if key is not None:
            judged[key, _verdict(cause)] += n
    return _counter(
        "rts_slo_verdicts",
        "Tasks whose deadline was met or missed, by the objective they count towards.",
        ("objective", "verdict"),
        judged.items(),
    )


def objectives(standings: Sequence[ObjectiveStatus]) -> Iterator[Any]:
    """Yield budgets, burn rates and what they were computed from."""
    yield _gauge(
        "rts_slo_budget_left_ratio",
        "Share of the error budget that is left, by objective; overspent below 0.",
        ("objective",),
        ((standing.objective, standing.budget_left_ratio) for standing in standings),
    )
    windows = [((s.objective, name), of) for s in standings for name, of in s.windows.items()]
    labels = ("objective", "window")
    yield _gauge(
        "rts_slo_burn_rate",
        "Burn rate of the error budget, by objective and window; 1 uses it up exactly.",
        labels,
        ((which, window.burn_rate) for which, window in windows),
    )
    yield _gauge(
        "rts_slo_window_verdicts",
        "Verdicts in a window, by objective and window.",
        labels,
        ((which, window.valid) for which, window in windows),
    )
    yield _gauge(
        "rts_slo_window_missed",
        "Missed deadlines in a window, by objective and window.",
        labels,
        ((which, window.valid - window.good) for which, window in windows),
    )


def queues(waiting: Iterable[WaitingQueue]) -> Iterator[Any]:
    """Yield what waits in the broker. Queues whose names are cut to the same label are counted
    together, since duplicate series would fail the scrape, and so are those past
    ``MAX_QUEUES``.
    """
    messages: Counter[tuple[str, ...]] = Counter()
    hopeless: Counter[str] = Counter()
    for state, n in waiting:
        name = state.name[:MAX_LABEL]
        if name not in hopeless and len(hopeless) >= MAX_QUEUES:
            name = "other"
        for form in ("ordered", "demoted", "plain"):
            messages[name, form] += getattr(state, form)
        hopeless[name] += n
    yield _gauge(
        "rts_queue_messages",
        "Messages that wait, by queue and form: ordered, demoted (hopeless) or plain.",
        ("queue", "form"),
        messages.items(),
    )
    yield _gauge(
        "rts_hopeless_tasks",
        "Messages that can no longer meet their deadline, by queue.",
        ("queue",),
        hopeless.items(),
    )


#: The values of the labels, or that of the only one, and the number.
_Sample = tuple[str | tuple[str, ...], float]


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Iterable[_Sample]) -> Any:
    return _filled(CounterMetricFamily(name, text, labels=labels), samples)


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Iterable[_Sample]) -> Any:
    return _filled(GaugeMetricFamily(name, text, labels=labels), samples)


def _filled(family: Any, samples: Iterable[_Sample]) -> Any:
    for values, n in samples:
        family.add_metric([values] if isinstance(values, str) else values, float(n))
    return family
