"""``rts eta``: when a task will start and finish."""

from __future__ import annotations

from dataclasses import asdict, replace

import click

from rts.cli.common import (
    CONNECT_TIMEOUT_S,
    TIMEOUT_S,
    json_option,
    link_to_redis,
    print_json,
    settings_of,
)
from rts.cli.table import printable
from rts.clock import FleetClock
from rts.errors import CommandError
from rts.predictions.prediction import Prediction
from rts.predictions.predictor import Predictor
from rts.tau.cache import TauCache
from rts.views.json_values import iso, utc
from rts.views.plurals import counted

#: The fields of a prediction that are instants.
INSTANTS = (
    *("start", "start_low", "start_high"),
    *("finish", "finish_low", "finish_high", "deadline"),
)


@click.command(name="eta", short_help="When a task will start and finish.")
@click.argument("task_id")
@click.option("--queue", help="Queue to search.  [default: all]")
@json_option
@click.pass_context
def command(ctx: click.Context, task_id: str, queue: str | None, as_json: bool) -> None:
    """Predict when a task that waits or runs will start and finish.

    The prediction uses the tasks ahead of it, the taus and their spread, and the free slots. 90
    of 100 such tasks start and finish within the intervals.
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
        where = f" in the queue {printable(queue)[:200]}" if queue else ""
        raise CommandError(
            f"task {printable(task_id)[:200]} is neither waiting nor running{where}. For a "
            "finished task see rts show"
        )
    if as_json:
        instants = {key: utc(getattr(found, key)) for key in INSTANTS}
        print_json({"task_id": task_id, **asdict(found), **instants})
    else:
        click.echo(_text(found, clock.now()))


def _text(found: Prediction, now: float) -> str:
    """Return what is predicted as lines."""
    return "\n".join(
        (
            _line("start", found.start, found.start_low, found.start_high, now),
            _line("finish", found.finish, found.finish_low, found.finish_high, now),
            f"deadline {_shown(found.deadline)}  {_from_now(found.deadline - now)}, met with a "
            f"probability of {found.on_time:.0%}",
            f"{counted(found.ahead, 'task')} ahead of it, {counted(found.slots, 'slot')}",
        )
    )


def _line(name: str, middle: float, low: float, high: float, now: float) -> str:
    """Return the line of a predicted instant, which is never for a task that is dropped; the
    start of a task that runs is known.

    >>> _line("start", 97.0, 97.0, 97.0, 100.0)
    'start    1970-01-01T00:01:37.000Z  3.0 s ago'
    >>> _line("start", 130.0, 125.0, float("inf"), 100.0)
    'start    1970-01-01T00:02:10.000Z  in 30.0 s (25.0 to never)'
    >>> _line("start", float("inf"), 125.0, float("inf"), 100.0)
    'start    never'
    """
    at = utc(middle)
    if at is None:
        return f"{name:<9}never"
    text = f"{name:<9}{iso(at)}  {_from_now(middle - now)}"
    if high <= now:
        return text
    latest = "never" if utc(high) is None else f"{high - now:.1f}"
    return f"{text} ({low - now:.1f} to {latest})"


def _from_now(seconds: float) -> str:
    return f"in {seconds:.1f} s" if seconds >= 0 else f"{-seconds:.1f} s ago"


def _shown(at: float) -> str:
    found = utc(at)
    return "never" if found is None else iso(found)
