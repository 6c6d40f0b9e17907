"""``rts show``: one task in the ledger, with its runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from rts.cli.common import json_option, ledger_of, print_json, settings_of
from rts.cli.table import NONE, Column, facts, printable, render, seconds, terminal_width
from rts.errors import CommandError
from rts.views.json_values import iso
from rts.views.lateness_causes import load_at_start
from rts.views.runs import MAX_RUNS, one_task, visible

#: Fields that are durations.
_SECONDS = ("tau", "runtime_s", "lateness_s")


@click.command(name="show", short_help="One task and its runs.")
@click.argument("task_id")
@json_option
@click.pass_context
def command(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Show what the ledger knows about one task: its verdict and its runs."""
    settings = settings_of(ctx)
    with ledger_of(settings) as database:
        found = one_task(database, task_id)
    if found is None:
        raise CommandError(
            f"the ledger has no task {printable(task_id)[:200]}. It may not have ended yet, "
            "or its record waits in the outbox: see celery -A proj rts status"
        )
    task = None if found.task is None else visible(found.task, "task_id")
    runs = [visible(run, "run_id") for run in found.runs]
    if as_json:
        print_json({"task": task, "assignments": runs})
        return
    click.echo(fields_text(task) if task else "No verdict yet.")
    click.echo(f"\nRuns: {'the latest ' if len(runs) == MAX_RUNS else ''}{len(runs)}")
    if runs:
        click.echo(runs_table(runs, terminal_width()))


def fields_text(task: Mapping[str, Any]) -> str:
    """Return the fields of a task, one per line."""
    return facts(
        (key, f"{seconds(value)} s" if key in _SECONDS and value is not None else _text(value))
        for key, value in task.items()
    )


def runs_table(runs: list[dict[str, Any]], width: int | None) -> str:
    """Return the runs of a task as a table."""
    columns = (
        Column("retries"),
        Column("started", number=False, whole=True),
        Column("state", number=False),
        *map(Column, ("runtime s", "delay s", "late s", "cpu s", "load")),
        Column("worker", number=False),
    )
    rows = [
        (
            _text(run.get("retries")),
            _text(run.get("started_at")),
            " ".join(str(run[key]) for key in ("state", "cause") if run.get(key)),
            *(
                seconds(run.get(key))
                for key in ("runtime_s", "queueing_delay_s", "lateness_s", "cpu_s")
            ),
            _load(run),
            _text(run.get("worker")),
        )
        for run in runs
    ]
    return render(columns, rows, width)


def _load(run: Mapping[str, Any]) -> str:
    load = load_at_start(run)
    return NONE if load is None else f"{load:.2f}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, float):  # k, which has 16 digits where it is learned
        return str(round(value, 2))
    return NONE if value in (None, "") else str(value)
