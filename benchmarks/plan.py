"""Check capacity plans: record an overload, plan from its ledger, run with that plan.

    python benchmarks/plan.py --seeds 2,11 --targets 0.9,0.95

Each workload consists of the six types and is recorded on --slots slots, which are too few
for it, in deadline order. Servers and workers are real, embedded and private.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timedelta, timezone
from typing import Any

from heading import print_heading

from rts.cli.ledger_runs import runs
from rts.settings import Settings
from rts.simulation.orders import order_of
from rts.simulation.planning import Question, plan
from rts.simulation.recording import Recording, recording
from rts.simulation.simulator import Conditions
from rts.simulation.traces import Job, at_load, six_types
from rts.testing.replay import replay, share

COLUMNS = ("seed", "recorded", "order", "target", "slots", "real")


def main() -> None:
    """Record, plan, run with the plan, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rho", type=float, default=1.2)
    parser.add_argument("--speedup", type=float, default=100.0)
    parser.add_argument("--seeds", default="2,11")
    parser.add_argument("--targets", default="0.9,0.95")
    parser.add_argument("--orders", default="fifo,edf")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        jobs = at_load(six_types(arguments.tasks, seed=seed), arguments.slots, arguments.rho)
        past, met = record(jobs, arguments)
        for scheduler in arguments.orders.split(","):
            for target in map(float, arguments.targets.split(",")):
                slots = planned(past, scheduler, target)
                order = "edf" if scheduler == "edf" else None
                real = share(replay(jobs, slots, order, speedup=arguments.speedup))
                row = (seed, met, scheduler, target, slots, real)
                rows.append(dict(zip(COLUMNS, row, strict=True)))
    if arguments.json:
        print(json.dumps({**vars(arguments), "rows": rows}, indent=2))
        return
    print_heading(
        ("celery", "kombu", "redis"),
        workload=f"six types, {arguments.tasks} tasks, rho {arguments.rho} on "
        f"{arguments.slots} slots, recorded in deadline order, speed-up {arguments.speedup:g}",
    )
    print("".join(f"{column:>10}" for column in COLUMNS))
    for row in rows:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        print("".join(f"{cell:>10}" for cell in cells))


def record(jobs: list[Job], arguments: argparse.Namespace) -> tuple[Recording, float]:
    """Run *jobs* on too few slots; return the recording, and the share of deadlines met."""
    past: list[Recording] = []
    done = replay(
        jobs,
        arguments.slots,
        "edf",
        speedup=arguments.speedup,
        look=lambda ledger: past.append(recorded(ledger)),
    )
    return past[0], share(done)


def recorded(ledger: Any) -> Recording:
    """Return what *ledger* has of the last hour, as ``rts replay`` reads it."""
    now, hour = datetime.now(timezone.utc), timedelta(hours=1)
    found = recording(runs(ledger, (now - hour, now + hour)))
    assert found is not None
    return found


def planned(past: Recording, scheduler: str, target: float) -> int:
    """Return the slots for *target* as ``rts plan`` computes them."""
    settings = Settings()
    question = Question(
        past.jobs,
        target,
        lambda slots: order_of(scheduler, settings),
        settings,
        Conditions(overheads=past.overheads or (0.0,)),
    )
    return plan(question).slots


if __name__ == "__main__":
    main()
