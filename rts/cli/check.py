"""``rts check``: one line and an exit status for cron, Nagios and the like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from rts.cli.check_findings import (
    CRITICAL,
    OK,
    UNKNOWN,
    WARNING,
    Finding,
    objectives,
    servers,
    told_once,
    unknown,
)
from rts.cli.common import Number, json_option, outages_not_logged, print_json, settings_of
from rts.cli.table import printable
from rts.views.problems import MAX_LAG_S

NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
#: Which status counts if there are several: UNKNOWN must not hide a known problem.
_WORST_FIRST = (CRITICAL, WARNING, UNKNOWN, OK)

#: Age of the oldest record in the outbox from which on it is critical, in seconds.
CRITICAL_LAG_S = 5 * MAX_LAG_S


class CheckCommand(click.Command):
    """A wrong command line is UNKNOWN, as usual for plugins: 2 would be CRITICAL."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line."""
        try:
            ctx = super().make_context(*args, **kwargs)
            given = ctx.get_parameter_source("lag_warning") is ParameterSource.COMMANDLINE
            complete = not ctx.resilient_parsing  # else a shell asks how the line may go on
            if complete and given and ctx.params["lag_warning"] > ctx.params["lag_critical"]:
                raise click.UsageError("--lag-warning must not exceed --lag-critical", ctx)
            return ctx
        except click.UsageError as exc:
            exc.exit_code = UNKNOWN  # type: ignore[misc]  # not for its whole class
            raise


@click.command(
    name="check", cls=CheckCommand, short_help="One line and an exit status for monitoring."
)
@click.option("--slo", is_flag=True, help="Check the objectives.")
@click.option("--lag", is_flag=True, help="Check servers, fleet and outbox.")
@click.option("--type", "types", multiple=True, help="Only this task type; may be repeated.")
@click.option("--name", "names", multiple=True, help="Only this task; may be repeated.")
@click.option("--queue", "queues", multiple=True, help="Only this queue; may be repeated.")
@click.option(
    "--lag-warning",
    type=Number(min=0),
    default=MAX_LAG_S,
    show_default=True,
    help="WARNING if the oldest record has waited for this many seconds.",
)
@click.option(
    "--lag-critical",
    type=Number(min=0),
    default=CRITICAL_LAG_S,
    show_default=True,
    help="CRITICAL if the oldest record has waited for this many seconds.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    slo: bool,
    lag: bool,
    types: tuple[str, ...],
    names: tuple[str, ...],
    queues: tuple[str, ...],
    lag_warning: float,
    lag_critical: float,
    as_json: bool,
) -> None:
    """Print one line with performance data; the exit status is 0 OK, 1 WARNING, 2 CRITICAL, 3
    UNKNOWN. Without --slo or --lag, both are checked.

    Objectives: CRITICAL if an error budget burns fast enough for a page, WARNING if fast enough
    for a ticket or if it is used up, UNKNOWN if MongoDB is not reachable. A type, task or queue
    without an objective of its own is held to that of '*'.

    Lag: CRITICAL if a server is not reachable, Redis takes no records (it is full, cannot
    write to its disk, is a replica or a cluster, or refuses scripts), tasks are overdue and no
    worker with slots is alive, or the oldest record has waited for --lag-critical seconds,
    WARNING if it has for --lag-warning seconds or records were dropped.
    """
    asked = {"task_type": types, "name": names, "queue": queues}
    chosen = any(asked.values())
    findings: list[Finding] = []
    with outages_not_logged(), unknown(findings):
        settings = settings_of(ctx)
        if slo or chosen or not lag:
            with unknown(findings):
                findings += objectives(settings, asked)
        if lag or not (slo or chosen):
            findings += servers(ctx.obj.app, settings, lag_warning, lag_critical)
    findings = told_once(findings)
    code = worst(findings)
    if as_json:
        print_json(
            {
                "status": NAMES[code],
                "code": code,
                "findings": [
                    {"status": NAMES[f.code], "text": f.text, **f.document} for f in findings
                ],
            }
        )
    else:
        click.echo(line(findings))
    ctx.exit(code)


def worst(findings: Sequence[Finding]) -> int:
    """Return the status of all *findings* together."""
    codes = {finding.code for finding in findings}
    return next(code for code in _WORST_FIRST if code in codes)


def line(findings: Sequence[Finding]) -> str:
    """Return the one line: what is wrong, or everything if all is well; then the numbers.

    >>> line([Finding(OK, "a"), Finding(WARNING, "b", [("b's|lag", "7s", "5", "")])])
    "RTS WARNING - b | 'b s lag'=7s;5"
    """
    code = worst(findings)
    texts = [f.text for f in sorted(findings, key=lambda f: _WORST_FIRST.index(f.code))]
    if code != OK:
        texts = texts[: sum(f.code != OK for f in findings)]
    text = " ; ".join(printable(each).replace("|", "/") for each in texts)
    numbers = [
        f"'{_label(label)}'={value};{warning};{critical}".rstrip(";")
        for finding in findings
        for label, value, warning, critical in finding.numbers
    ]
    return f"RTS {NAMES[code]} - {text}" + (f" | {' '.join(numbers)}" if numbers else "")


def _label(text: str) -> str:
    return "".join(" " if c in "'=|" else c for c in printable(text))
