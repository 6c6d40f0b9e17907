"""Replay a trace through real workers, and through the simulator beside it.

    python benchmarks/replay_trace.py --trace FILE.csv --slots N --speedup S
        --scheduler fifo|edf --rho R

The trace is a CSV file with the columns arrival_s, name, runtime_s and, optionally,
task_type; "six" stands for a synthetic one of the six types (--tasks, --seed). Its arrivals
are rescaled to the load ρ; with --tasks only its first jobs are replayed. Each job is a task
that sleeps runtime_s / S. Servers and worker are real, embedded and private.

"simulated" is the simulator's figure for the same input without overheads. "as run" includes
those that a speed-up makes S times as long: the worker's overhead between two runs (from its
ledger), and the delay until publishers use a learned tau. "by ledger" is the result of
rts replay on the ledger of this run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from heading import print_heading
from plan import recorded

from rts.settings import Settings
from rts.simulation.orders import order_of
from rts.simulation.recording import Recording
from rts.simulation.simulator import IDEAL, Conditions, simulate
from rts.simulation.traces import (
    Job,
    at_load,
    offered_load,
    read_trace,
    six_types,
    with_types,
    write_trace,
)
from rts.tasktypes import UNTYPED
from rts.testing.replay import Replayed, learning_lag_s, replay

#: Least mean and median seconds of a task for which Celery's own milliseconds, and the tenths
#: of a second until a tau is learned, matter little.
HONEST_MEAN_S, HONEST_MEDIAN_S = 0.5, 0.15

#: Simulations with random overheads, whose mean is shown.
REPEATS = 10

WHICH = ("real", "simulated", "as run", "by ledger")


def main() -> None:
    """Replay, simulate, and print both results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", default="six", metavar="FILE")
    parser.add_argument("--slots", type=count, default=16)
    parser.add_argument(
        "--speedup",
        type=above_0,
        help=f"default: tasks take {HONEST_MEAN_S} s on average, and {HONEST_MEDIAN_S} s in "
        "the median, at least",
    )
    parser.add_argument("--scheduler", choices=("fifo", "edf"), default="edf")
    parser.add_argument("--rho", type=above_0, default=1.2)
    parser.add_argument("--tasks", type=count, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--late-share", type=share, default=Settings().late_share)
    parser.add_argument("--write", metavar="FILE", help="write the rescaled trace, and end")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        jobs = workload(arguments)
        if arguments.write:
            write_trace(arguments.write, jobs)
            return
    except (ValueError, OSError) as exc:
        parser.error(str(exc))
    mean_s = statistics.fmean(job.runtime_s for job in jobs)
    median_s = statistics.median(job.runtime_s for job in jobs)
    honest = min(mean_s / HONEST_MEAN_S, median_s / HONEST_MEDIAN_S) or 1.0
    if arguments.speedup is None:
        arguments.speedup = honest
    if arguments.speedup > 1.01 * honest:
        print(
            f"with a speed-up above {honest:.4g} what Celery itself needs, and how soon it "
            "learns, shows in the figures; compare with 'as run'",
            file=sys.stderr,
        )
    settings = with_types(Settings(late_share=arguments.late_share), jobs)
    real, past = run(jobs, settings, arguments)
    shares = compare(jobs, settings, real, past, arguments)
    overhead_s = statistics.fmean(past.overheads or (0.0,))
    measured = {"overhead_s": overhead_s, "mean_task_s": mean_s / arguments.speedup}
    if arguments.json:
        print(json.dumps({**vars(arguments), **measured, "met": shares}, indent=2))
    else:
        show(shares, jobs, measured, arguments)


def show(
    shares: dict[str, dict[str, Any]],
    jobs: list[Job],
    measured: dict[str, float],
    arguments: argparse.Namespace,
) -> None:
    """Print the table."""
    print_heading(
        ("celery", "kombu", "redis"),
        workload=f"{os.path.basename(arguments.trace)}, {len(jobs)} tasks, "
        f"rho {offered_load(jobs, arguments.slots):.3g}, {arguments.slots} slots, "
        f"{arguments.scheduler}, speed-up {arguments.speedup:.4g}",
        caveats=f"one run; tasks sleep, {measured['mean_task_s']:.3f} s on average; "
        f"{measured['overhead_s'] * 1e3:.1f} ms between two runs of a slot",
    )
    print(f"{'deadlines met, %':<24}{'tasks':>8}" + "".join(f"{w:>11}" for w in WHICH))
    for kind, row in shares.items():
        figures = "".join(f"{100 * row[which]:>11.1f}" for which in WHICH)
        print(f"{kind:<24}{row['tasks']:>8}{figures}")


def above_0(text: str) -> float:
    """Read a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def count(text: str) -> int:
    """Read a whole number above 0."""
    above_0(text)
    return int(text)


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def workload(arguments: argparse.Namespace) -> list[Job]:
    """Return the jobs, rescaled to the requested load."""
    if arguments.trace == "six":
        jobs = six_types(arguments.tasks or 2000, seed=arguments.seed)
    else:
        jobs = read_trace(arguments.trace)[: arguments.tasks]
    return at_load(jobs, arguments.slots, arguments.rho)


def run(
    jobs: list[Job], settings: Settings, arguments: argparse.Namespace
) -> tuple[list[Replayed], Recording]:
    """Run the jobs with a real worker; return the outcomes and the recording."""
    past: list[Recording] = []

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total}", end="", file=sys.stderr)

    real = replay(
        jobs,
        arguments.slots,
        "edf" if arguments.scheduler == "edf" else None,
        settings=settings,
        speedup=arguments.speedup,
        progress=progress,
        look=lambda ledger: past.append(recorded(ledger)),
    )
    return real, past[0]


def compare(
    jobs: list[Job],
    settings: Settings,
    real: list[Replayed],
    past: Recording,
    arguments: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Return the number of tasks and the shares of deadlines met, by type and for all."""
    speedup = arguments.speedup
    overheads = past.overheads or (0.0,)
    slower = [overhead_s * speedup for overhead_s in overheads]
    as_run = Conditions(overheads=slower, learning_lag_s=learning_lag_s(speedup))

    def counted_as(job: Job) -> str:
        return job.task_type if job.task_type in settings.task_types else UNTYPED

    def simulated(what: Any, conditions: Conditions) -> list[tuple[str, bool]]:
        pairs = []
        for seed in range(REPEATS if len(conditions.overheads) > 1 else 1):
            drawn = replace(conditions, seed=seed)
            order = order_of(arguments.scheduler, settings)
            outcomes = simulate(what, arguments.slots, order, settings, conditions=drawn)
            pairs += [(counted_as(o.job), o.met) for o in outcomes]
        return pairs

    found = {
        "real": [(job.task_type, job.met) for job in real],
        "simulated": simulated(jobs, IDEAL),
        "as run": simulated(jobs, as_run),
        "by ledger": simulated(past.jobs, Conditions(overheads=overheads)),
    }
    met = {which: by_type(pairs) for which, pairs in found.items()}
    shares = {}
    for kind in sorted(met["real"]):
        of = {which: statistics.fmean(met[which][kind] or [0]) for which in WHICH}
        shares[kind] = {"tasks": len(met["real"][kind]), **of}
    return shares


def by_type(pairs: Iterable[tuple[str, bool]]) -> defaultdict[str, list[bool]]:
    """Return the verdicts by type, and of all tasks."""
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for kind, met in pairs:
        found["all"].append(met)
        found[kind].append(met)
    return found


if __name__ == "__main__":
    main()
