"""Routing by risk: the best queue for a new task."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rts.errors import CommandError, StoreUnavailable
from rts.predictions.pressures import Pressure, Pressures
from rts.records import Plan

#: Weights of tardiness in seconds and of load in a queue's risk.
ALPHA, BETA = 10.0, 1.0
#: Seconds for which the state of the queues is cached.
FRESH_S = 1.0


@dataclass
class _Queue:
    """The last known pressure on a queue, and what this process has routed to it since."""

    pressure: Pressure
    #: By the monotonic clock.
    read_at: float
    #: Sum of the taus, seconds.
    sent_s: float = 0.0


def risk(pressure: Pressure, plan: Plan, now: float, sent_s: float) -> float:
    """Return the risk of routing a task to a queue: ``α·max(0, F − d) + β·load``.

    F is the expected finish, after the backlog, shared by the slots, and the task itself,
    both slowed down if the workers' load exceeds 1. *sent_s*: seconds of work added since
    the queue was read. The queue must have slots.
    """
    slowdown = max(1.0, pressure.load)
    wait_s = (pressure.backlog_s + sent_s) / pressure.slots
    finish = now + (wait_s + plan.tau) * slowdown
    return ALPHA * max(0.0, finish - plan.deadline) + BETA * pressure.load


class Risks:
    """Chooses queues by their state, cached for FRESH_S. Safe with threads.

    At most one publish in FRESH_S seconds waits for the state of its candidates to be read;
    after a failure, none does for *period_s* seconds.
    """

    def __init__(self, pressures: Pressures, period_s: float) -> None:
        self._pressures = pressures
        self._period_s = period_s
        self._known: dict[str, _Queue] = {}
        self._retry_at = -math.inf
        self._lock = threading.Lock()

    def choose(self, plan: Plan, candidates: Sequence[str], at: float) -> str | None:
        """Return the queue of least risk; ``None`` on a tie, and unless the state of all is
        fresh. *at*: the current time by Redis's clock, epoch seconds.
        """
        self._refresh(candidates)
        if not all(self._is_known(name, 2 * FRESH_S) for name in candidates):
            return None  # what is not known cannot be compared
        known = {name: self._known[name] for name in candidates}
        risks = sorted(
            (risk(queue.pressure, plan, at, queue.sent_s), name)
            for name, queue in known.items()
            if queue.pressure.slots
        )
        if not risks or (len(risks) > 1 and risks[0][0] == risks[1][0]):
            return None
        chosen = risks[0][1]
        known[chosen].sent_s += plan.tau
        return chosen

    def _is_known(self, name: str, age_s: float) -> bool:
        """Return whether the state of a queue was read less than so many seconds ago."""
        queue = self._known.get(name)
        return queue is not None and time.monotonic() - queue.read_at < age_s

    def _refresh(self, candidates: Sequence[str]) -> None:
        """Read what is stale, unless that has just failed, or another thread is reading."""
        stale = [name for name in candidates if not self._is_known(name, FRESH_S)]
        if not stale or time.monotonic() < self._retry_at:
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            read = self._pressures.read(stale)
            read_at = time.monotonic()
            self._known.update({name: _Queue(found, read_at) for name, found in read.items()})
        except (StoreUnavailable, CommandError):
            self._retry_at = time.monotonic() + self._period_s
        finally:
            self._lock.release()
