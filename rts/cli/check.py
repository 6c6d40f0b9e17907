"""``rts check``: one line and an exit status for cron, Nagios and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import click

from rts.cli.common import (
    Number,
    as_json,
    ledger_of,
    outages_not_logged,
    print_json,
    settings_of,
)
from rts.cli.probes import noted, query_broker, query_servers
from rts.cli.table import percent, printable, seconds
from rts.errors import CommandError, RtsError, short
from rts.objectives import ALL, BURN_RULES
from rts.settings import Settings
from rts.views.plurals import counted
from rts.views.problems import MAX_LAG_S, dead_fleet, dropped_records, refused_writes
from rts.views.slo import ObjectiveStatus, standings
from rts.views.status import RedisState

OK, WARNING, CRITICAL, UNKNOWN = range(4)
NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
#: Which status counts if there are several: UNKNOWN must not hide a known problem.
_WORST_FIRST = (CRITICAL, WARNING, UNKNOWN, OK)

#: Age of the oldest record in the outbox from which on it is critical, in seconds.
CRITICAL_LAG_S = 5 * MAX_LAG_S

_FACTORS = [rule.factor for rule in BURN_RULES if rule.severity == "page"]
#: Burn rates that performance data marks as warning and critical: the slowest and the
#: fastest that page.
_PAGES = (f"{min(_FACTORS):g}", f"{max(_FACTORS):g}")


@dataclass(frozen=True)
class Finding:
    """The result of one part of the check."""

    code: int
    #: One line.
    text: str
    #: Performance data: label, value with its unit, warning, critical.
    numbers: Sequence[tuple[str, str, str, str]] = ()
    document: dict[str, Any] = field(default_factory=dict)


class CheckCommand(click.Command):
    """A wrong command line is UNKNOWN, as usual for plugins: 2 would be CRITICAL."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as exc:
            exc.exit_code = UNKNOWN  # type: ignore[misc]  # not for its whole class
            raise


@click.command(
    name="check", cls=CheckCommand, short_help="One line and an exit status for monitoring."
)
@click.option("--slo", is_flag=True, help="Check the objectives.")
@click.option("--lag", is_flag=True, help="Check servers, fleet and outbox.")
@click.option("--type", "types", multiple=True, help="Check this task type's objective only.")
@click.option("--name", "names", multiple=True, help="Check this task's objective only.")
@click.option("--queue", "queues", multiple=True, help="Check this queue's objective only.")
@click.option(
    "--lag-warning",
    type=Number(min=0),
    default=MAX_LAG_S,
    show_default=True,
    help="WARNING if the oldest record has waited for this many seconds.",
)
@click.option(
    "--lag-critical",
    type=Number(min=0),
    default=CRITICAL_LAG_S,
    show_default=True,
    help="CRITICAL if the oldest record has waited for this many seconds.",
)
@as_json
@click.pass_context
def command(
    ctx: click.Context,
    slo: bool,
    lag: bool,
    types: tuple[str, ...],
    names: tuple[str, ...],
    queues: tuple[str, ...],
    lag_warning: float,
    lag_critical: float,
    as_json: bool,
) -> None:
    """Print one line with performance data; the exit status is 0 OK, 1 WARNING, 2 CRITICAL, 3
    UNKNOWN. Without --slo or --lag, both are checked.

    Objectives: CRITICAL if an error budget burns fast enough for a page, WARNING if fast enough
    for a ticket or if it is used up, UNKNOWN if MongoDB is not reachable. A type, task or queue
    without an objective of its own is held to that of '*'.

    Lag: CRITICAL if a server is not reachable, Redis takes no records (it is full, a
    replica or a cluster, or refuses scripts), tasks are overdue and no worker is alive, or the
    oldest record has waited for --lag-critical seconds, WARNING if it has for --lag-warning
    seconds or records were dropped.
    """
    asked = [*types, *names, *queues]
    findings: list[Finding] = []
    with outages_not_logged(), unknown(findings):
        settings = settings_of(ctx)
        if slo or asked or not lag:
            with unknown(findings):
                findings += objectives(settings, types, [*names, *queues])
        if lag or not (slo or asked):
            findings += servers(ctx.obj.app, settings, lag_warning, lag_critical)
    code = worst(findings)
    if as_json:
        print_json(
            {
                "status": NAMES[code],
                "code": code,
                "findings": [
                    {"status": NAMES[f.code], "text": f.text, **f.document} for f in findings
                ],
            }
        )
    else:
        click.echo(line(findings))
    ctx.exit(code)


@contextmanager
def unknown(findings: list[Finding]) -> Iterator[None]:
    """Add a failure to *findings* as UNKNOWN: the status of a traceback would be WARNING."""
    try:
        yield
    except RtsError as exc:
        findings.append(Finding(UNKNOWN, str(exc)))
    except Exception as exc:  # noqa: BLE001  whatever it is
        findings.append(Finding(UNKNOWN, short(exc)))


def objectives(
    settings: Settings, types: Sequence[str], others: Sequence[str]
) -> list[Finding]:
    """Return one finding for each objective; with *types* or *others* (names and queues), one
    for each of these, held to its own target in ``rts_slo`` or else that of ``*``.

    Raises:
        CommandError: there is no such type, or no objective for it.
        StoreUnavailable: MongoDB does not answer.
    """
    for task_type in types:
        if task_type not in settings.task_types:
            known = ", ".join(sorted(settings.task_types))
            raise CommandError(f"there is no task type {task_type!r}; the types are {known}")
    chosen = [settings]
    if types or others:
        chosen = []
        for key in (*types, *others):
            target = settings.slo.get(key, settings.slo.get(ALL))
            if target is None:
                raise CommandError(f"rts_slo has no objective for {key!r}, and none for '*'")
            chosen.append(replace(settings, slo={key: target}))
    elif not settings.slo:
        raise CommandError("rts_slo has no objectives")
    now = datetime.now(timezone.utc)
    with ledger_of(settings) as database:
        found = [s for each in chosen for s in standings(database, each, now)]
    return [objective(standing, settings) for standing in found]


def objective(standing: ObjectiveStatus, settings: Settings) -> Finding:
    """Return the state of one objective."""
    name, hour = standing.objective, standing.windows["1h"]
    budget = standing.windows["budget"]
    code, what = OK, "no tasks yet"
    if budget.valid:
        what = f"{percent(budget.on_time_ratio)} % of {counted(budget.valid, 'task')} on time"
    if budget.valid >= settings.slo_min_events and standing.budget_left_ratio <= 0:
        code, what = WARNING, f"{what}, the error budget is used up"
    for rule in reversed(standing.burning):  # the most urgent one has the last word
        code = CRITICAL if rule.severity == "page" else max(code, WARNING)
        window = standing.windows[rule.long]
        what = (
            f"{percent(window.on_time_ratio)} % of {window.valid} tasks on time over "
            f"{rule.long}, the error budget burns {window.burn_rate:.1f} times too fast"
        )
    text = f"{name}: {what} (objective {100 * standing.target:g} %)"
    numbers = [
        (f"{name} burn rate 1h", f"{hour.burn_rate:.3f}", *_PAGES),
        (f"{name} budget left", f"{100 * standing.budget_left_ratio:.2f}%", "0:", ""),
    ]
    if hour.on_time_ratio is not None:
        numbers.insert(0, (f"{name} on time 1h", f"{100 * hour.on_time_ratio:.3f}%", "", ""))
    return Finding(code, text, numbers, asdict(standing))


def servers(app: Any, settings: Settings, warning_s: float, critical_s: float) -> list[Finding]:
    """Return what is wrong with servers and fleet, and what waits in the outbox if both of
    rts's servers answer.
    """
    redis, ledger = query_servers(settings)
    found = [
        Finding(
            CRITICAL,
            f"{which} at {server.url} is not reachable ({server.error})",
            document={"server": asdict(server)},
        )
        for which, server in (("Redis", redis.server), ("MongoDB", ledger.server))
        if not server.reachable
    ]
    broker: list[str] = []
    with unknown(found), noted(broker):
        query_broker(app, settings, redis)
    refused = None if redis.refusal is None else refused_writes(redis)
    wrong = (refused, *broker, dead_fleet(redis))
    found += [Finding(CRITICAL, text) for text in wrong if text is not None]
    if redis.server.reachable and ledger.server.reachable:
        found.append(backlog(redis, warning_s, critical_s))
    return found


def backlog(redis: RedisState, warning_s: float, critical_s: float) -> Finding:
    """Return what waits in the outbox, and whether records were dropped."""
    lag_s, length = redis.lag_s or 0.0, redis.outbox_length or 0
    dropped = dropped_records(redis)
    code = CRITICAL if lag_s >= critical_s else WARNING if lag_s >= warning_s else OK
    text = f"{counted(length, 'record')} waiting for the ledger"
    if length:
        text += f", the oldest for {seconds(lag_s)} s"
    if dropped:
        code = max(code, WARNING)
        text += ", " + ", ".join(f"{name} {n}" for name, n in dropped.items())
    numbers = [
        ("outbox lag", f"{lag_s:.3f}s", f"{warning_s:g}", f"{critical_s:g}"),
        ("outbox length", str(length), "", ""),
        ("overdue tasks", str(redis.overdue_tasks or 0), "", ""),
    ]
    return Finding(code, text, numbers, {"lag_s": lag_s, "length": length, "dropped": dropped})


def worst(findings: Sequence[Finding]) -> int:
    """Return the status of all *findings* together."""
    codes = {finding.code for finding in findings}
    return next(code for code in _WORST_FIRST if code in codes)


def line(findings: Sequence[Finding]) -> str:
    """Return the one line: what is wrong, or everything if all is well; then the numbers.

    >>> line([Finding(OK, "a"), Finding(WARNING, "b", [("b's|lag", "7s", "5", "")])])
    "RTS WARNING - b | 'b s lag'=7s;5"
    """
    code = worst(findings)
    texts = [f.text for f in sorted(findings, key=lambda f: _WORST_FIRST.index(f.code))]
    if code != OK:
        texts = texts[: sum(f.code != OK for f in findings)]
    text = " ; ".join(printable(each).replace("|", "/") for each in texts)
    numbers = [
        f"'{_label(label)}'={value};{warning};{critical}".rstrip(";")
        for finding in findings
        for label, value, warning, critical in finding.numbers
    ]
    return f"RTS {NAMES[code]} - {text}" + (f" | {' '.join(numbers)}" if numbers else "")


def _label(text: str) -> str:
    return "".join(" " if c in "'=|" else c for c in printable(text))
