"""What the pages ask, each question under a key: what two pages ask alike is asked once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import timedelta
from functools import partial
from typing import Any

from rts.flower.cache import Answer, Answers
from rts.flower.source import Counted, Source

#: Misses that are listed.
MISSES = 100


class Queries:
    """The questions of :class:`Source`, asked through :class:`Answers`."""

    def __init__(self, source: Source, answers: Answers) -> None:
        self._source = source
        self._answers = answers

    async def redis(self) -> Answer:
        """Ask for a ``RedisState``."""
        return await self._ask("redis", self._source.redis)

    async def reading(self) -> Answer:
        """Ask for a ``Reading``."""
        return await self._ask("reading", self._source.reading)

    async def queues(self) -> Answer:
        """Ask for a list of ``QueueLook``."""
        return await self._ask("queues", self._source.queues)

    async def objectives(self) -> Answer:
        """Ask for a list of ``Standing``."""
        return await self._ask("objectives", self._source.objectives)

    async def taus(self) -> Answer:
        """Ask for a list of ``TauRow``."""
        return await self._ask("taus", self._source.taus)

    async def total(self, since: timedelta) -> Answer:
        """Ask for the ``ReportRow`` of all runs."""
        return await self._ask(("total", since), partial(self._source.total, since))

    async def counted(self, since: timedelta, by: str) -> Answer:
        """Ask for a ``Counted`` of all keys."""
        return await self._ask(("counted", since, by), partial(self._source.counted, since, by))

    async def course(self, since: timedelta, name: str) -> Answer:
        """Ask for a ``Counted`` of one task name."""
        return await self._ask(
            ("course", since, name), partial(self._source.counted, since, "name", name)
        )

    async def rows(self, since: timedelta, by: str) -> Answer:
        """Ask for a list of ``ReportRow``."""
        return await self._ask(("rows", since, by), partial(self._source.rows, since, by))

    async def sample(self, since: timedelta, **only: str | None) -> Answer:
        """Ask for some runs, those *only* where it names a field."""
        return await self._ask(
            ("sample", since, *only.items()), partial(self._source.sample, since, **only)
        )

    async def reasons(self, since: timedelta, counted: Counted | None) -> Answer:
        """Ask why the types that miss deadlines do: a ``Why`` by type."""
        types = () if counted is None else tuple(r.key for r in counted.rows if r.misses)
        if not types:
            return Answer({})
        return await self._ask(
            ("reasons", since, types), partial(self._source.reasons, since, types)
        )

    async def misses(
        self, since: timedelta, types: tuple[str, ...], name: str | None
    ) -> Answer:
        """Ask for the latest tasks that missed their deadlines."""
        return await self._ask(
            ("misses", since, types, name),
            partial(self._source.misses, since, types, name, MISSES),
        )

    async def task(self, task_id: str) -> Answer:
        """Ask for a ``OneTask``."""
        return await self._ask(("task", task_id), partial(self._source.task, task_id))

    async def _ask(self, key: Hashable, question: Callable[[], Any]) -> Answer:
        return await self._answers.of(key, question)
