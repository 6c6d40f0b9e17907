"""The findings of ``rts check``: what the objectives, the servers and the fleet are like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rts.cli.common import ledger_of
from rts.cli.probes import fleet_now, noted, query_broker, query_servers
from rts.cli.table import percent, seconds
from rts.errors import CommandError, RtsError, short
from rts.objectives import ALL, BURN_RULES
from rts.settings import Settings
from rts.views.plurals import counted
from rts.views.problems import dead_fleet, dropped_records, refused_writes
from rts.views.slo import ObjectiveStatus, standings
from rts.views.status import RedisState

#: The statuses of a monitoring plugin.
OK, WARNING, CRITICAL, UNKNOWN = range(4)

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


@contextmanager
def unknown(findings: list[Finding]) -> Iterator[None]:
    """Add a failure to *findings* as UNKNOWN: the status of a traceback would be WARNING."""
    try:
        yield
    except RtsError as exc:
        findings.append(Finding(UNKNOWN, str(exc)))
    except Exception as exc:  # noqa: BLE001  whatever it is
        findings.append(Finding(UNKNOWN, short(exc)))


def objectives(settings: Settings, asked: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Return one finding for each objective; with task types, names or queues *asked* for (by
    their field, of ``CLASS``), one for each of these, held to its own target in ``rts_slo`` or
    else that of ``*``.

    Raises:
        CommandError: there is no such type, or no objective for it.
        StoreUnavailable: MongoDB does not answer.
    """
    for task_type in asked["task_type"]:
        if task_type not in settings.task_types:
            known = ", ".join(sorted(settings.task_types))
            raise CommandError(f"there is no task type {task_type!r}; the types are {known}")
    chosen: list[tuple[Settings, str | None]] = []
    for field_name, keys in asked.items():
        for key in keys:
            target = settings.slo.get(key, settings.slo.get(ALL))
            if target is None:
                raise CommandError(f"rts_slo has no objective for {key!r}, and none for '*'")
            chosen.append((replace(settings, slo={key: target}), field_name))
    if not chosen:
        if not settings.slo:
            raise CommandError("rts_slo has no objectives")
        chosen = [(settings, None)]
    now = fleet_now(settings)
    with ledger_of(settings) as database:
        found = [s for each, by in chosen for s in standings(database, each, now, by)]
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
        code = CRITICAL if rule.severity == "page" else WARNING
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
    """Return what is wrong with servers and fleet, and the backlog if Redis answers."""
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
    if redis.server.reachable:
        found.append(backlog(redis, warning_s, critical_s))
    return found


def told_once(findings: Sequence[Finding]) -> list[Finding]:
    """Return *findings* without what is unknown because of a server that another one names."""
    away = [f.document["server"]["url"] for f in findings if "server" in f.document]
    return [f for f in findings if f.code != UNKNOWN or not any(url in f.text for url in away)]


def backlog(redis: RedisState, warning_s: float, critical_s: float) -> Finding:
    """Return what waits in the outbox, and whether records were dropped."""
    lag_s, length = redis.vitals.lag_s, redis.vitals.outbox_length
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
        ("overdue tasks", str(redis.overdue_tasks), "", ""),
    ]
    return Finding(code, text, numbers, {"lag_s": lag_s, "length": length, "dropped": dropped})
