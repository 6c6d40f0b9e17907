"""Parts of the pages' documents, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rts.flower import charts
from rts.flower.cache import Answer
from rts.flower.filters import Filters
from rts.flower.reasons import finding
from rts.flower.source import Counted, QueueSummary
from rts.objectives import objective_of
from rts.settings import Settings
from rts.views.json_values import utc
from rts.views.lateness_causes import load_at_start, median, slowdown
from rts.views.problems import fleet_problems, queue_problems
from rts.views.queue_state import queue_document
from rts.views.report import ReportRow
from rts.views.runs import visible
from rts.views.status import RedisState, worker_document
from rts.views.tally import UNKNOWN
from rts.views.taus import TauRow

Document = dict[str, Any]


def problems(
    settings: Settings,
    redis: RedisState | None,
    queues: Iterable[QueueSummary] | None = None,
    *,
    ledger_up: bool = True,
) -> list[str]:
    """Return what is wrong with Redis, fleet and queues, as ``rts status`` says it."""
    if redis is None:
        return []
    found = fleet_problems(redis, ledger_up=ledger_up)
    found += queue_problems([summary.state for summary in queues or ()], redis, settings)
    return [f"{text[0].upper()}{text[1:]}{'' if text[-1] == '?' else '.'}" for text in found]


def window(counted: Counted | None) -> Document:
    """Return the window that was counted."""
    since, until = (None, None) if counted is None else counted.window
    return {"since": since, "until": until}


def met(label: str, answer: Answer) -> Document:
    """Return how the deadlines were met in one window, from its report."""
    row: ReportRow | None = answer.value.total if answer.value else None
    none = 0 if answer.is_known else None
    return {
        "window": label,
        "tasks": none if row is None else row.tasks,
        "missed": none if row is None else row.missed,
        "on_time_ratio": None if row is None else row.on_time_ratio,
        "goodput_ratio": None if row is None else row.goodput_ratio,
    }


def chosen(filters: Filters, rows: list[Document]) -> Document:
    """Return what the charts show: what was asked for, else the type with the most misses."""
    if filters.name is not None:
        return {"by": "name", "key": filters.name}
    if filters.task_type is not None:
        return {"by": "type", "key": filters.task_type}
    return {"by": "type", "key": rows[0]["key"] if rows else None}


def type_rows(
    settings: Settings, rows: Iterable[ReportRow], reasons: Mapping[str, Any]
) -> list[Document]:
    """Return the rows of the types with objective and reason, most misses first."""
    found = []
    for row in rows:
        reason = reasons.get(row.key)
        found.append(
            {
                **asdict(row),
                "missed": row.missed,
                "objective": target(settings, {row.key}),
                "why": asdict(reason) if reason is not None else None,
                "finding": finding(row.misses, reason),
            }
        )
    return sorted(found, key=lambda row: (-row["missed"], row["key"]))


def name_rows(
    filters: Filters,
    rows: Iterable[ReportRow],
    learned: Sequence[TauRow],
    some: Iterable[Mapping[str, Any]],
) -> list[Document]:
    """Return the rows of the task names that are asked for, with their taus, most misses first.

    The names of a type are those with a tau in it, and those in *some* of its runs and missed
    tasks: a name of which no run has succeeded has no tau.
    """
    if filters.name is not None:  # of whatever type, as its charts
        rows = [row for row in rows if row.key == filters.name]
    elif filters.task_type is not None:
        known = {tau.name for tau in learned if tau.task_type == filters.task_type}
        known |= {one.get("name") for one in some}
        rows = [row for row in rows if row.key in known]
    taus: dict[str | None, list[TauRow]] = {}
    for tau in learned:
        taus.setdefault(tau.name, []).append(tau)
    shown = [
        {
            **asdict(row),
            "missed": row.missed,
            "taus": list(map(asdict, taus.get(row.key, ()))),
        }
        for row in rows
    ]
    return sorted(shown, key=lambda row: (-row["missed"], -row["tasks"], row["key"]))


def charts_of(
    settings: Settings,
    by: str,
    key: str | None,
    counted: Counted | None,
    learned: Iterable[TauRow],
    runs: Sequence[Mapping[str, Any]],
) -> list[charts.Chart]:
    """Return the charts of one type or name, of which *runs* are a sample."""
    if key is None or counted is None:
        return []
    objective = target(settings, {key})
    if by == "name":
        types = {tau.task_type for tau in learned if tau.name == key}
        types |= {run.get("task_type") or UNKNOWN for run in runs}
        # A task of which no run has started may be of any type.
        objective = target(settings, types or settings.task_types, key)
    return [
        charts.runtimes(counted.history, key, runs),
        charts.delays(counted.history, key),
        charts.lateness(counted.lateness.get(key, {})),
        charts.on_time(counted.history, key, objective),
    ]


def target(settings: Settings, types: Iterable[str], name: str = "") -> float | None:
    """Return the objective of one type, or of a task name in *types*, if no other one takes
    precedence; ``None`` if these differ in it.
    """
    keys = {objective_of(settings.slo, task_type, name, None) for task_type in types}
    key = keys.pop() if len(keys) == 1 else None
    return None if key is None else settings.slo[key]


def state(
    settings: Settings, redis: RedisState | None, queues: list[QueueSummary] | None
) -> Document:
    """Return open and overdue tasks, slots and load."""
    if redis is None:
        return {"open": None, "overdue": None, "fleet": None, "outbox": None}
    waiting = None if queues is None else sum(summary.state.waiting for summary in queues)
    vitals = redis.vitals
    count, overdue = redis.open_tasks, redis.overdue_tasks
    if not settings.open_max:  # published tasks are not tracked: count the hopeless
        late = sum(summary.hopeless + summary.state.demoted for summary in queues or ())
        overdue = late + len(vitals.late)
        count = (waiting or 0) + vitals.notes
    workers = vitals.live_workers
    loads = [worker.load["load"] for worker in workers if "load" in worker.load]
    return {
        "open": {"tasks": count, "waiting": waiting, "running": vitals.notes},
        "overdue": overdue,
        "fleet": {
            "workers": len(workers),
            "silent": len(vitals.workers) - len(workers),
            "slots": sum(worker.slots or 0 for worker in workers),
            "load": sum(loads) / len(loads) if loads else None,
            "highest_load": max(loads, default=None),
        },
        "outbox": {"length": vitals.outbox_length, "lag_s": vitals.lag_s},
    }


def workers(
    redis: RedisState | None, counted: Iterable[ReportRow], runs: Sequence[Mapping[str, Any]]
) -> list[Document]:
    """Return the workers, each with its heartbeat, report and slowdown. Those that live come
    first: the report of a worker that was restarted goes to its new instance.
    """
    rows = {row.key: asdict(row) for row in counted}
    found: list[Document] = []
    if redis is not None:
        now = redis.vitals.now
        for beat in sorted(redis.vitals.workers, key=lambda beat: beat.is_silent(now)):
            shown = worker_document(beat, now)
            found.append({**shown, "report": rows.pop(beat.worker, None)})
    for name, row in rows.items():  # gone, or Redis is unavailable
        found.append({"worker": name, "report": row})
    slowdowns: dict[str, list[float | None]] = {}
    for run in runs:
        slowdowns.setdefault(str(run.get("worker")), []).append(slowdown(run))
    for worker in found:
        worker["slowdown_p50"] = median(slowdowns.get(worker["worker"], ()))
    return found


def queue(summary: QueueSummary, redis: RedisState | None) -> Document:
    """Return one queue and the tasks at its head. ``drain_s``: seconds until the workers that
    consume it have worked off its backlog; ``None`` without any, or without a known tau.
    """
    slots = None if redis is None else redis.vitals.slots_for(summary.state.name)
    waiting = summary.state.waiting
    mean_s = summary.mean_s if waiting else 0.0
    return {
        **queue_document(summary.state),
        "waiting": waiting,
        "hopeless": summary.hopeless,
        "slots": slots,
        "drain_s": waiting * mean_s / slots if slots and mean_s is not None else None,
        "line": [
            {**asdict(task), "arrival": utc(task.arrival), "deadline": utc(task.deadline)}
            for task in summary.line
        ],
    }


def record(document: Mapping[str, Any], id_name: str) -> Document:
    """Return a document as shown, with its load at start as one number."""
    return {**visible(document, id_name), "load": load_at_start(document)}
