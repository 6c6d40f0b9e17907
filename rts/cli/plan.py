"""``rts plan``: the smallest number of slots that meets a target."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rts.cli.common import Number, json_option, print_json, progress_bar, settings_of
from rts.cli.plots import draw, plot_option
from rts.cli.table import NONE, Column, percent, render, terminal_width
from rts.cli.workloads import WorkloadOptions, workload, workload_options
from rts.errors import CommandError
from rts.simulation.orders import ORDERS, order_in_use
from rts.simulation.planning import RESAMPLES, Plan, Question, Unattainable, plan

#: Roughly how many numbers of slots are tried, for the progress bar.
TRIALS = 12


@click.command(name="plan", short_help="The smallest number of slots for a target.")
@click.option(
    "--target",
    type=Number(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="Share of deadlines to meet, 0 to 1.",
)
@click.option(
    "--by",
    type=click.Choice(["all", "type"]),
    default="all",
    show_default=True,
    help="What must meet it: the whole workload, or each type.",
)
@workload_options
@click.option(
    "--scheduler", type=click.Choice(ORDERS), help="Queue order.  [default: the app's]"
)
@click.option(
    "--resamples",
    type=click.IntRange(0, 1000),
    default=RESAMPLES,
    show_default=True,
    help="Resampled workloads that must meet it, too.",
)
@plot_option("Plot the share met around the answer.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    target: float,
    by: str,
    scheduler: str | None,
    resamples: int,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the smallest number of slots with which a workload meets a target.

    The workload is what the ledger recorded, or a trace. One recording is a single random
    sample, so workloads that are resampled from pieces of it must meet the target, too. The
    orders of --scheduler are those of rts replay.
    """
    found = workload(WorkloadOptions(**options), settings_of(ctx), ctx.obj.app)
    order = scheduler or order_in_use(found.settings)
    question = Question(
        found.jobs,
        target,
        lambda slots: found.workers_of(slots, order),
        found.settings,
        found.conditions,
        by_type=by == "type",
        resamples=resamples,
        recorded_slots=found.slots or 0,
    )
    try:
        with progress_bar("trying numbers of slots", TRIALS) as done:
            answer = plan(question, lambda: done(1))
    except Unattainable as exc:
        raise CommandError(str(exc)) from None
    if as_json:
        head = {"target": target, "by": by, "order": order, "resamples": resamples}
        print_json({**head, **found.conditions_json(), **asdict(answer)})
    else:
        click.echo(found.description)
        if answer.jobs < len(found.jobs):
            click.echo(f"planned with the busiest {answer.jobs:,} consecutive ones")
        click.echo(f"\n{_sentence(answer, target, by, order)}\n\n{_table(answer, by)}")
    if plot is not None:
        _draw(plot, answer, target)
        if not as_json:
            click.echo(f"\nPlot written to {plot}")


def _sentence(answer: Plan, target: float, by: str, order: str) -> str:
    slots = "1 slot meets" if answer.slots == 1 else f"{answer.slots} slots meet"
    whose = "of each type's" if by == "type" else "of the"
    return f"{slots} {100 * target:g}% {whose} deadlines in order {order}"


def _table(answer: Plan, by: str) -> str:
    of = "worst type %" if by == "type" else "met %"
    columns = [Column("slots"), Column("load"), Column(of), Column("worst resample %")]
    columns.append(Column("", number=False))
    rows = [
        (
            str(trial.slots),
            NONE if trial.rho is None else f"{trial.rho:.2f}",
            percent(trial.share),
            percent(trial.worst),
            "<- the answer" if trial.slots == answer.slots else "",
        )
        for trial in answer.trials
    ]
    return render(columns, rows, terminal_width())


def _draw(path: Path, answer: Plan, target: float) -> None:
    curves = {
        "the workload": [(float(trial.slots), trial.share) for trial in answer.trials],
        "worst resample": [(float(trial.slots), trial.worst) for trial in answer.trials],
    }
    draw(
        path,
        curves,
        title=f"{answer.jobs:,} tasks",
        x_label="slots",
        target=target,
        mark=answer.slots,
    )
