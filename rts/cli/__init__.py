"""The command line: ``celery -A proj rts …``.

Celery imports this package whenever ``celery`` starts, workers included (entry
points of the group ``celery.commands``). So it imports nothing heavy: each command
is a module of its own, loaded when it is called.
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
        """Return a command, ``None`` where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"rts.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command. What rts raises on purpose becomes one line and status 1."""
        _print_anything()
        try:
            return super().invoke(ctx)
        except RtsError as exc:
            raise click.ClickException(str(exc)) from exc


def _print_anything() -> None:
    """Have standard output show as an escape what its encoding lacks, as standard error
    does: names of tasks may be in any script, and a terminal in Latin-1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@click.group(
    cls=RtsGroup, name="rts", short_help="Learned runtimes, deadlines, the SLA ledger."
)
@click.pass_context
@handle_preload_options
def rts(ctx: click.Context) -> None:
    """Look at learned runtimes, deadlines and the SLA ledger.

    Each command but exporter takes --json, which prints one JSON document: seconds as
    numbers, shares from 0 to 1, instants in ISO 8601 (UTC). The status is 0 when all is
    well, 1 when not (a line on standard error says why), 2 when the command line is
    wrong; check has a plugin's, 0 to 3.
    """
