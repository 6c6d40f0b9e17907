"""The taus as publishers read them: from process memory, at most a second old."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping

from redis.exceptions import ResponseError

from rts import health
from rts.clock import FleetClock
from rts.deadlines import MAX_LEARNED, MIN_LEARNED
from rts.errors import StoreUnavailable, short
from rts.link.delivery import Taken, deliver, take_counters
from rts.link.link import Link
from rts.link.replies import as_instant, replies_as_text
from rts.link.scripts import pack
from rts.settings import Settings
from rts.tau.redis import parse_count, parse_tau
from rts.tau.sketch import Sketch

#: Stands for all types: types with few runs use the pooled ratios of runtime over tau.
POOL = "*"
#: Number of ratios from which a type's own are used, and from which the pooled ones are. A
#: type's first 50 are forgotten, so it has its own after some 100 runs.
OWN_RUNS, POOL_RUNS = 50, 20

#: Seconds that taus are used before they are read again, where Redis answers fast.
FRESH_S = 1.0
#: The same for the learned quantiles, which change slowly: of a hundred types, reading them
#: takes some 20 ms.
RATIOS_FRESH_S = 10.0


class TauCache:
    """Reads the taus, and the clock's offset, in one round trip at most once a second.

    The first use waits for it; if a later one fails, the known taus stay in use. The slower the
    server, the longer they stay in use, so that a publisher spends no larger share of its time
    on a slow server than on one that is away (``rts_timeout`` in each ``rts_breaker_period``).
    The same round trip delivers this process's counters, and what *take_stranded* returns:
    notes that no thread delivers.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        clock: FleetClock,
        now: Callable[[], float] = time.monotonic,
        take_stranded: Callable[[], list[Taken]] = list,
    ) -> None:
        self._link = link
        self._settings = settings
        self._clock = clock
        self._take_stranded = take_stranded
        self._now = now
        self._defaults = {t.name: t.tau for t in settings.task_types.values()}
        self._by_name = settings.tau_scope == "name"
        self._rest_ratio = settings.breaker_period / settings.timeout
        #: The taus in use: those of names only once they have enough runs.
        self._taus: dict[str, float] = {}
        #: The learned quantiles of runtime over tau, by type and of all types (POOL), where
        #: enough runs are known.
        self._ratios: dict[str, float] = {}
        self._ratios_stale_at = -1.0 if settings.deadline_policy == "quantile" else math.inf
        self._stale_at = -1.0
        # Re-entrant: a signal handler that publishes may interrupt the first refresh.
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def tau(self, task_type: str, name: str) -> float:
        """Return the tau in seconds for a task of this type and name. Never raises."""
        if self._now() >= self._stale_at:
            self.refresh()
        taus = self._taus
        if self._by_name:
            own = taus.get(f"{task_type}/{name}")
            if own is not None:
                return own
        return taus.get(task_type) or self._defaults[task_type]

    def ratio(self, task_type: str) -> float | None:
        """Return the learned quantile of runtime over tau of a type; ``None`` where too
        few runs are known. Never raises.
        """
        return self._ratios.get(task_type, self._ratios.get(POOL))

    def refresh(self) -> None:
        """Read everything now, unless another thread is doing so. Never raises."""
        if os.getpid() != self._pid:
            self._lock = threading.RLock()
            # Last: until then, other threads must not take the parent's lock.
            self._pid = os.getpid()
        lock = self._lock  # another such thread may replace it
        # A second thread waits only for the very first answer.
        if not lock.acquire(blocking=self._stale_at < 0):
            return
        try:
            started = self._now()
            if started < self._stale_at:
                return
            self._fetch()
            now = self._now()
            rest_s = min(self._settings.breaker_period, (now - started) * self._rest_ratio)
            self._stale_at = now + max(FRESH_S, rest_s)
        finally:
            lock.release()

    def _fetch(self) -> None:
        keys = self._settings.keys
        commands = [pack("TIME"), pack("HGETALL", keys.tau), pack("HGETALL", keys.count)]
        ratios = [*self._defaults, POOL] if self._now() >= self._ratios_stale_at else []
        commands += [pack("HGETALL", keys.ratio + field) for field in ratios]
        taken = take_counters(keys.counters) + self._take_stranded()
        sent_at = self._clock.local()
        try:
            time_, taus, counts, *others = deliver(self._link, taken, *commands)
        except StoreUnavailable:
            return
        received_at = self._clock.local()
        for answer in (time_, taus, counts):
            if isinstance(answer, ResponseError):
                health.warn_once(
                    "taus-refused",
                    "rts: Redis refuses to read the taus (%s); deadlines use those known so "
                    "far. Check rts_redis_url and the permissions of its user",
                    short(answer),
                )
        if not isinstance(time_, ResponseError):
            self._clock.measured(sent_at, as_instant(time_), received_at)
        if not isinstance(taus, ResponseError) and not isinstance(counts, ResponseError):
            self._keep(replies_as_text(taus), replies_as_text(counts))
        if ratios:
            self._ratios = learned_ratios(
                self._settings.quantile,
                {
                    field: Sketch.from_hash(replies_as_text(answer))
                    for field, answer in zip(ratios, others, strict=False)
                    if not isinstance(answer, ResponseError)
                },
            )
            self._ratios_stale_at = self._now() + RATIOS_FRESH_S

    def _keep(self, taus: dict[str, str], counts: dict[str, str]) -> None:
        enough = self._settings.min_samples
        self._taus = {
            field: tau
            for field, text in taus.items()
            if "/" not in field or parse_count(counts.get(field)) >= enough
            if (tau := parse_tau(text)) is not None
        }


def learned_ratios(q: float, sketches: Mapping[str, Sketch]) -> dict[str, float]:
    """Return the quantile *q* of runtime over tau, where enough runs are known."""
    ratios = {}
    for field, sketch in sketches.items():
        if sketch.count >= (POOL_RUNS if field == POOL else OWN_RUNS):
            bound = sketch.bound(q)
            assert bound is not None
            ratios[field] = min(MAX_LEARNED, max(MIN_LEARNED, bound))
    return ratios
