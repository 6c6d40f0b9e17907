"""Queries that run in the background, so that a slow server does not hold up the others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pymongo.errors import PyMongoError

from rts import health
from rts.errors import RtsError, short

logger = logging.getLogger("rts")

T = TypeVar("T")


class BackgroundQuery(Generic[T]):
    """Queries one server in a thread of its own: a daemon, since name resolution may hang for
    longer than any timeout of the drivers. At most one query is in flight; callers that arrive
    meanwhile wait for its answer, too. *max_age_s*: how old the last answer may be that
    replaces a late one.
    """

    def __init__(self, name: str, query: Callable[[], T], max_age_s: float = 0.0) -> None:
        self._name = name
        self._query = query
        self._max_age_s = max_age_s
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: The last answer (``None``, and why, if the query failed), and the monotonic time when
        #: it came.
        self._answer: tuple[T | None, str] = None, ""
        self._answered_at = -1e9

    def ask(self) -> None:
        """Start a query, unless one is in flight."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._ask, daemon=True)
                thread.start()
                self._thread = thread  # last: others may join it at once

    def answer(self, until: float) -> tuple[T | None, str]:
        """Return the answer, waiting for it until the monotonic instant *until*; failing that,
        the last one, unless it is too old. If there is none, return ``None``, and why the query
        failed ('': it has not ended).
        """
        thread = self._thread
        assert thread is not None
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive() and time.monotonic() - self._answered_at > self._max_age_s:
            return None, ""
        return self._answer

    def _ask(self) -> None:
        answer: T | None = None
        why = ""
        try:
            answer = self._query()
        except (RtsError, PyMongoError, OSError, UnicodeError) as exc:
            why = short(exc)
            logger.debug("rts: %s cannot be read: %s", self._name, why)
        except Exception as exc:  # noqa: BLE001  a scrape must be answered
            health.hook_failed("metrics", exc)
            why = short(exc)
        self._answer, self._answered_at = (answer, why), time.monotonic()
