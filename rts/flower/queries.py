"""The queries of the pages, each with a cache key, so that pages share answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import timedelta
from functools import partial
from heapq import nlargest
from typing import Any

from rts.flower.cache import Answer, AnswerCache
from rts.flower.source import Counted, Source

#: Misses that are listed.
MISSES = 100
#: Types whose reasons for missing deadlines are looked for: each costs a query.
REASONS = 50


class Queries:
    """The queries of :class:`Source`, through an :class:`AnswerCache`."""

    def __init__(self, source: Source, cache: AnswerCache) -> None:
        self._source = source
        self._cache = cache

    async def redis(self) -> Answer:
        """Get a ``RedisState``."""
        return await self._get("redis", self._source.redis)

    async def reading(self) -> Answer:
        """Get a ``Reading``."""
        return await self._get("reading", self._source.reading)

    async def queues(self) -> Answer:
        """Get a list of ``QueueSummary``."""
        return await self._get("queues", self._source.queues)

    async def objectives(self) -> Answer:
        """Get a list of ``ObjectiveStatus``."""
        return await self._get("objectives", self._source.objectives)

    async def taus(self) -> Answer:
        """Get a list of ``TauRow``."""
        return await self._get("taus", self._source.taus)

    async def total(self, since: timedelta) -> Answer:
        """Get the ``ReportRow`` of all runs."""
        return await self._get(("total", since), partial(self._source.total, since))

    async def counted(self, since: timedelta, by: str) -> Answer:
        """Get a ``Counted`` of all keys."""
        return await self._get(("counted", since, by), partial(self._source.counted, since, by))

    async def history(self, since: timedelta, name: str) -> Answer:
        """Get a ``Counted`` of one task name."""
        return await self._get(
            ("history", since, name), partial(self._source.counted, since, "name", name)
        )

    async def rows(self, since: timedelta, by: str) -> Answer:
        """Get a list of ``ReportRow``."""
        return await self._get(("rows", since, by), partial(self._source.rows, since, by))

    async def sample(self, since: timedelta, **only: str | None) -> Answer:
        """Get some runs, filtered by the fields in *only*."""
        return await self._get(
            ("sample", since, *only.items()), partial(self._source.sample, since, **only)
        )

    async def reasons(self, since: timedelta, counted: Counted | None) -> Answer:
        """Get why the types that miss most deadlines do: a ``Why`` by type."""
        rows = [] if counted is None else [row for row in counted.rows if row.misses]
        worst = nlargest(REASONS, rows, key=lambda row: sum(row.misses.values()))
        types = tuple(sorted(row.key for row in worst))
        if not types:
            return Answer({})
        return await self._get(
            ("reasons", since, types), partial(self._source.reasons, since, types)
        )

    async def misses(
        self, since: timedelta, types: tuple[str, ...], name: str | None
    ) -> Answer:
        """Get the latest tasks that missed their deadlines."""
        return await self._get(
            ("misses", since, types, name),
            partial(self._source.misses, since, types, name, MISSES),
        )

    async def task(self, task_id: str) -> Answer:
        """Get a ``OneTask``."""
        return await self._get(("task", task_id), partial(self._source.task, task_id))

    async def _get(self, key: Hashable, query: Callable[[], Any]) -> Answer:
        return await self._cache.get(key, query)
