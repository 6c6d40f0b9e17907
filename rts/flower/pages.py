"""What each page shows, as one document of plain values: the same for HTML and JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from heapq import nlargest
from typing import Any

from rts.fields import text
from rts.flower import charts, page_parts
from rts.flower.cache import Answer, AnswerCache
from rts.flower.filters import Filters
from rts.flower.page_parts import Document
from rts.flower.source import MISSES, Counted, QueueSummary, Source
from rts.objectives import ALL
from rts.views.lateness_causes import slowdown, why
from rts.views.report import Report, ReportRow
from rts.views.taus import TauRow

#: The windows of the overview, by their label.
SHORT = {"now": timedelta(minutes=5), "1 h": timedelta(hours=1), "24 h": timedelta(days=1)}
#: Types whose reasons for missing deadlines are looked for: each costs a query.
REASONS = 50


class Pages:
    """Builds the documents. What a server did not answer is ``None`` in them, with the reason
    under ``trouble``; what takes longer than a page waits is missing too, with ``counting``
    set.
    """

    def __init__(self, source: Source, cache: AnswerCache) -> None:
        self._source = source
        self._ask = cache.get
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
        task_id = text(task_id)  # as in the ledger: of any length in the address
        answer = await self._ask(self._source.task, task_id)
        found = answer.value
        raw = None if found is None else found.task
        task = None if raw is None else page_parts.record(raw, "task_id")
        runs = [] if found is None else [page_parts.record(run, "run_id") for run in found.runs]
        for run in runs:
            run["slowdown"] = slowdown(run)
        # One that did not run to its end is told by its cause.
        late = []
        if task and task.get("sla_success") is False and task.get("cause") is None:
            late = [run for run in runs if run["run_id"] == task.get("run_id")]
        return {
            **self._head("task", [answer]),
            "task_id": task_id,
            "known": found is not None,
            "task": task,
            "runs": runs,
            "why": asdict(why(late)) if late else None,
        }

    def _head(self, page: str, answers: Sequence[Answer]) -> Document:
        """Return what every document starts with."""
        return {
            "page": page,
            "made_at": self._source.now(),
            "trouble": list(dict.fromkeys(a.trouble for a in answers if a.trouble is not None)),
            "counting": any(a.late for a in answers),
        }

    async def _overview(self, filters: Filters) -> Document:
        ask, source = self._ask, self._source
        counted, redis, queues, objectives, *reports = await asyncio.gather(
            ask(source.counted, filters.duration, "type"),
            ask(source.redis),
            ask(source.queues),
            ask(source.objectives),
            *(ask(source.report, since, "type") for since in SHORT.values()),
        )
        rows = _rows(counted)
        reasons = await self._reasons(filters.duration, rows)
        shown: Counted | None = counted.value
        target = self._settings.slo.get(ALL) if len(self._settings.slo) == 1 else None
        drawn = []
        if shown and rows:
            drawn = [
                charts.on_time(shown.history, None, target),
                charts.verdicts(shown.history),
            ]
        return {
            **self._head("overview", [counted, redis, queues, objectives, *reports, reasons]),
            "problems": page_parts.problems(
                self._settings, redis.value, queues.value, ledger_up=counted.trouble is None
            ),
            **page_parts.window(shown),
            "filters": filters.values(),
            "scheduler": self._settings.scheduler,
            "objectives": [asdict(standing) for standing in objectives.value or ()],
            "objective": target,
            "met": [
                page_parts.met(label, answer)
                for label, answer in zip(SHORT, reports, strict=True)
            ],
            **page_parts.state(self._settings, redis.value, queues.value),
            "types": page_parts.type_rows(self._settings, rows, reasons.value or {}),
            "charts": drawn,
        }

    async def _types(self, filters: Filters) -> Document:
        ask, source = self._ask, self._source
        by_type, by_name, taus = await asyncio.gather(
            ask(source.counted, filters.duration, "type"),
            ask(source.report, filters.duration, "name"),
            ask(source.taus),
        )
        reasons = await self._reasons(filters.duration, _rows(by_type))
        rows = page_parts.type_rows(self._settings, _rows(by_type), reasons.value or {})
        chosen = page_parts.chosen(filters, rows)
        by, key = chosen["by"], chosen["key"]
        history, runs, missed = by_type, Answer(), Answer()
        if by == "name":
            history = await ask(source.counted, filters.duration, "name", key)
        elif filters.task_type is not None:
            missed = await ask(source.misses, filters.duration, (filters.task_type,), None)
        if key is not None:
            runs = await ask(source.sample, filters.duration, by, key)
        learned: list[TauRow] = taus.value or []
        of_types = {tau.task_type: asdict(tau) for tau in learned if tau.name is None}
        return {
            **self._head("types", [by_type, by_name, taus, reasons, history, runs, missed]),
            **page_parts.window(by_type.value),
            "filters": filters.values(),
            "types": [{**row, "tau": of_types.get(row["key"])} for row in rows],
            "names": page_parts.name_rows(
                filters, _rows(by_name), learned, [*(runs.value or ()), *(missed.value or ())]
            ),
            "chosen": chosen,
            "charts": page_parts.charts_of(
                self._settings, by, key, history.value, learned, runs.value or ()
            ),
        }

    async def _workers(self, filters: Filters) -> Document:
        redis, counted, runs = await asyncio.gather(
            self._ask(self._source.redis),
            self._ask(self._source.report, filters.duration, "worker"),
            self._ask(self._source.sample, filters.duration, "worker", filters.worker),
        )
        found: list[Mapping[str, Any]] = runs.value or []
        workers = page_parts.workers(redis.value, _rows(counted), found)
        if filters.worker is not None:
            workers = [worker for worker in workers if worker["worker"] == filters.worker]
        return {
            **self._head("workers", [redis, counted, runs]),
            "problems": page_parts.problems(
                self._settings, redis.value, ledger_up=counted.trouble is None
            ),
            "filters": filters.values(),
            "fleet_known": redis.value is not None,
            "workers": workers,
            "bands": charts.bands(found),
            "sampled": None if runs.value is None else len(found),
            "charts": [charts.slowdowns(found)],
        }

    async def _queues(self, filters: Filters) -> Document:
        redis, queues = await asyncio.gather(
            self._ask(self._source.redis), self._ask(self._source.queues)
        )
        summaries: list[QueueSummary] | None = queues.value
        return {
            **self._head("queues", [redis, queues]),
            "problems": page_parts.problems(self._settings, redis.value, summaries),
            "scheduler": self._settings.scheduler,
            "ordered_by_us": summaries is not None if queues.is_known else None,
            "queues": [page_parts.queue(each, redis.value) for each in summaries or ()],
            **page_parts.state(self._settings, redis.value, summaries),
        }

    async def _misses(self, filters: Filters) -> Document:
        counted = await self._ask(self._source.counted, filters.duration, "type")
        missed = {row.key: row.missed for row in _rows(counted) if row.misses}
        if filters.task_type is not None:
            missed = {filters.task_type: missed.get(filters.task_type, 0)}
        listed = await self._ask(
            self._source.misses, filters.duration, tuple(missed), filters.name
        )
        return {
            **self._head("misses", [counted, listed]),
            **page_parts.window(counted.value),
            "filters": filters.values(),
            # Of one name it is not known: the counts are by type.
            "missed": sum(missed.values())
            if counted.is_known and filters.name is None
            else None,
            "most": MISSES,
            "misses": [page_parts.record(task, "task_id") for task in listed.value or ()],
        }

    async def _reasons(self, since: timedelta, rows: list[ReportRow]) -> Answer:
        """Get why the types that miss most deadlines do: a ``Why`` by type."""
        missing = [row for row in rows if row.misses]
        worst = nlargest(REASONS, missing, key=lambda row: row.missed)
        types = tuple(sorted(row.key for row in worst))
        return await self._ask(self._source.reasons, since, types) if types else Answer({})


def _rows(answer: Answer) -> list[ReportRow]:
    """Return the rows of a report, or of what was counted; none if there is no answer."""
    found: Report | Counted | None = answer.value
    return found.rows if found else []
