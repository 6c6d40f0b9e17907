"""``rts tau``: list, set or reset the learned taus."""

from __future__ import annotations

import click

from rts.cli.common import json_option, link_to_redis, print_json, settings_of
from rts.cli.table import Column, printable, render, seconds, terminal_width
from rts.deadlines import MAX_TAU
from rts.errors import CommandError
from rts.link.scripts import pack
from rts.settings import Settings
from rts.tau.redis import RedisTauStore
from rts.validation import finite
from rts.views.plurals import counted
from rts.views.taus import TauRow, tau_rows

#: Maximum length of a field: a type, a slash, and any name of a task.
MAX_FIELD = 512


@click.group(name="tau", invoke_without_command=True, short_help="Learned runtimes.")
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the learned runtimes, or change them with set and reset.

    tau is the moving average of the runtime of successful runs, by type and by type/task name;
    deviation is that of |runtime - tau|. The source is "learned" from the first run on; until
    then "set" if a person set the tau, else "default".
    """
    if ctx.invoked_subcommand is not None:
        ctx.default_map = {ctx.invoked_subcommand: {"as_json": as_json}}
        return
    settings = settings_of(ctx)
    with link_to_redis(settings) as link:
        rows = tau_rows(link, settings)
    if as_json:
        print_json({"taus": rows})
    else:
        click.echo(tau_table(rows, terminal_width()))


_COLUMNS = (
    Column("type / name", number=False),
    *map(Column, ("tau s", "runs", "deviation s")),
    *(Column(header, group="runtime s") for header in ("p50", "p95", "p99")),
    Column("source", number=False),
)


def tau_table(rows: list[TauRow], width: int | None) -> str:
    """Return the rows as a table, names below their types."""
    return render(
        _COLUMNS,
        [
            (
                row.task_type if row.name is None else f"  {row.name}",
                seconds(row.tau_s),
                str(row.runs),
                *map(seconds, (row.deviation_s, row.p50_s, row.p95_s, row.p99_s)),
                row.source,
            )
            for row in rows
        ],
        width,
    )


@command.command(name="set", short_help="Set a tau by hand.")
@click.argument("field", metavar="TYPE[/NAME]")
@click.argument("value", metavar="SECONDS")
@json_option
@click.pass_context
def set_(ctx: click.Context, field: str, value: str, as_json: bool) -> None:
    """Set a tau, from which learning continues.

    TYPE is a task type, TYPE/NAME a task of that type, such as mixed/proj.resize. SECONDS:
    above 0, at most 1e9.
    """
    settings = settings_of(ctx)
    _check(settings, field)
    tau_s = finite(value)
    if tau_s is None or not 0 < tau_s <= MAX_TAU:
        raise click.BadParameter("must be seconds, above 0, at most 1e9", param_hint="SECONDS")
    with link_to_redis(settings) as link:
        store = RedisTauStore(link, settings)
        entries = store.entries()
        if field not in entries and len(entries) >= settings.max_types:
            raise CommandError(
                f"there are {len(entries)} taus already, and rts_max_types is "
                f"{settings.max_types}. Raise it, or make room with rts tau reset TYPE/NAME"
            )
        store.set(field, tau_s)
    entry = entries.get(field)
    first = None if "/" in field else settings.task_types[field].tau  # names have none
    before = first if entry is None else entry.tau
    if as_json:
        print_json({"field": field, "tau_before_s": before, "tau_s": tau_s})
    else:
        click.echo(f"{field}: tau {seconds(before)} -> {seconds(tau_s)} s")
    runs = entry.count if entry else 0
    if "/" in field and (settings.tau_scope == "type" or runs < settings.min_samples):
        why = (
            'rts_tau_scope is "type"'
            if settings.tau_scope == "type"
            else f"the name has {runs} of the {settings.min_samples} runs of rts_min_samples"
        )
        click.echo(f"Note: deadlines use the type's tau: {why}", err=True)


@command.command(short_help="Forget what was learned.")
@click.argument("field", metavar="[TYPE[/NAME]]", required=False)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@click.pass_context
def reset(ctx: click.Context, field: str | None, yes: bool, as_json: bool) -> None:
    """Forget the tau of one type or one name, or all of them, and return to the defaults.

    TYPE alone leaves the names in it as they are.
    """
    settings = settings_of(ctx)
    what = "all that was learned"
    if field is not None:
        what = f"what was learned about {printable(field)}"
    if not yes:
        click.confirm(f"Forget {what}?", abort=True, err=True)
    with link_to_redis(settings) as link:
        store = RedisTauStore(link, settings)
        if field is None:
            fields = list(store.entries())
        else:
            fields = [field]
            (known,) = link.call(pack("HEXISTS", settings.keys.tau, field))
            if not known:
                raise CommandError(
                    f"nothing was learned about {printable(field)}. rts tau lists what was"
                )
        store.reset(field)
    if as_json:
        print_json({"reset": fields})
    else:
        click.echo(f"{counted(len(fields), 'tau')} forgotten")


def _check(settings: Settings, field: str) -> None:
    """Reject a field that no task could have."""
    task_type, slash, name = field.partition("/")
    if task_type not in settings.task_types:
        raise click.BadParameter(
            f"{printable(task_type)!r} is not a type; there are "
            f"{', '.join(sorted(settings.task_types))} (rts_task_types)",
            param_hint="TYPE",
        )
    if slash and (not name or not name.isprintable() or len(field) > MAX_FIELD):
        raise click.BadParameter("is not the name of a task", param_hint="NAME")
