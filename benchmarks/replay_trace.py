"""Replay a trace through real workers, and through the simulator beside it.

    python benchmarks/replay_trace.py --trace FILE.csv --slots N --speedup S
        --scheduler fifo|edf --rho R

The trace is a CSV file with the columns arrival_s, name, runtime_s and, optionally,
task_type; "six" stands for one that is made up of the six types (--tasks, --seed).
Its arrivals are rescaled to the load ρ; with --tasks only so many of its jobs, from
its beginning, are replayed. Each job is a task that sleeps runtime_s / S. Servers and
worker are real, embedded and private.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import defaultdict
from importlib.metadata import version

from rts.settings import Settings
from rts.simulation.orders import EarliestDeadlineFirst, FirstComeFirstServed, Order
from rts.simulation.simulator import simulate
from rts.simulation.traces import at_load, read_trace, six_types, write_trace
from rts.testing.replay import replay


def main() -> None:
    """Replay, simulate, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", default="six", metavar="FILE")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--speedup", type=float, default=100.0)
    parser.add_argument("--scheduler", choices=("fifo", "edf"), default="edf")
    parser.add_argument("--rho", type=float, default=1.2)
    parser.add_argument("--tasks", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--late-share", type=float, default=Settings().late_share)
    parser.add_argument("--write", metavar="FILE", help="write the rescaled trace, and end")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    if arguments.trace == "six":
        jobs = six_types(arguments.tasks or 2000, seed=arguments.seed)
    else:
        jobs = read_trace(arguments.trace)[: arguments.tasks]
    jobs = at_load(jobs, arguments.slots, arguments.rho)
    if arguments.write:
        write_trace(arguments.write, jobs)
        return
    edf = arguments.scheduler == "edf"
    settings = Settings(late_share=arguments.late_share)
    order: Order = FirstComeFirstServed()
    if edf:
        order = EarliestDeadlineFirst(late_share=arguments.late_share)
    simulated = simulate(jobs, arguments.slots, order, settings)

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total}", end="", file=sys.stderr)

    replayed = replay(
        jobs,
        arguments.slots,
        "edf" if edf else None,
        settings=settings,
        speedup=arguments.speedup,
        progress=progress,
    )
    met: dict[str, dict[str, list[bool]]] = {
        "real": defaultdict(list),
        "simulated": defaultdict(list),
    }
    for job in replayed:
        for kind in ("all", job.task_type):
            met["real"][kind].append(job.met)
    for outcome in simulated:
        for kind in ("all", outcome.job.task_type):
            met["simulated"][kind].append(outcome.met)
    shares = {
        kind: {
            "tasks": len(met["real"][kind]),
            **{which: sum(met[which][kind]) / len(met[which][kind]) for which in met},
        }
        for kind in sorted(met["real"])
    }
    if arguments.json:
        print(json.dumps({**vars(arguments), "met": shares}, indent=2))
        return
    packages = ", ".join(f"{p} {version(p)}" for p in ("celery", "kombu", "redis"))
    mean_s = sum(job.runtime_s for job in jobs) / len(jobs) / arguments.speedup
    print(f"machine    {platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"versions   Python {platform.python_version()}, {packages}")
    print(
        f"workload   {arguments.trace}, {len(jobs)} tasks, rho {arguments.rho}, "
        f"{arguments.slots} slots, {arguments.scheduler}, speed-up {arguments.speedup:g}"
    )
    print(f"caveats    tasks sleep, {mean_s:.3f} s on average; one run")
    print()
    print(f"{'deadlines met, %':<24}{'tasks':>8}{'real':>8}{'simulated':>11}")
    for kind, row in shares.items():
        real, model = 100 * row["real"], 100 * row["simulated"]
        print(f"{kind:<24}{row['tasks']:>8}{real:>8.1f}{model:>11.1f}")


if __name__ == "__main__":
    main()
