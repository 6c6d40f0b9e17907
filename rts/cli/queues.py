"""``rts queues``: what waits in the queues, and in which order."""

from __future__ import annotations

import click

from rts.cli.common import json_option, link_to_redis, print_json, settings_of
from rts.cli.probes import fleet_now
from rts.cli.table import NONE, Column, render, seconds, terminal_width
from rts.errors import CommandError, StoreUnavailable
from rts.scheduling import queues
from rts.scheduling.discovery import FleetQueues, all_queue_names, fleet_queues
from rts.settings import Settings
from rts.views.plurals import counted
from rts.views.queue_state import queue_document


@click.command(name="queues", short_help="What waits in the queues.")
@click.option(
    "--to-fifo", is_flag=True, help="Move what waits in deadline order to plain lists."
)
@json_option
@click.pass_context
def command(ctx: click.Context, to_fifo: bool, as_json: bool) -> None:
    """Show the queues of a Redis broker: those of the app, those that its workers consume, and
    all that hold messages in deadline order.

    "ordered" messages wait in deadline order, "demoted" ones are hopeless and wait behind them,
    "plain" ones wait in order of arrival, as without rts_scheduler = "edf".

    Use --to-fifo once that setting is removed from all producers and workers: workers without
    it see plain messages only.
    """
    app, settings = ctx.obj.app, settings_of(ctx)
    with queues.ordered_channel(app, settings) as channel:
        if channel is None:
            raise CommandError("the broker is not Redis: it orders its queues itself")
        names = all_queue_names(app, settings, channel, _fleet(settings))
        moved = {name: queues.move_to_lists(channel, name) for name in names} if to_fifo else {}
        states = [queues.state_of(channel, name) for name in names]
    if as_json:
        rows = list(map(queue_document, states))
        print_json({"scheduler": settings.scheduler, "queues": rows, "moved": moved})
        return
    if to_fifo:
        click.echo(f"{counted(sum(moved.values()), 'message')} moved")
    now = fleet_now(settings).timestamp()
    table = [
        (
            state.name,
            str(state.ordered),
            str(state.demoted),
            str(state.plain),
            NONE if state.next_deadline is None else seconds(state.next_deadline - now),
        )
        for state in states
    ]
    click.echo(render(_COLUMNS, table, terminal_width()))


def _fleet(settings: Settings) -> FleetQueues:
    """Return the queues that the fleet knows; none, with a note, if Redis is unavailable."""
    try:
        with link_to_redis(settings) as link:
            return fleet_queues(link, settings)
    except StoreUnavailable as exc:
        click.echo(f"Note: queues that only the workers know are missing. {exc}", err=True)
        return FleetQueues()


_COLUMNS = (
    Column("queue", number=False),
    *map(Column, ("ordered", "demoted", "plain", "next due in s")),
)
