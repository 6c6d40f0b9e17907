"""``rts replay``: what if the recorded work had met other slots, another order, another k."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rts.cli.common import as_json, print_json, settings_of
from rts.cli.plots import Points, draw, plot_path
from rts.cli.replay_output import Answer
from rts.cli.table import terminal_width
from rts.cli.workloads import (
    Source,
    Workload,
    order_in_use,
    progress_bar,
    workload,
    workload_options,
)
from rts.errors import CommandError
from rts.simulation.orders import ORDERS
from rts.simulation.simulator import Outcome, finished
from rts.simulation.tally import Tally, offered_load, tally
from rts.simulation.traces import Job, write_trace

#: Jobs that each point of a curve is made from at most, the first ones.
CURVE_JOBS = 100_000
#: Points of a curve, as multiples of the slots, or of the load, that the table is about.
FACTORS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0)
#: Simulations that an answer is the mean of, and jobs in all of them, at most.
MAX_REPEATS, REPEATED_JOBS = 20, 50_000

_KEYS: dict[str, Callable[[Job], str]] = {
    "type": lambda job: job.task_type,
    "name": lambda job: job.name,
}


@click.command(name="replay", short_help="What if: other slots, another order, another k.")
@workload_options
@click.option(
    "--slots",
    type=click.IntRange(1, 100_000),
    help="Tasks that run at a time.  [default: as recorded; needed with --trace]",
)
@click.option(
    "--scheduler",
    "orders",
    type=click.Choice(ORDERS),
    multiple=True,
    help="The order; give several to compare.  [default: the app's]",
)
@click.option(
    "--by", type=click.Choice(list(_KEYS)), default="type", show_default=True, help="Rows."
)
@click.option(
    "--plot",
    callback=plot_path,
    metavar="FILE.svg|.png",
    help="Draw deadlines met against slots or load.",
)
@click.option(
    "--plot-by",
    type=click.Choice(["slots", "load"]),
    default="slots",
    show_default=True,
    help="What is varied.",
)
@click.option("--write", metavar="FILE.csv", help="Write the workload as a trace, too.")
@as_json
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
    """Simulate what was recorded, with something changed.

    The ledger says which tasks ran, when they arrived, how long they took and when they
    were due; all of them are taken to wait in one queue, for any of the slots. Without
    a change the answer is what happened, within the error of the simulation. With
    --trace taus are learned along the way, from the app's first taus.
    """
    found = workload(Source.taken_from(options), settings_of(ctx), ctx.obj.app.conf)
    slots = slots or found.slots
    if slots is None:
        raise click.UsageError("--trace needs --slots")
    names = tuple(dict.fromkeys(orders)) or (order_in_use(found.settings),)
    if write is not None:
        try:
            write_trace(write, found.jobs)
        except OSError as exc:
            raise CommandError(f"the trace cannot be written: {exc}") from exc
    answers = {name: repeated(found, slots, name, _KEYS[by]) for name in names}
    rho = offered_load(found.jobs, slots, found.conditions.speed)
    curves: Mapping[str, Points] = {}
    if plot is not None:
        curves = sweep(found, slots, names, plot_by)
        draw(
            plot,
            curves,
            title=f"{len(found.jobs):,} tasks",
            x_label="slots" if plot_by == "slots" else f"load ρ on {slots} slots",
            mark=slots if plot_by == "slots" else rho,
        )
    answer = Answer(found, slots, rho, by, _KEYS[by], answers)
    if as_json:
        points = {order: [list(point) for point in of] for order, of in curves.items()}
        print_json({**answer.as_document(), "curves": points})
        return
    click.echo(answer.as_text(terminal_width()))
    if plot is not None:
        click.echo(f"\n{plot} drawn")


def repeated(found: Workload, slots: int, order: str, key: Callable[[Job], str]) -> list[Tally]:
    """Return what several simulations come to, each with other draws of chance.

    Under overload a millisecond decides who is hopeful: one run is one draw.
    """
    repeats = 1
    if len(found.conditions.overheads) > 1:
        repeats = max(1, min(MAX_REPEATS, REPEATED_JOBS // len(found.jobs)))
    with progress_bar(f"simulating {order}", repeats * len(found.jobs)) as done:
        return [
            tally(
                outcomes(
                    replace(found, conditions=replace(found.conditions, seed=seed)),
                    slots,
                    order,
                ),
                key,
                done,
            )
            for seed in range(repeats)
        ]


def outcomes(
    found: Workload, slots: int, order: str, jobs: Sequence[Job] | None = None
) -> Iterator[tuple[int, Outcome]]:
    """Give what becomes of the workload, or of *jobs* out of it."""
    return finished(
        found.jobs if jobs is None else jobs,
        slots,
        found.order(order, slots),
        found.settings,
        conditions=found.conditions,
    )


def sweep(
    found: Workload, slots: int, orders: Sequence[str], against: str
) -> dict[str, list[tuple[float, float]]]:
    """Return a curve for each order: share met over slots, or over ρ (*against* ``load``)."""
    jobs = found.jobs[:CURVE_JOBS]
    curves: dict[str, list[tuple[float, float]]] = {order: [] for order in orders}
    with progress_bar("drawing", len(FACTORS) * len(orders) * len(jobs)) as done:
        for order in orders:
            if against == "slots":
                for number in sorted({max(1, round(slots * factor)) for factor in FACTORS}):
                    met = tally(outcomes(found, number, order, jobs), progress=done).share
                    curves[order].append((float(number), met))
                continue
            for factor in FACTORS:
                speed = found.conditions.speed * factor
                rho = offered_load(jobs, slots, speed)
                if rho is not None:
                    faster = replace(found, conditions=replace(found.conditions, speed=speed))
                    met = tally(outcomes(faster, slots, order, jobs), progress=done).share
                    curves[order].append((rho, met))
    if not all(curves.values()):
        raise CommandError("all tasks arrive at once: there is no load to draw")
    return curves
