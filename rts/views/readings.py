"""What the metrics need from Redis: two round trips, and more for many series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rts.link.link import Link
from rts.link.replies import as_counts, replies_as_text
from rts.link.scripts import pack
from rts.settings import Settings
from rts.unfinished.heartbeat import Heartbeat
from rts.validation import finite
from rts.views.fleet_state import Vitals, ask_vitals
from rts.views.redis_facts import ask_facts
from rts.views.tally import UNKNOWN

#: Maximum length of a label.
MAX_LABEL = 200
#: About how many fields of the metrics are read at a time: these block Redis for some 2 ms.
PAGE = 2000


@dataclass(frozen=True)
class Histogram:
    """Counts by upper bound (as spelled in Redis), and the sum of the values."""

    counts: Mapping[str, int]
    sum: float


@dataclass(frozen=True)
class Reading:
    """A snapshot of Redis. Durations in seconds; labels of at most a few hundred characters."""

    vitals: Vitals = field(default_factory=Vitals)
    #: By task type, task name and state.
    runs: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    #: By task type, task name, queue and cause of the miss (``met`` if there was none).
    verdicts: Mapping[tuple[str, str, str, str], int] = field(default_factory=dict)
    #: By kind (runtime, queueing_delay, lateness) and task type.
    histograms: Mapping[tuple[str, str], Histogram] = field(default_factory=dict)
    #: By task type, and task name (``None``: the type's own).
    taus: Mapping[tuple[str, str | None], float] = field(default_factory=dict)
    #: By queue: before their deadline; past it and running; past it and waiting.
    open_tasks: Mapping[str, int] = field(default_factory=dict)
    overdue_running: Mapping[str, int] = field(default_factory=dict)
    overdue_waiting: Mapping[str, int] = field(default_factory=dict)
    #: Live workers, with node names of at most ``MAX_LABEL`` characters.
    workers: tuple[Heartbeat, ...] = ()
    #: Why Redis refuses what rts writes; ``None``: it says nothing.
    refusal: str | None = None


def read(link: Link, settings: Settings) -> Reading:
    """Return what Redis holds now; many series are not all of one instant."""
    keys = settings.keys
    vitals, (page, taus, tasks) = ask_vitals(
        link,
        keys,
        pack("HSCAN", keys.metrics, 0, "COUNT", PAGE),
        pack("HGETALL", keys.tau),
        pack("HGETALL", keys.open_counts),
    )
    counted = replies_as_text(page[1])
    while int(page[0]):
        (page,) = link.call(pack("HSCAN", keys.metrics, page[0], "COUNT", PAGE))
        counted |= replies_as_text(page[1])
    by_queue = as_counts(tasks)
    overdue = _with_prefix(by_queue, "overdue ")
    running = Counter(run.queue or UNKNOWN for run in vitals.late)
    _, refusal = ask_facts(link, settings)
    return replace(
        _counted(counted),
        vitals=vitals,
        taus=_taus(replies_as_text(taus)),
        open_tasks=_with_prefix(by_queue, "open "),
        overdue_running={queue: min(n, running[queue]) for queue, n in overdue.items()},
        overdue_waiting={queue: max(0, n - running[queue]) for queue, n in overdue.items()},
        workers=_live_workers(vitals),
        refusal=refusal,
    )


def _with_prefix(by_queue: Mapping[str, int], start: str) -> dict[str, int]:
    return {
        field.removeprefix(start) or UNKNOWN: n
        for field, n in by_queue.items()
        if field.startswith(start)
    }


def _counted(fields: Mapping[str, str]) -> Reading:
    """Return what was counted: runs, verdicts and histograms."""
    runs: dict[tuple[str, str, str], int] = {}
    verdicts: dict[tuple[str, str, str, str], int] = {}
    counts: dict[tuple[str, str], dict[str, int]] = {}
    sums: dict[tuple[str, str], float] = {}
    for name, text in fields.items():
        number = finite(text)
        if number is None:
            continue
        match name.split("\n"):
            case ["runs", task_type, task, state]:
                runs[task_type, task, state] = int(number)
            case ["verdicts", task_type, task, queue, cause]:
                verdicts[task_type, task, queue, cause] = int(number)
            case [kind, task_type, "sum"]:
                sums[kind, task_type] = number
            case [kind, task_type, bound]:
                counts.setdefault((kind, task_type), {})[bound] = int(number)
    histograms = {key: Histogram(found, sums.get(key, 0.0)) for key, found in counts.items()}
    return Reading(runs=runs, verdicts=verdicts, histograms=histograms)


def _taus(fields: Mapping[str, str]) -> dict[tuple[str, str | None], float]:
    found: dict[tuple[str, str | None], float] = {}
    for name, text in fields.items():
        tau = finite(text)
        if tau is not None:
            # Cut here: long names that begin alike must not become duplicate series.
            task_type, _, task = name.partition("/")
            found[task_type[:MAX_LABEL], task[:MAX_LABEL] or None] = tau
    return found


def _live_workers(vitals: Vitals) -> tuple[Heartbeat, ...]:
    """Return the live workers: of several instances with one node name, the last one seen."""
    found: dict[str, Heartbeat] = {}
    for beat in sorted(vitals.live_workers, key=lambda beat: beat.seen_at):
        name = beat.worker[:MAX_LABEL]
        found[name] = beat._replace(worker=name)
    return tuple(found.values())
