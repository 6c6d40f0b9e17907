"""``rts replay``: the recorded work with other slots, another order, another k."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rts.cli.common import json_option, print_json, progress_bar, settings_of, with_progress
from rts.cli.plots import Points, draw, plot_option
from rts.cli.replay_output import KEYS, Answer
from rts.cli.table import terminal_width
from rts.cli.workloads import Workload, WorkloadOptions, workload, workload_options
from rts.errors import CommandError
from rts.simulation.orders import ORDERS, order_in_use
from rts.simulation.simulator import Outcome, finished
from rts.simulation.statistics import Tally, tally
from rts.simulation.traces import Job, enough_slots, offered_load, write_trace

#: Jobs that each point of a curve is simulated with at most: the first ones.
CURVE_JOBS = 100_000
#: Points of a curve, as multiples of the slots, or of the load, in the table.
FACTORS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0)
#: Simulations that a result is the mean of at most, and jobs in all of them.
MAX_REPEATS, REPEATED_JOBS = 20, 50_000


@click.command(name="replay", short_help="What if: other slots, another order, another k.")
@workload_options
@click.option(
    "--slots",
    type=click.IntRange(1, 100_000),
    help="Tasks that run at a time.  [default: as recorded; for a trace, the fewest at a load "
    "below 1]",
)
@click.option(
    "--scheduler",
    "orders",
    type=click.Choice(ORDERS),
    multiple=True,
    help="Queue order; repeat it to compare several.  [default: the app's]",
)
@click.option(
    "--by",
    type=click.Choice(list(KEYS)),
    default="type",
    show_default=True,
    help="What to group rows by.",
)
@plot_option("Plot deadlines met against slots or load.")
@click.option(
    "--plot-by",
    type=click.Choice(["slots", "load"]),
    default="slots",
    show_default=True,
    help="What the plot varies.",
)
@click.option("--write", metavar="FILE.csv", help="Also write the workload as a trace.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    slots: int | None,
    orders: tuple[str, ...],
    by: str,
    plot: Path | None,
    plot_by: str,
    write: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Simulate the recorded work with something changed.

    The ledger says which tasks ran, when they arrived, how long they took and when they were
    due; the workers take them from their queues. With nothing changed the result is what
    happened, within the error of the simulation. With --trace, taus are learned along the way,
    from the app's first taus.

    Orders: fifo is the broker's own, edf that of rts_scheduler = "edf", plain-edf the same
    without demoting hopeless tasks, sjf runs the shortest job first.
    """
    if plot is None and ctx.get_parameter_source("plot_by") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--plot-by needs --plot")
    found = workload(WorkloadOptions(**options), settings_of(ctx), ctx.obj.app)
    slots = slots or found.slots or enough_slots(found.jobs, found.conditions.speed)
    names = tuple(dict.fromkeys(orders)) or (order_in_use(found.settings),)
    if write is not None:
        try:
            write_trace(write, found.jobs)
        except OSError as exc:
            raise CommandError(f"the trace cannot be written: {exc}") from exc
    answers = {name: repeated(found, slots, name, KEYS[by]) for name in names}
    rho = offered_load(found.jobs, slots, found.conditions.speed)
    curves: Mapping[str, Points] = {}
    if plot is not None:
        curves = sweep(found, slots, names, plot_by)
    answer = Answer(found, slots, rho, by, answers)
    if as_json:
        points = {order: [list(point) for point in of] for order, of in curves.items()}
        print_json({**answer.as_document(), "curves": points})
    else:
        click.echo(answer.as_text(terminal_width()))
    if plot is not None:
        draw(
            plot,
            curves,
            title=f"{len(found.jobs):,} tasks",
            x_label="slots" if plot_by == "slots" else f"load ρ on {slots} slots",
            mark=slots if plot_by == "slots" else rho,
        )
        if not as_json:
            click.echo(f"\nPlot written to {plot}")


def repeated(found: Workload, slots: int, order: str, key: Callable[[Job], str]) -> list[Tally]:
    """Return the outcomes of several simulations, each with another random seed.

    Under overload a millisecond decides who is hopeful: one simulation is one random sample.
    """
    repeats = 1
    if len(found.conditions.overheads) > 1:
        repeats = max(1, min(MAX_REPEATS, REPEATED_JOBS // len(found.jobs)))
    seeded = [replace(found.conditions, seed=seed) for seed in range(repeats)]
    with progress_bar(f"simulating {order}", repeats * len(found.jobs)) as done:
        runs = (outcomes(replace(found, conditions=each), slots, order) for each in seeded)
        return [tally(with_progress(run, done), key) for run in runs]


def outcomes(
    found: Workload, slots: int, order: str, jobs: Sequence[Job] | None = None
) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcomes of the workload, or of *jobs* out of it."""
    return finished(
        found.jobs if jobs is None else jobs,
        slots,
        found.workers_of(slots, order),
        found.settings,
        conditions=found.conditions,
    )


def sweep(
    found: Workload, slots: int, orders: Sequence[str], against: str
) -> dict[str, list[tuple[float, float]]]:
    """Return a curve for each order: share met over slots, or over ρ (*against* ``load``).

    Raises:
        CommandError: there is no load, as all tasks arrive at once.
    """
    jobs = found.jobs[:CURVE_JOBS]
    variants: list[tuple[float, int, Workload]] = []
    if against == "slots":
        numbers = sorted({max(1, round(slots * factor)) for factor in FACTORS})
        variants = [(float(number), number, found) for number in numbers]
    else:
        for factor in FACTORS:
            faster = replace(found.conditions, speed=found.conditions.speed * factor)
            rho = offered_load(jobs, slots, faster.speed)
            if rho is None:
                raise CommandError("all tasks arrive at once: there is no load to plot")
            variants.append((rho, slots, replace(found, conditions=faster)))
    with progress_bar("plotting", len(variants) * len(orders) * len(jobs)) as done:
        return {
            order: [
                (x, tally(with_progress(outcomes(changed, number, order, jobs), done)).share)
                for x, number, changed in variants
            ]
            for order in orders
        }
