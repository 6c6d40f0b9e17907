"""The taus as publishers read them: from process memory, at most a second old."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from redis.exceptions import ResponseError

from rts import health
from rts.clock import FleetClock
from rts.deadlines import MAX_LEARNED, MIN_LEARNED
from rts.errors import StoreUnavailable
from rts.link.counters import TakenCounts
from rts.link.link import Link, as_instant, replies_as_text
from rts.link.scripts import pack
from rts.records import Announcement
from rts.settings import Settings
from rts.tau.redis import parse_count, parse_tau
from rts.tau.sketch import Sketch

#: Stands for all types: types with few runs use the pooled ratios of runtime over tau.
POOL = "*"
#: Runs from which a type's own ratios are used, and the pooled ones.
OWN_RUNS, POOL_RUNS = 100, 20

#: Seconds that taus are used before they are read again, where Redis answers fast.
FRESH_S = 1.0
#: Learned taus, and types, up to which all are read each time. Of more, which take the
#: publisher milliseconds, it reads those again that it uses.
FEW, FEW_TYPES = 200, 20
#: Pairs of type and name that are remembered as used; an app may make up names.
MOST_USED = 20_000


class PendingNotes(Protocol):
    """Notes that may wait for a round trip, where no thread delivers them."""

    def take_stranded(self) -> list[Announcement]:
        """Remove and return the notes that have waited too long; mostly none."""

    def pack(self, notes: Sequence[Announcement]) -> bytes:
        """Return the command that delivers *notes*."""

    def give_back(self, notes: Sequence[Announcement]) -> None:
        """Take back what could not be delivered."""


class TauCache:
    """Reads the taus, and the clock's offset, in one round trip at most once a second.

    The first use waits for it; later failures leave the known taus in use. A server that
    is slow but answers in time costs a publisher no more time than one that does not
    answer: the share of ``rts_timeout`` in ``rts_breaker_period``. The same round trip
    delivers this process's counters, and the notes of a *passenger* that has no other way.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        clock: FleetClock,
        now: Callable[[], float] = time.monotonic,
        passenger: PendingNotes | None = None,
    ) -> None:
        self._link = link
        self._settings = settings
        self._clock = clock
        self._passenger = passenger
        self._now = now
        self._defaults = {t.name: t.tau for t in settings.task_types.values()}
        self._by_name = settings.tau_scope == "name"
        self._rest_ratio = settings.breaker_period / settings.timeout
        #: The taus in use: those of names only once they have enough runs.
        self._taus: dict[str, float] = {}
        #: What this process has asked for, ``type/name``, to the tau that it gets; and
        #: the types among it.
        self._used: dict[str, float] = {}
        self._used_types: set[str] = set()
        #: By type, and of all under POOL, where enough runs are known.
        self._ratios: dict[str, float] = {}
        self._stale_at = -1.0
        #: When all taus were read last, whether there were few, and types whose ratios
        #: were read with them or since.
        self._whole_at, self._few = -math.inf, True
        self._many_types = (
            settings.deadline_policy == "quantile" and len(self._defaults) > FEW_TYPES
        )
        self._read_types: set[str] = set()
        #: Until then nothing is asked, of a server that is slow.
        self._rest_until = -math.inf
        # Re-entrant: a signal handler that publishes may interrupt the first refresh.
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def tau(self, task_type: str, name: str) -> float:
        """Return the tau in seconds for a task of this type and name. Never raises."""
        field = f"{task_type}/{name}"
        tau = self._used.get(field)
        if tau is None:
            return self._first_use(field, task_type)
        if self._now() >= self._stale_at:
            self.refresh()
            return self._used.get(field, tau)
        return tau

    def ratio(self, task_type: str) -> float | None:
        """Return the learned quantile of runtime over tau of a type; ``None`` where too
        few runs are known. Never raises.
        """
        return self._ratios.get(task_type, self._ratios.get(POOL))

    def _first_use(self, field: str, task_type: str) -> float:
        """Return the tau of what this process has not asked for before."""
        if len(self._used) >= MOST_USED:
            self._used, self._used_types = {}, set()
        self._used_types.add(task_type)
        if not self._few or self._many_types or self._now() >= self._stale_at:
            self.refresh(whole=True)
        tau = self._used[field] = self._chosen(field)
        return tau

    def _chosen(self, field: str) -> float:
        taus, task_type = self._taus, field.partition("/")[0]
        own = taus.get(field) if self._by_name else None
        return own or taus.get(task_type) or self._defaults[task_type]

    def refresh(self, *, whole: bool = False) -> None:
        """Read the taus, unless they are fresh or another thread is at it; *whole*: those
        that this process has not used yet have to be fresh, too. Never raises.
        """
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
            if started < (self._whole_stale_at() if whole else self._stale_at):
                return
            self._fetch(whole or self._few or not self._used)
            now = self._now()
            rest_s = min(self._settings.breaker_period, (now - started) * self._rest_ratio)
            self._rest_until = now + rest_s if rest_s > FRESH_S else -math.inf
            self._stale_at = now + max(FRESH_S, rest_s)
        finally:
            lock.release()

    def _whole_stale_at(self) -> float:
        if self._many_types and not self._used_types <= self._read_types:
            return self._rest_until
        whole_at = self._stale_at if self._few else self._whole_at + FRESH_S
        return min(self._stale_at, max(self._rest_until, whole_at))

    def _fetch(self, whole: bool) -> None:
        keys = self._settings.keys
        counted = TakenCounts(keys.counters)
        fields = [] if whole else [*self._used, *self._used_types]
        whole = not fields
        commands = [pack("TIME"), _reading(keys.tau, fields), _reading(keys.count, fields)]
        ratios: list[str] = []
        if self._settings.deadline_policy == "quantile":
            ratios = [*(self._used_types if self._many_types else self._defaults), POOL]
        commands += [pack("HGETALL", keys.ratio + field) for field in ratios]
        commands += counted.commands
        stranded = [] if self._passenger is None else self._passenger.take_stranded()
        if self._passenger is not None and stranded:
            commands.append(self._passenger.pack(stranded))
        sent_at = time.time()
        try:
            time_, taus, learned, *rest = self._link.call_each(*commands)
        except BaseException as exc:  # including a soft time limit that strikes here
            counted.give_back()
            if self._passenger is not None and stranded:
                self._passenger.give_back(stranded)
            if not isinstance(exc, StoreUnavailable):
                raise
            return
        received_at = time.time()
        self._read_types = set(ratios)
        sketches, others = rest[: len(ratios)], rest[len(ratios) :]
        # A server that is out of memory, or a replica, refuses writes but can be read.
        counted.give_back_refused(others[: len(counted.commands)])
        if self._passenger is not None and stranded and isinstance(rest[-1], ResponseError):
            self._passenger.give_back(stranded)
        for answer in (time_, taus, learned):
            if isinstance(answer, ResponseError):
                health.warn_once(
                    "taus-refused",
                    "rts: Redis refuses to read the taus (%s); deadlines use those known so "
                    "far. Check the permissions of the user in rts_redis_url",
                    answer,
                )
        if not isinstance(time_, ResponseError):
            self._clock.measured(sent_at, as_instant(time_), received_at)
        if not isinstance(taus, ResponseError) and not isinstance(learned, ResponseError):
            if whole:
                self._taus = self._usable(replies_as_text(taus), replies_as_text(learned))
                self._few, self._whole_at = len(taus) <= 2 * FEW, self._now()
            else:
                known = self._taus.copy()
                for field in fields:
                    known.pop(field, None)
                known.update(self._usable(_told(fields, taus), _told(fields, learned)))
                self._taus = known
            self._used = {field: self._chosen(field) for field in list(self._used)}
        self._ratios = learned_ratios(
            self._settings.quantile,
            {
                field: Sketch.from_hash(replies_as_text(answer))
                for field, answer in zip(ratios, sketches, strict=True)
                if not isinstance(answer, ResponseError)
            },
        )

    def _usable(self, taus: Mapping[str, str], learned: Mapping[str, str]) -> dict[str, float]:
        enough = self._settings.min_samples
        usable = {}
        for field, text in taus.items():
            if "/" in field and parse_count(learned.get(field)) < enough:
                continue
            tau = parse_tau(text)
            if tau is not None:
                usable[field] = tau
        return usable


def _reading(key: str, fields: Sequence[str]) -> bytes:
    """Return the command that reads *fields* of a hash; all, where there are none."""
    names = [field.encode("utf-8", "replace") for field in fields]
    return pack("HMGET", key, *names) if names else pack("HGETALL", key)


def _told(fields: Sequence[str], values: Sequence[bytes | None]) -> dict[str, str]:
    """Return the answer of HMGET without what is not there."""
    told = zip(fields, values, strict=True)
    return {field: value.decode("utf-8", "replace") for field, value in told if value}


def learned_ratios(q: float, sketches: Mapping[str, Sketch]) -> dict[str, float]:
    """Return the quantile *q* of runtime over tau, where enough runs are known."""
    ratios = {}
    for field, sketch in sketches.items():
        if sketch.count >= (POOL_RUNS if field == POOL else OWN_RUNS):
            bound = sketch.bound(q)
            assert bound is not None
            ratios[field] = min(MAX_LEARNED, max(MIN_LEARNED, bound))
    return ratios
