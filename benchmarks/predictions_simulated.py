"""How well can starts be foretold at all? Predictions within simulations, in both orders.

    python benchmarks/predictions_simulated.py [--tasks N] [--asks N]

Each simulated run is asked, as real ones are (benchmarks/predictions.py): about tasks
that are published just then, and about tasks that wait at some moment. "arrivals known"
is what nobody has: the prediction is told every later arrival, with its type, tau and
deadline, though not the runtimes. What is still off then no predictor can know, and what
is off more without it hangs on what is yet to be published.
"""

from __future__ import annotations

import argparse
import random
import statistics
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

from heading import print_heading

from rts.ledger.recent import RUNS
from rts.scheduling import forecast
from rts.scheduling.draws import Work
from rts.scheduling.play import Running, Snapshot
from rts.settings import Settings
from rts.simulation.orders import Order, order_of
from rts.simulation.simulator import Outcome, simulate
from rts.simulation.traces import at_load, read_trace, six_types

#: Tasks until the first question, and waits that are none: a tenth of the mean runtime.
WARM_UP, LEAST_WAIT_S = 300, 2.0


def work(outcome: Outcome) -> Work:
    """Return a job as a prediction sees it."""
    job = outcome.job
    return Work(job.task_type, job.arrival_s, outcome.tau, outcome.deadline)


class Known:
    """Arrivals that are known, in place of those that are drawn."""

    def __init__(self, future: Sequence[Work]) -> None:
        self._future = future

    def __call__(self, *_: object) -> Known:
        return self

    def stream(self) -> Iterator[Work]:
        """Return what arrives."""
        return iter(self._future)


def snapshot_of(outcomes: list[Outcome], number: int, now: float, slots: int) -> Snapshot:
    """Return what is known at *now*, when *number* tasks have been published."""
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
        lately=[work(o) for o in came if o.job.arrival_s > since],
        span_s=now - since,
        turns=[random.randrange(20)],
    )


def ask(
    outcomes: list[Outcome], slots: int, order: Callable[[], Order], asks: int, known: bool
) -> dict[str, list[tuple[float, float, bool]]]:
    """Return, for tasks asked when published and for tasks that wait: share of the wait by
    which the start is off, the same of what was left of it, and whether the finish was
    within.
    """
    found: dict[str, list[tuple[float, float, bool]]] = {"published": [], "waiting": []}
    arrivals = [o.job.arrival_s for o in outcomes]
    last = int(len(outcomes) * 0.95)

    def judge(kind: str, o: Outcome, got: forecast.Prediction, now: float) -> None:
        within = got.finish_low <= o.finished_at <= got.finish_high
        if o.queueing_delay_s >= LEAST_WAIT_S:
            error_s, left_s = abs(got.start - o.started_at), max(1e-9, o.started_at - now)
            found[kind].append((error_s / o.queueing_delay_s, error_s / left_s, within))

    for number in range(WARM_UP, last, max(1, (last - WARM_UP) // asks)):
        o = outcomes[number]
        now = o.job.arrival_s
        snapshot = snapshot_of(outcomes, number, now, slots)
        future = Known([work(later) for later in outcomes[number + 1 :]])
        with patch.object(forecast, "Arrivals", future if known else forecast.Arrivals):
            judge("published", o, forecast.of_new(snapshot, work(o), order), now)
    for part in range(asks // 3):
        begin, end = arrivals[WARM_UP], arrivals[last]
        now = begin + (part + 0.5) * (end - begin) * 3 / asks
        number = bisect(arrivals, now)
        waiting = [o for o in outcomes[:number] if o.started_at > now]
        snapshot = snapshot_of(outcomes, number, now, slots)
        future = Known([work(later) for later in outcomes[number:]])
        with patch.object(forecast, "Arrivals", future if known else forecast.Arrivals):
            for position in random.sample(range(len(waiting)), min(3, len(waiting))):
                got = forecast.of_waiting(snapshot, position, order)
                judge("waiting", waiting[position], got, now)
    return found


def main() -> None:
    """Simulate, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1200)
    parser.add_argument("--asks", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--slots", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--rho", type=float, nargs="*", default=[0.9, 1.1])
    parser.add_argument("--trace", default="six", metavar="FILE")
    arguments = parser.parse_args()
    random.seed(1)
    print_heading(
        workload=f"{arguments.trace}, {arguments.tasks} tasks a run, {arguments.seeds} runs, "
        f"{arguments.asks} questions of each kind a run, taus learned on the way",
        caveats=f"simulated; of tasks that waited {LEAST_WAIT_S:g} s or more; medians",
    )
    print(f"{'':<28}{'asked when published':>28}{'asked while it waits':>32}")
    head = f"{'order':<20}{'slots':>5}{'rho':>5}"
    print(f"{head}{'error, % of wait':>18}{'within, %':>11}", end="")
    print(f"{'% of wait':>11}{'% of rest':>11}{'within, %':>11}")
    for name, known in (("fifo", False), ("edf", False), ("edf", True)):
        settings = Settings()
        for slots in arguments.slots:
            for rho in arguments.rho:
                kinds: dict[str, list[tuple[float, float, bool]]] = {}
                for seed in range(1, arguments.seeds + 1):
                    if arguments.trace == "six":
                        jobs = six_types(arguments.tasks, seed=seed)
                    else:
                        start = (seed - 1) * arguments.tasks
                        jobs = read_trace(arguments.trace)[start : start + arguments.tasks]
                    jobs = at_load(jobs, slots, rho)
                    outcomes = list(simulate(jobs, slots, order_of(name, settings), settings))
                    asked = ask(
                        outcomes,
                        slots,
                        lambda name=name: order_of(name, Settings()),  # type: ignore[misc]
                        arguments.asks,
                        known,
                    )
                    for kind, rows in asked.items():
                        kinds.setdefault(kind, []).extend(rows)
                cells = []
                for kind in ("published", "waiting"):
                    columns = list(zip(*kinds[kind], strict=True)) or [[0.0], [0.0], [True]]
                    cells.append([100 * statistics.median(c) for c in columns[:2]])
                    cells[-1].append(100 * statistics.mean(columns[2]))
                (a, _, b), (c, d, e) = cells
                label = f"{name}, arrivals known" if known else name
                print(
                    f"{label:<20}{slots:>5}{rho:>5}{a:>18.0f}{b:>11.0f}"
                    f"{c:>11.0f}{d:>11.0f}{e:>11.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
