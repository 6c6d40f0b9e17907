"""Answers that are cached for a moment, so that many viewers cost one query.

Queries block (pymongo, redis-py), so they run in threads, never in Flower's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, thread
from dataclasses import dataclass
from typing import Any

from rts import health
from rts.errors import RtsError

#: An answer is fresh for ``FRESH_FACTOR`` times what it took to get, so that repeated queries
#: take no more than a tenth of one thread, but for at least and at most so many seconds.
MIN_FRESH_S, FRESH_FACTOR, MAX_FRESH_S = 1.5, 10.0, 20.0
#: Seconds for which a stale answer, or why there is none, is shown while a new one is computed.
STALE_S = 60.0
#: Seconds after which a query that failed is repeated.
RETRY_S = 3.0
#: Seconds that a page waits for a new answer if there is a stale value, and if there is none.
STALE_PATIENCE_S, PATIENCE_S = 0.1, 1.5
#: Answers that are kept, and queries that run at a time.
KEPT, THREADS = 64, 6
#: Different queries that may be pending: while a server hangs, an anonymous caller could pile
#: up any number, and Flower waits for each of them when it exits.
MAX_PENDING = 60


@dataclass(frozen=True)
class Answer:
    """The result of one query: a value, or why there is none."""

    value: Any = None
    #: One line for people; ``None`` if there is a value.
    trouble: str | None = None
    #: Nothing is wrong, but the answer takes longer than a page waits.
    late: bool = False
    #: By the monotonic clock.
    made_at: float = 0.0
    took_s: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether there is a value, which may be ``None``."""
        return self.trouble is None and not self.late

    @property
    def fresh_for_s(self) -> float:
        """Seconds from ``made_at`` on for which the query is not repeated."""
        if self.trouble is not None:
            return RETRY_S
        return min(MAX_FRESH_S, max(MIN_FRESH_S, FRESH_FACTOR * self.took_s))


class AnswerCache:
    """Runs queries in threads and keeps their answers. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rts-flower")
        self._kept: OrderedDict[Hashable, Answer] = OrderedDict()
        self._pending: dict[Hashable, asyncio.Future[Answer]] = {}

    async def get(self, query: Callable[..., Any], *arguments: Hashable) -> Answer:
        """Return the result of *query*, called with *arguments*; both identify the answer."""
        key = (query, *arguments)
        answer = self._kept.get(key)
        age_s = time.monotonic() - answer.made_at if answer else 0.0
        if answer and age_s < answer.fresh_for_s:
            self._kept.move_to_end(key)
            return answer
        older = answer if answer and age_s < STALE_S else None
        pending = self._pending.get(key)
        if pending is None and len(self._pending) >= MAX_PENDING:
            return older or Answer(late=True)
        if pending is None:
            loop = asyncio.get_running_loop()
            pending = loop.run_in_executor(self._pool, _ask, query, arguments)
            self._pending[key] = pending
            pending.add_done_callback(lambda done: self._keep(key, done))
        # A server that is asked again after it failed may be back.
        patience_s = STALE_PATIENCE_S if older and older.is_known else PATIENCE_S
        await asyncio.wait([pending], timeout=patience_s)
        return pending.result() if pending.done() else older or Answer(late=True)

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _keep(self, key: Hashable, done: asyncio.Future[Answer]) -> None:
        self._pending.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._kept[key] = done.result()
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _ask(query: Callable[..., Any], arguments: Sequence[Hashable]) -> Answer:
    """Run a query, in a thread. Every failure is reported, and a bug is also logged."""
    if getattr(thread, "_shutdown", False):
        return Answer(late=True)  # the interpreter is exiting, and waits for the whole backlog
    begin = time.monotonic()
    trouble = None
    value = None
    try:
        value = query(*arguments)
    except RtsError as exc:
        trouble = f"{exc}."
    except Exception as exc:  # noqa: BLE001  Flower goes on, and the page says so
        health.hook_failed("flower", exc)
        trouble = f"rts failed ({type(exc).__name__}); the traceback is in Flower's log."
    now = time.monotonic()
    return Answer(value, trouble, made_at=now, took_s=now - begin)
