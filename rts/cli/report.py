"""``rts report``: how the deadlines were met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import click

from rts.cli.common import instant, json_option, ledger_of, print_json, settings_of, window
from rts.cli.probes import fleet_now
from rts.cli.table import NONE, Column, percent, printable, render, seconds, terminal_width
from rts.views.json_values import iso
from rts.views.report import Percentiles, ReportRow, report


@click.command(name="report", short_help="Which deadlines were met.")
@click.option(
    "--since", callback=instant, default="24h", show_default=True, help="Start of the window."
)
@click.option("--until", callback=instant, help="End of the window, exclusive.  [default: now]")
@click.option(
    "--by",
    type=click.Choice(["type", "name", "worker", "queue"]),
    default="type",
    show_default=True,
    help="What to group rows by.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    since: timedelta | datetime,
    until: timedelta | datetime | None,
    by: str,
    as_json: bool,
) -> None:
    """Show which deadlines were met, of the tasks that ended, or came due, in a window.

    An instant is how long ago (90s, 15m, 24h, 7d, 2w) or ISO 8601 (UTC unless it has an
    offset). "on time" is the share of tasks that completed by their deadline, "goodput" the
    share that also succeeded; "tau error" is how far off the runtime forecasts were, relative
    to the runtime. Negative lateness is early.
    """
    settings = settings_of(ctx)
    begin, end = window(since, until, fleet_now(settings))
    with ledger_of(settings) as database:
        rows, total = report(database, begin, end, by)
    if as_json:
        print_json({"since": begin, "until": end, "by": by, "rows": rows, "total": total})
        return
    click.echo(f"Verdicts and runs from {iso(begin)} to {iso(end)}\n")
    if total is None:
        click.echo(
            "None. If tasks did run, celery -A proj rts status shows whether records are "
            "waiting, and --since looks further back."
        )
        return
    click.echo(report_tables([*rows, total], by, terminal_width()))


def report_tables(rows: Sequence[ReportRow], by: str, width: int | None) -> str:
    """Return *rows* as two tables: verdicts, and durations."""
    key = Column(by, number=False)
    verdicts = [
        (
            row.key,
            str(row.tasks),
            percent(row.on_time_ratio),
            percent(row.goodput_ratio),
            str(row.runs),
            percent(row.tau_error_ratio),
            misses_text(row.misses),
        )
        for row in rows
    ]
    durations = [
        (row.key, *_cells(row.runtime), *_cells(row.queueing_delay), *_cells(row.lateness))
        for row in rows
    ]
    return (
        f"{render((key, *_VERDICTS), verdicts, width)}\n\n"
        f"{render((key, *_DURATIONS), durations, width)}"
    )


_VERDICTS = (
    *map(Column, ("tasks", "on time %", "goodput %", "runs", "tau error %")),
    Column("misses", number=False),
)
_DURATIONS = tuple(
    Column(name, group=group)
    for group in ("runtime s", "queueing delay s", "lateness s")
    for name in ("p50", "p95", "p99")
)


def misses_text(misses: Mapping[str, int]) -> str:
    """Return misses by cause.

    >>> misses_text({"late": 3, "killed": 1}), misses_text({})
    ('3 late, 1 killed', '-')
    """
    return ", ".join(f"{n} {printable(cause)}" for cause, n in misses.items()) or NONE


def _cells(of: Percentiles | None) -> Sequence[str]:
    return (NONE,) * 3 if of is None else [seconds(s) for s in (of.p50_s, of.p95_s, of.p99_s)]
