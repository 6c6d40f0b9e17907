"""The command line: ``celery -A proj rts …``.

Celery imports this package whenever ``celery`` starts, workers included (entry points of the
group ``celery.commands``). So it imports nothing heavy: each command is a module of its own,
loaded when it is called.

The other modules serve several commands (:mod:`~rts.cli.common`, :mod:`~rts.cli.table`), or are
parts of some: what status, check and watch ask (:mod:`~rts.cli.probes`), how status and watch
show the fleet (:mod:`~rts.cli.fleet`), and what check makes of the answers
(:mod:`~rts.cli.check_findings`); the view of watch (:mod:`~rts.cli.watch_data`,
:mod:`~rts.cli.watch_panels`, :mod:`~rts.cli.watch_fitting`, :mod:`~rts.cli.watch_screen`); the
workload of replay and plan (:mod:`~rts.cli.workloads`, :mod:`~rts.cli.ledger_runs`) and their
output (:mod:`~rts.cli.replay_output`, :mod:`~rts.cli.plots`).
"""

from __future__ import annotations

import io
import sys
from importlib import import_module

import click
from celery.bin.base import handle_preload_options

from rts.errors import RtsError

#: The commands; each is a module here with a ``command``.
COMMANDS = (
    "check",
    "drain",
    "eta",
    "exporter",
    "plan",
    "queues",
    "replay",
    "report",
    "show",
    "status",
    "tau",
    "watch",
)


class RtsGroup(click.Group):
    """Loads its commands when they are needed, and is the boundary for errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, ``None`` if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"rts.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command. An :class:`RtsError` becomes one line and exit status 1."""
        _escape_unencodable()
        try:
            return super().invoke(ctx)
        except RtsError as exc:
            raise click.ClickException(str(exc)) from exc


def _escape_unencodable() -> None:
    """Have standard output escape what its encoding lacks, as standard error does: task names
    may be in any script, and a terminal in Latin-1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@click.group(
    cls=RtsGroup, name="rts", short_help="Learned runtimes, deadlines, the SLA ledger."
)
@click.pass_context
@handle_preload_options
def rts(ctx: click.Context) -> None:
    """Inspect learned runtimes, deadlines and the SLA ledger.

    Every command except exporter takes --json, which prints one JSON document: seconds as
    numbers, shares from 0 to 1, instants in ISO 8601 (UTC). The exit status is 0 if all is
    well, 1 if not (standard error says why), 2 for a wrong command line; that of check is a
    monitoring plugin's, 0 to 3.
    """
