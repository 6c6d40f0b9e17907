"""A discrete-event simulation of workers: arrivals, slots, an order, learned taus.

Time passes from event to event, so an hour of work takes a fraction of a second.
Taus are learned as in production: from what has finished by then, per name once
there are enough runs, else per type; a deadline is fixed at arrival.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from rts.deadlines import deadline
from rts.settings import Settings
from rts.simulation.orders import Order, Waiting
from rts.simulation.traces import Job
from rts.tasktypes import UNTYPED
from rts.tau.memory import MemoryTauStore

__all__ = ["Outcome", "share_met", "simulate"]


class Outcome(NamedTuple):
    """What became of one job. Instants in seconds, on the workload's own clock."""

    job: Job
    tau: float
    deadline: float
    started_at: float
    finished_at: float

    @property
    def met(self) -> bool:
        """Whether it finished at or before its deadline."""
        return self.finished_at <= self.deadline

    @property
    def queueing_delay_s(self) -> float:
        """Seconds from arrival to start."""
        return self.started_at - self.job.arrival_s


def simulate(
    jobs: Sequence[Job],
    slots: int,
    order: Order,
    settings: Settings,
    *,
    taus: MemoryTauStore | None = None,
) -> list[Outcome]:
    """Return the outcome of each job, in the order of *jobs*, which must be by arrival.

    *slots*: tasks that run at a time, at least 1. *taus*: what was learned
    before; it goes on learning. The deadlines' k is ``settings.sla_multiplier``.
    A type that *settings* do not know counts as ``mixed``.

    Raises:
        ValueError: the jobs are not by arrival, or there is no slot.
    """
    if slots < 1:
        raise ValueError(f"slots = {slots}: use at least 1")
    taus = MemoryTauStore(settings) if taus is None else taus

    def known(task_type: str) -> str:
        return task_type if task_type in settings.task_types else UNTYPED

    outcomes: list[Outcome | None] = [None] * len(jobs)
    #: Finish instant, number, what was waiting, start instant.
    running: list[tuple[float, int, Waiting, float]] = []
    arrived = 0
    now = float("-inf")
    while arrived < len(jobs) or running:
        next_arrival = jobs[arrived].arrival_s if arrived < len(jobs) else float("inf")
        if running and running[0][0] <= next_arrival:
            now, number, task, started_at = heapq.heappop(running)
            job = jobs[number]
            taus.update(known(job.task_type), job.name, job.runtime_s)
            order.ended(task)
            outcomes[number] = Outcome(job, task.tau, task.deadline, started_at, now)
        else:
            job = jobs[arrived]
            if arrived and job.arrival_s < jobs[arrived - 1].arrival_s:
                raise ValueError(f"job {arrived} arrives before the one in front of it")
            now = job.arrival_s
            tau = taus.get(known(job.task_type), job.name)
            due = deadline(now, tau, settings.sla_multiplier, settings.min_slack)
            order.push(Waiting(now, tau, due, arrived))
            arrived += 1
        while len(running) < slots:
            chosen = order.pop(now, slots)
            if chosen is None:
                break
            finish = now + jobs[chosen.number].runtime_s
            heapq.heappush(running, (finish, chosen.number, chosen, now))
    return [outcome for outcome in outcomes if outcome is not None]


def share_met(outcomes: Sequence[Outcome]) -> float:
    """Return the share of deadlines met, 0 to 1; 1.0 of nothing."""
    return sum(o.met for o in outcomes) / len(outcomes) if outcomes else 1.0
