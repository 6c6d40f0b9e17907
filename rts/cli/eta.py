"""``rts eta``: when a task will start and finish."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone

import click

from rts.cli.shared import as_json, iso, link_to_redis, print_json, settings_of
from rts.errors import CommandError
from rts.scheduling.outlook import Outlook


@click.command(name="eta", short_help="When a task will start and finish.")
@click.argument("task_id")
@click.option("--queue", help="Where it waits; by default the app's default queue.")
@as_json
@click.pass_context
def command(ctx: click.Context, task_id: str, queue: str | None, as_json: bool) -> None:
    """Predict the start and the finish of a task that waits or runs.

    From what is ahead of it, the taus and their spread, and the free slots. 90 of 100
    such tasks start and finish within the intervals.
    """
    app, settings = ctx.obj.app, settings_of(ctx)
    with link_to_redis(settings) as link:
        found = Outlook(app, settings, link).of_task(
            task_id, queue or app.conf.task_default_queue
        )
    if found is None:
        raise CommandError(
            f"{task_id} neither waits in the queue nor runs. rts show tells of finished tasks"
        )
    if as_json:
        instants = {
            key: datetime.fromtimestamp(value, timezone.utc)
            for key, value in asdict(found).items()
            if key not in ("on_time", "ahead", "slots")
        }
        print_json({**asdict(found), **instants})
        return
    now = datetime.now(timezone.utc).timestamp()
    rows = (
        ("start", found.start, found.start_low, found.start_high),
        ("finish", found.finish, found.finish_low, found.finish_high),
    )
    for name, middle, low, high in rows:
        at = iso(datetime.fromtimestamp(middle, timezone.utc))
        click.echo(
            f"{name:<9}{at}  in {middle - now:.1f} s ({low - now:.1f} to {high - now:.1f})"
        )
    due = iso(datetime.fromtimestamp(found.deadline, timezone.utc))
    click.echo(f"deadline {due}  met with a probability of {found.on_time:.0%}")
    click.echo(f"{found.ahead} tasks ahead of it, {found.slots} slots")
