"""The limits of predictability: predictions within simulations, in both orders.

    python benchmarks/predictions_simulated.py [--tasks N] [--asks N] [--json]

As in benchmarks/predictions.py, predictions are made for tasks that are just published, and
for waiting tasks at some moments. With "arrivals known" the prediction knows all future
arrivals with their types, taus and deadlines, but not their runtimes. The error that remains
then is unavoidable; the additional error without it is due to tasks yet to be published.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

from heading import print_heading

from rts.ledger.recent import RUNS
from rts.predictions import forecast
from rts.predictions.snapshot import Running, Snapshot
from rts.predictions.work import Work
from rts.settings import Settings
from rts.simulation.orders import order_of
from rts.simulation.queues import OrderMaker
from rts.simulation.simulator import Outcome, simulate
from rts.simulation.traces import at_load, read_trace, six_types

#: By name: the order, and whether future arrivals are known.
CASES = {"fifo": ("fifo", False), "edf": ("edf", False), "known": ("edf", True)}
#: Tasks before the first prediction; shorter waits, a tenth of the mean runtime, count as none.
WARM_UP, LEAST_WAIT_S = 300, 2.0


class Judged(NamedTuple):
    """A prediction for a task that has waited, and the outcome."""

    #: Error of the start as a share of the wait, and of the remaining wait.
    error_of_wait: float
    error_of_rest: float
    #: Whether the finish was within the interval.
    finish_within: bool
    #: The predicted probability that it is on time, and whether it was.
    on_time: float
    met: bool


def work(outcome: Outcome) -> Work:
    """Return a job as a prediction's task."""
    job = outcome.job
    return Work(job.task_type, job.arrival_s, outcome.tau, outcome.deadline, name=job.name)


class Known:
    """Stands in for :class:`Arrivals`, with known instead of random arrivals."""

    def __init__(self, future: Sequence[Work]) -> None:
        self._future = future

    def __call__(self, *_: object) -> Known:
        return self

    def stream(self, _: float) -> Iterator[Work]:
        """Return the arrivals."""
        return iter(self._future)


def snapshot_of(
    outcomes: list[Outcome], number: int, now: float, slots: int, order: OrderMaker
) -> Snapshot:
    """Return the state at *now*, when *number* tasks have been published."""
    came = outcomes[:number]
    ended = sorted((o for o in came if o.finished_at <= now), key=lambda o: o.finished_at)
    ended = ended[-RUNS:]
    since = ended[0].finished_at if ended else now
    return Snapshot(
        now,
        slots,
        [work(o) for o in came if o.started_at > now],
        running=[
            Running(work(o), o.started_at) for o in came if o.started_at <= now < o.finished_at
        ],
        ended=[(work(o), o.job.runtime_s) for o in ended],
        recent_arrivals=[work(o) for o in came if o.job.arrival_s > since],
        span_s=now - since,
        turns=[random.randrange(20)],
        order=order,
    )


def ask(
    outcomes: list[Outcome], slots: int, order: OrderMaker, asks: int, known: bool
) -> dict[str, list[Judged]]:
    """Return the predictions, as judged, for just published and for waiting tasks."""
    found: dict[str, list[Judged]] = {"published": [], "waiting": []}
    arrivals = [o.job.arrival_s for o in outcomes]
    last = int(len(outcomes) * 0.95)

    def judge(kind: str, o: Outcome, got: forecast.Prediction, now: float) -> None:
        within = got.finish_low <= o.finished_at <= got.finish_high
        if o.queueing_delay_s >= LEAST_WAIT_S:
            error_s, left_s = abs(got.start - o.started_at), max(1e-9, o.started_at - now)
            of_wait, of_rest = error_s / o.queueing_delay_s, error_s / left_s
            found[kind].append(Judged(of_wait, of_rest, within, got.on_time, o.met))

    for number in range(WARM_UP, last, max(1, (last - WARM_UP) // asks)):
        o = outcomes[number]
        now = o.job.arrival_s
        snapshot = snapshot_of(outcomes, number, now, slots, order)
        future = Known([work(later) for later in outcomes[number + 1 :]])
        with patch.object(forecast, "Arrivals", future if known else forecast.Arrivals):
            judge("published", o, forecast.of_new(snapshot, work(o)), now)
    for part in range(asks // 3):
        begin, end = arrivals[WARM_UP], arrivals[last]
        now = begin + (part + 0.5) * (end - begin) * 3 / asks
        number = bisect(arrivals, now)
        waiting = [o for o in outcomes[:number] if o.started_at > now]
        snapshot = snapshot_of(outcomes, number, now, slots, order)
        future = Known([work(later) for later in outcomes[number:]])
        with patch.object(forecast, "Arrivals", future if known else forecast.Arrivals):
            for position in random.sample(range(len(waiting)), min(3, len(waiting))):
                got = forecast.of_waiting(snapshot, position)
                judge("waiting", waiting[position], got, now)
    return found


def figures(
    arguments: argparse.Namespace, name: str, slots: int, rho: float, known: bool
) -> dict[str, Any]:
    """Return, by kind, the median errors and the means of the rest; ``None`` if no task had
    waited.
    """
    settings = Settings()
    kinds: dict[str, list[Judged]] = {}
    for seed in range(arguments.seeds):
        if arguments.trace == "six":
            jobs = six_types(arguments.tasks, seed=seed + 1)
        else:
            start = seed * arguments.tasks
            jobs = read_trace(arguments.trace)[start : start + arguments.tasks]
        jobs = at_load(jobs, slots, rho)
        outcomes = list(simulate(jobs, slots, order_of(name, settings), settings))
        found = ask(outcomes, slots, lambda: order_of(name, settings), arguments.asks, known)
        for kind, rows in found.items():
            kinds.setdefault(kind, []).extend(rows)
    judged: dict[str, Any] = {}
    for kind, rows in kinds.items():
        judged[kind] = {"waited": len(rows)}
        for number, figure in enumerate(Judged._fields):
            middle = statistics.median if figure.startswith("error") else statistics.mean
            judged[kind][figure] = middle(row[number] for row in rows) if rows else None
    return judged


def main() -> None:
    """Simulate, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1200)
    parser.add_argument("--asks", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--slots", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--rho", type=float, nargs="*", default=[0.9, 1.1])
    parser.add_argument("--trace", default="six", metavar="FILE")
    parser.add_argument("--orders", nargs="*", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    random.seed(1)
    cases = (
        (*CASES[case], slots, rho)
        for case in arguments.orders
        for slots in arguments.slots
        for rho in arguments.rho
    )
    if arguments.json:
        rows = [
            {"order": name, "known": known, "slots": slots, "rho": rho}
            | figures(arguments, name, slots, rho, known)
            for name, known, slots, rho in cases
        ]
        print(json.dumps({**vars(arguments), "rows": rows}, indent=2))
        return
    print_heading(
        workload=f"{arguments.trace}, {arguments.tasks} tasks a run, {arguments.seeds} runs, "
        f"{arguments.asks} questions of each kind a run, taus learned on the way",
        caveats=f"simulated; of tasks that waited {LEAST_WAIT_S:g} s or more; medians",
    )
    print(f"{'':<28}{'asked when published':>28}{'asked while it waits':>32}")
    head = f"{'order':<20}{'slots':>5}{'rho':>5}"
    print(f"{head}{'error, % of wait':>18}{'within, %':>11}", end="")
    print(f"{'% of wait':>11}{'% of rest':>11}{'within, %':>11}")
    for name, known, slots, rho in cases:
        found = figures(arguments, name, slots, rho, known)
        published, waiting = found["published"], found["waiting"]
        cells = (
            *(published["error_of_wait"], published["finish_within"]),
            *(waiting[key] for key in ("error_of_wait", "error_of_rest", "finish_within")),
        )
        label = f"{name}, arrivals known" if known else name
        texts = ("-" if cell is None else f"{100 * cell:.0f}" for cell in cells)
        text = "".join(f"{t:>{w}}" for t, w in zip(texts, (18, 11, 11, 11, 11), strict=True))
        print(f"{label:<20}{slots:>5}{rho:>5}{text}", flush=True)


if __name__ == "__main__":
    main()
