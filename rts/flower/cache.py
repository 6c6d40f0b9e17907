"""Answers that are kept for a moment, so that many viewers cost one question.

Queries block (pymongo, redis-py), so threads ask them, never Flower's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor, thread
from dataclasses import dataclass
from typing import Any

from pymongo.errors import PyMongoError

from rts import health
from rts.errors import RtsError, short

#: Seconds that an answer is good for: at least the first, and as many times what it took
#: to get as the second says, so that asking again and again takes no more than a tenth of
#: one thread; at most the third.
LEAST_S, TIMES, MOST_S = 1.5, 10.0, 20.0
#: Seconds that an older answer is shown for, while a new one is being made.
STALE_S = 60.0
#: Seconds that a page waits for a new answer where there is an older one, and where not.
STALE_PATIENCE_S, PATIENCE_S = 0.1, 1.5
#: Answers that are kept, and questions that are asked at a time.
KEPT, THREADS = 64, 6
#: Different questions that are open at most: with a server that hangs, an anonymous
#: caller could pile up any number, each of which Flower waits for when it ends.
MOST_OPEN = 60


@dataclass(frozen=True)
class Answer:
    """What one question gave: a value, or the trouble in its place."""

    value: Any = None
    #: One line for people; ``None`` where there is a value.
    trouble: str | None = None
    #: Whether nothing is wrong: the answer only takes longer than a page waits.
    late: bool = False
    #: By the monotonic clock.
    made_at: float = 0.0
    took_s: float = 0.0

    @property
    def good_for_s(self) -> float:
        """Seconds from ``made_at`` on in which it is not asked again."""
        return min(MOST_S, max(LEAST_S, TIMES * self.took_s)) if self.trouble is None else 3.0


class Answers:
    """Asks questions in threads and keeps what they gave. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rts-flower")
        self._kept: OrderedDict[Hashable, Answer] = OrderedDict()
        self._asked: dict[Hashable, asyncio.Future[Answer]] = {}

    async def of(self, key: Hashable, question: Callable[[], Any]) -> Answer:
        """Return the answer to *question*, which *key* stands for."""
        answer = self._kept.get(key)
        age_s = time.monotonic() - answer.made_at if answer else 0.0
        if answer and age_s < answer.good_for_s:
            self._kept.move_to_end(key)
            return answer
        older = answer if answer and answer.trouble is None and age_s < STALE_S else None
        asked = self._asked.get(key)
        if asked is None and len(self._asked) >= MOST_OPEN:
            return older or Answer(late=True)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._pool, _ask, question)
            self._asked[key] = asked
            asked.add_done_callback(lambda done: self._keep(key, done))
        await asyncio.wait([asked], timeout=STALE_PATIENCE_S if older else PATIENCE_S)
        return asked.result() if asked.done() else older or Answer(late=True)

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _keep(self, key: Hashable, done: asyncio.Future[Answer]) -> None:
        self._asked.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._kept[key] = done.result()
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _ask(question: Callable[[], Any]) -> Answer:
    """Run in a thread. Whatever goes wrong is told, and what is a bug also logged."""
    if getattr(thread, "_shutdown", False):
        return Answer(late=True)  # the interpreter ends, and waits for all that is in line
    begin = time.monotonic()
    trouble = None
    value = None
    try:
        value = question()
    except RtsError as exc:
        trouble = f"{exc}."
    except (PyMongoError, OSError) as exc:
        trouble = short(exc)
    except Exception as exc:  # noqa: BLE001  Flower lives, and the page says so
        health.hook_failed("flower", exc)
        trouble = f"rts failed here ({type(exc).__name__}); Flower's log has the traceback."
    now = time.monotonic()
    return Answer(value, trouble, made_at=now, took_s=now - begin)
