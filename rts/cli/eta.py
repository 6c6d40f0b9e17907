"""``rts eta``: when a task will start and finish."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

import click

from rts.cli.common import (
    CONNECT_TIMEOUT_S,
    TIMEOUT_S,
    as_json,
    link_to_redis,
    print_json,
    settings_of,
)
from rts.clock import FleetClock
from rts.deadlines import MAX_INSTANT
from rts.errors import CommandError
from rts.predictions.predictor import Predictor
from rts.tau.cache import TauCache
from rts.views.plain import iso

#: What of a prediction is an instant.
INSTANTS = (
    *("start", "start_low", "start_high"),
    *("finish", "finish_low", "finish_high", "deadline"),
)


@click.command(name="eta", short_help="When a task will start and finish.")
@click.argument("task_id")
@click.option("--queue", help="Where it waits; by default anywhere.")
@as_json
@click.pass_context
def command(ctx: click.Context, task_id: str, queue: str | None, as_json: bool) -> None:
    """Predict the start and the finish of a task that waits or runs.

    From what is ahead of it, the taus and their spread, and the free slots. 90 of 100
    such tasks start and finish within the intervals.
    """
    settings = settings_of(ctx)
    with link_to_redis(settings) as link:
        clock = FleetClock()
        taus = TauCache(link, settings, clock)
        patient = replace(settings, connect_timeout=CONNECT_TIMEOUT_S, timeout=TIMEOUT_S)
        predictor = Predictor(ctx.obj.app, patient, link, taus.tau)
        try:
            found = predictor.of_task(task_id, queue)
        finally:
            predictor.close()
        taus.refresh()  # measures the clock
    if found is None:
        raise CommandError(
            f"{task_id} neither waits in a queue nor runs. rts show tells of finished tasks"
        )
    if as_json:
        document: dict[str, Any] = {"task_id": task_id, **asdict(found)}
        for key in INSTANTS:
            document[key] = _instant(document[key])
        print_json(document)
        return
    now = clock.now()
    rows = (
        ("start", found.start, found.start_low, found.start_high),
        ("finish", found.finish, found.finish_low, found.finish_high),
    )
    for name, middle, low, high in rows:
        click.echo(
            f"{name:<9}{_shown(middle)}  in {middle - now:.1f} s "
            f"({low - now:.1f} to {high - now:.1f})"
        )
    left = found.deadline - now
    due = f"in {left:.1f} s" if left >= 0 else f"{-left:.1f} s ago"
    click.echo(
        f"deadline {_shown(found.deadline)}  {due}, met with a probability of "
        f"{found.on_time:.0%}"
    )
    tasks = "task" if found.ahead == 1 else "tasks"
    slots = "slot" if found.slots == 1 else "slots"
    click.echo(f"{found.ahead} {tasks} ahead of it, {found.slots} {slots}")


def _instant(at: float) -> datetime | None:
    """Return an instant; ``None`` for never."""
    return datetime.fromtimestamp(at, timezone.utc) if at < MAX_INSTANT else None


def _shown(at: float) -> str:
    found = _instant(at)
    return f"{'never':<24}" if found is None else iso(found)
