"""``rts drain``: move the outbox into the ledger, without a worker."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import click

from rts.cli.common import (
    json_option,
    outages_not_logged,
    print_json,
    set_on_signals,
    settings_of,
)
from rts.companion.loop import drain_alone
from rts.errors import StoreUnavailable
from rts.views.plurals import counted


@click.command(name="drain", short_help="Move finished runs into MongoDB.")
@click.option("--once", is_flag=True, help="Exit when the outbox is empty.")
@json_option
@click.pass_context
def command(ctx: click.Context, once: bool, as_json: bool) -> None:
    """Move finished runs from Redis into MongoDB until Ctrl-C or SIGTERM.

    Every worker does this too, unless rts_drain is False; any number of drains may run at once.
    It also ships this host's spool and saves a snapshot of the taus. Without --once, it also
    ends the runs of workers that died, detects overdue tasks and sends alerts.
    """
    settings = settings_of(ctx)
    logging.basicConfig(format="[%(asctime)s: %(levelname)s/rts] %(message)s")
    if not once:
        click.echo("Draining. Press Ctrl-C to stop.", err=True)
    try:
        with set_on_signals() as stop, outages_not_logged() if once else nullcontext():
            moved = drain_alone(settings, stop, once=once)
    except StoreUnavailable as exc:
        raise StoreUnavailable(
            f"{exc}. Check the server, rts_redis_url and rts_mongo_url"
        ) from exc
    if as_json:
        print_json({"moved": moved})
    else:
        click.echo(f"{counted(moved, 'record')} moved")
