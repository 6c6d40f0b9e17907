"""``rts watch``: a live view in the terminal."""

from __future__ import annotations

import os
import sys

import click

from rts.cli.common import Number, json_option, outages_not_logged, print_json, settings_of
from rts.cli.table import is_terminal, terminal_width
from rts.cli.watch_data import Gatherer, document
from rts.cli.watch_panels import lines, lines_within
from rts.cli.watch_screen import live


@click.command(name="watch", short_help="A live view in the terminal.")
@click.option(
    "--interval",
    type=Number(0.2, 86400),
    default=2.0,
    show_default=True,
    help="Seconds between refreshes.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, interval: float, as_json: bool) -> None:
    """Show a live view of deadlines met by type, objectives with their error budgets, queues,
    workers and the backlog of records, until q or Ctrl-C.

    "now" is the last five minutes. If the output is not a terminal, or TERM is dumb, print it
    once.
    """
    app, settings = ctx.obj.app, settings_of(ctx)
    gatherer = Gatherer(app, settings)
    with outages_not_logged():
        if as_json:
            print_json(document(gatherer.gather()))
        elif os.environ.get("TERM") == "dumb" or not (
            is_terminal(sys.stdout) and is_terminal(sys.stdin)
        ):
            click.echo("\n".join(lines(gatherer.gather(), settings, terminal_width())))
        else:
            live(
                gatherer.gather,
                lambda snapshot, *size: lines_within(snapshot, settings, *size),
                interval,
            )
