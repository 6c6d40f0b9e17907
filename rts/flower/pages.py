"""What each page shows, as one document of plain values: the same for HTML and JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from rts.cli.states import RedisState
from rts.flower import charts
from rts.flower.answers import Answer, Answers
from rts.flower.filters import Filters
from rts.flower.source import Counted, QueueLook, Source
from rts.flower.words import finding
from rts.objectives import objective_of
from rts.views.readings import Reading
from rts.views.report import ReportRow
from rts.views.slo import Standing
from rts.views.why import load_at_start, slowdown, why

Document = dict[str, Any]

#: The windows of the overview, by their label.
SHORT = {
    "now": timedelta(minutes=5),
    "1 h": timedelta(hours=1),
    "24 h": timedelta(days=1),
}
#: Misses that are listed.
MISSES = 100


class Pages:
    """Makes the documents. What a server does not tell is ``None`` in them, and its
    trouble stands under ``trouble``; what takes longer than a page waits is missing too,
    and ``counting`` says so.
    """

    def __init__(self, source: Source, answers: Answers) -> None:
        self._source = source
        self._answers = answers
        self._settings = source.settings

    async def of(self, page: str, filters: Filters) -> Document:
        """Return the document of a page: overview, types, workers, queues or misses."""
        makers: Mapping[str, Callable[[Filters], Awaitable[Document]]] = {
            "overview": self._overview,
            "types": self._types,
            "workers": self._workers,
            "queues": self._queues,
            "misses": self._misses,
        }
        return await makers[page](filters)

    async def task(self, task_id: str) -> Document:
        """Return the document of one task."""
        answer = await self._ask(("task", task_id), partial(self._source.task, task_id))
        found = answer.value
        task = None if found is None or found.task is None else _visible(found.task, "task_id")
        runs = [] if found is None else [_visible(run, "run_id") for run in found.runs]
        for run in runs:
            run["slowdown"] = slowdown(run)
        late = runs[-1:] if task is not None and task.get("sla_success") is False else []
        return {
            **_head("task", [answer]),
            "task_id": task_id,
            "known": found is not None,
            "task": task,
            "runs": runs,
            "why": asdict(why(late)) if late else None,
        }

    async def _overview(self, filters: Filters) -> Document:
        counted, redis, reading, queues, objectives, *totals = await asyncio.gather(
            self._counted(filters.duration, "type"),
            self._redis(),
            self._reading(),
            self._queue_answer(),
            self._ask("objectives", self._source.objectives),
            *(
                self._ask(("total", since), partial(self._source.total, since))
                for since in SHORT.values()
            ),
        )
        reasons = await self._reasons(filters.duration, counted.value)
        met = [_met(label, answer) for label, answer in zip(SHORT, totals, strict=True)]
        shown: Counted | None = counted.value
        target = self._settings.slo.get("*") if len(self._settings.slo) == 1 else None
        return {
            **_head(
                "overview", [counted, redis, reading, queues, objectives, *totals, reasons]
            ),
            **_window(shown),
            "filters": _filters(filters),
            "objectives": _standings(objectives.value),
            "objective": target,
            "met": met,
            **self._state(redis.value, reading.value, queues.value),
            "types": self._type_rows(shown.rows, reasons.value or {}) if shown else [],
            "charts": [
                charts.on_time(shown.course, None, target),
                charts.verdicts(shown.course),
            ]
            if shown
            else [],
        }

    async def _types(self, filters: Filters) -> Document:
        by_type, by_name, taus = await asyncio.gather(
            self._counted(filters.duration, "type"),
            self._rows(filters.duration, "name"),
            self._ask("taus", self._source.taus),
        )
        reasons = await self._reasons(filters.duration, by_type.value)
        learned = {row.field: row for row in taus.value or ()}
        types: list[ReportRow] = by_type.value.rows if by_type.value else []
        names: list[ReportRow] = by_name.value or []
        if filters.task_type is not None:
            known = {row.name for row in learned.values() if row.task_type == filters.task_type}
            names = [row for row in names if row.key in known]
        if filters.name is not None:
            names = [row for row in names if row.key == filters.name]
        rows = self._type_rows(types, reasons.value or {})
        chosen = _chosen(filters, rows)
        key = chosen["key"]
        drawn: list[charts.Chart] = []
        course, runs = by_type, Answer()
        if key is not None:
            if chosen["by"] == "name":
                course = await self._ask(
                    ("course", filters.duration, key),
                    partial(self._source.counted, filters.duration, "name", key),
                )
            only = {"name" if chosen["by"] == "name" else "task_type": key}
            runs = await self._ask(
                ("sample", filters.duration, *only.items()),
                partial(self._source.sample, filters.duration, **only),
            )
        of_key: Counted | None = course.value
        if of_key is not None and key is not None:
            drawn = [
                charts.runtimes(of_key.course, key, runs.value or ()),
                charts.delays(of_key.course, key),
                charts.lateness(of_key.lateness.get(key, {})),
                charts.on_time(of_key.course, key, self._target(key, chosen["by"])),
            ]
        return {
            **_head("types", [by_type, by_name, taus, reasons, course, runs]),
            **_window(by_type.value),
            "filters": _filters(filters),
            "types": [{**row, "tau": _tau(learned.get(row["key"]))} for row in rows],
            "names": [
                {
                    **asdict(row),
                    "taus": [asdict(t) for t in learned.values() if t.name == row.key],
                }
                for row in names
            ],
            "chosen": chosen,
            "charts": drawn,
        }

    async def _workers(self, filters: Filters) -> Document:
        redis, counted, runs = await asyncio.gather(
            self._redis(),
            self._rows(filters.duration, "worker"),
            self._ask(
                ("sample", filters.duration, "worker", filters.worker),
                partial(self._source.sample, filters.duration, worker=filters.worker),
            ),
        )
        found: list[Mapping[str, Any]] = runs.value or []
        rows = {row.key: asdict(row) for row in counted.value or ()}
        workers: list[Document] = []
        for state in redis.value.workers if redis.value else ():
            workers.append({**asdict(state), "report": rows.pop(state.worker, None)})
        for name, row in rows.items():  # those that are gone, or whose server is away
            workers.append({"worker": name, "report": row})
        for worker in workers:
            factors = sorted(
                f
                for run in found
                if run.get("worker") == worker["worker"] and (f := slowdown(run)) is not None
            )
            worker["slowdown_p50"] = factors[len(factors) // 2] if factors else None
        return {
            **_head("workers", [redis, counted, runs]),
            "filters": _filters(filters),
            "workers": workers,
            "bands": charts.bands(found),
            "sampled": len(found),
            "charts": [charts.slowdowns(found)],
        }

    async def _queues(self, filters: Filters) -> Document:
        redis, reading, queues = await asyncio.gather(
            self._redis(), self._reading(), self._queue_answer()
        )
        looks: list[QueueLook] | None = queues.value
        return {
            **_head("queues", [redis, reading, queues]),
            "scheduler": self._settings.scheduler,
            "ordered_by_us": looks is not None,
            "queues": [
                {
                    **asdict(look.state),
                    "next_deadline": _instant(look.state.next_deadline),
                    "waiting": look.state.waiting,
                    "past_deadline": look.late,
                    "slots": look.slots,
                    "drain_s": look.drain_s,
                    "line": [
                        {
                            **asdict(task),
                            "arrival": _instant(task.arrival),
                            "deadline": _instant(task.deadline),
                        }
                        for task in look.line
                    ],
                }
                for look in looks or ()
            ],
            **self._state(redis.value, reading.value, looks),
        }

    async def _misses(self, filters: Filters) -> Document:
        counted = await self._counted(filters.duration, "type")
        rows: list[ReportRow] = counted.value.rows if counted.value else []
        types = tuple(row.key for row in rows if row.misses)
        if filters.task_type is not None:
            types = (filters.task_type,)
        listed = await self._ask(
            ("misses", filters.duration, types, filters.name),
            partial(self._source.misses, filters.duration, types, filters.name, MISSES),
        )
        return {
            **_head("misses", [counted, listed]),
            **_window(counted.value),
            "filters": _filters(filters),
            "missed": sum(sum(row.misses.values()) for row in rows),
            "most": MISSES,
            "misses": [_visible(task, "task_id") for task in listed.value or ()],
        }

    def _type_rows(
        self, rows: Iterable[ReportRow], reasons: Mapping[str, Any]
    ) -> list[Document]:
        """Return rows of types with objective and reason, most misses first."""
        found = []
        for row in rows:
            missed = sum(row.misses.values())
            reason = reasons.get(row.key)
            found.append(
                {
                    **asdict(row),
                    "missed": missed,
                    "objective": self._target(row.key, "type"),
                    "why": asdict(reason) if reason is not None else None,
                    "finding": finding(row.misses, reason),
                }
            )
        return sorted(found, key=lambda row: (-row["missed"], row["key"]))

    def _state(
        self,
        redis: RedisState | None,
        reading: Reading | None,
        queues: list[QueueLook] | None,
    ) -> Document:
        """Return open and overdue tasks, slots and load."""
        if redis is None or reading is None:
            return {"open": None, "overdue": None, "fleet": None, "outbox": None}
        waiting = None if queues is None else sum(look.state.waiting for look in queues)
        by_queue = (reading.overdue_running, reading.overdue_waiting)
        overdue = sum(sum(part.values()) for part in by_queue)
        count = sum(reading.open_tasks.values()) + overdue
        if not self._settings.open_max:  # nobody notes what is published
            late = sum(look.late + look.state.demoted for look in queues or ())
            overdue = late + (redis.overdue or 0)
            count = (waiting or 0) + (redis.running or 0)
        workers = [worker for worker in redis.workers if not worker.silent]
        loads = [w.load["load"] for w in workers if isinstance(w.load.get("load"), float)]
        return {
            "open": {"tasks": count, "waiting": waiting, "running": redis.running},
            "overdue": overdue,
            "fleet": {
                "workers": len(workers),
                "silent": len(redis.workers) - len(workers),
                "slots": sum(worker.concurrency or 0 for worker in workers),
                "load": sum(loads) / len(loads) if loads else None,
                "highest_load": max(loads, default=None),
            },
            "outbox": {"length": redis.outbox_length, "lag_s": redis.lag_s},
        }

    def _target(self, key: str, by: str) -> float | None:
        """Return the objective of a type or name, where no other one goes before it."""
        slo = self._settings.slo
        at = objective_of(slo, key if by == "type" else "", key if by == "name" else "", None)
        return None if at is None else slo[at]

    async def _ask(self, key: Any, question: Callable[[], Any]) -> Answer:
        return await self._answers.of(key, question)

    async def _redis(self) -> Answer:
        return await self._ask("redis", self._source.redis)

    async def _reading(self) -> Answer:
        return await self._ask("reading", self._source.reading)

    async def _queue_answer(self) -> Answer:
        return await self._ask("queues", self._source.queues)

    async def _counted(self, since: timedelta, by: str) -> Answer:
        return await self._ask(("counted", since, by), partial(self._source.counted, since, by))

    async def _rows(self, since: timedelta, by: str) -> Answer:
        return await self._ask(("rows", since, by), partial(self._source.rows, since, by))

    async def _reasons(self, since: timedelta, counted: Counted | None) -> Answer:
        types = () if counted is None else tuple(r.key for r in counted.rows if r.misses)
        if not types:
            return Answer({})
        return await self._ask(
            ("reasons", since, types), partial(self._source.reasons, since, types)
        )


def _head(page: str, answers: Iterable[Answer]) -> Document:
    """Return what every document begins with."""
    told = list(answers)
    return {
        "page": page,
        "made_at": datetime.now(timezone.utc),
        "trouble": list(dict.fromkeys(a.trouble for a in told if a.trouble is not None)),
        "counting": any(a.late for a in told),
    }


def _window(counted: Counted | None) -> Document:
    since, until = (None, None) if counted is None else counted.window
    return {"since": since, "until": until}


def _filters(filters: Filters) -> Document:
    return {
        "since": filters.since,
        "type": filters.task_type,
        "name": filters.name,
        "worker": filters.worker,
    }


def _met(label: str, answer: Answer) -> Document:
    row: ReportRow | None = answer.value
    unknown = answer.trouble is not None or answer.late
    return {
        "window": label,
        "tasks": None if unknown else row.tasks if row else 0,
        "missed": None if unknown else sum(row.misses.values()) if row else 0,
        "on_time_ratio": None if row is None else row.on_time_ratio,
        "goodput_ratio": None if row is None else row.goodput_ratio,
    }


def _standings(standings: Iterable[Standing] | None) -> list[Document]:
    return [asdict(standing) for standing in standings or ()]


def _chosen(filters: Filters, rows: list[Document]) -> Document:
    """Return what the charts are of: what was asked for, else the type that misses most."""
    if filters.name is not None:
        return {"by": "name", "key": filters.name}
    if filters.task_type is not None:
        return {"by": "type", "key": filters.task_type}
    return {"by": "type", "key": rows[0]["key"] if rows else None}


def _tau(row: Any) -> Document | None:
    return None if row is None else asdict(row)


def _visible(document: Mapping[str, Any], id_name: str) -> Document:
    """Return a document without what is private to the drain."""
    shown = {key: value for key, value in document.items() if not key.startswith("_")}
    return {id_name: document["_id"], **shown, "load": load_at_start(document)}


def _instant(at: float | None) -> datetime | None:
    try:
        return None if at is None else datetime.fromtimestamp(at, timezone.utc)
    except (ValueError, OverflowError, OSError):  # a stranger's deadline
        return None
