"""``rts status``: whether all is well, and where records wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from rts.cli.common import NO_APP, json_option, outages_not_logged, print_json, settings_of
from rts.cli.fleet import (
    NO_WORKERS,
    UNLED,
    WORKER_COLUMNS,
    fleet_document,
    outbox_text,
    worker_rows,
)
from rts.cli.probes import (
    noted,
    query_broker,
    query_servers,
    spooled_records,
    subtract_counters,
)
from rts.cli.table import Column, facts, printable, render, seconds, terminal_width
from rts.clock import DEADBAND_S
from rts.installation import installed
from rts.settings import Settings
from rts.views.plurals import counted
from rts.views.problems import problems, queue_problems
from rts.views.status import LedgerState, RedisState, ServerState


@click.command(name="status", short_help="Servers, workers, and where records wait.")
@click.option("--clear", is_flag=True, help="Reset the counters after showing them.")
@json_option
@click.pass_context
def command(ctx: click.Context, clear: bool, as_json: bool) -> None:
    """Show the servers, where records wait, the workers and the counters.

    The exit status is 1, and standard error says why, if rts is off or not installed in the
    app, a server is not reachable, Redis takes no records (it is full, cannot write to its
    disk, is a replica or a cluster, or refuses scripts), records were dropped or may be
    evicted, the oldest record has been in the outbox for over a minute, tasks are overdue and
    no worker with slots is alive, or messages wait where no worker takes them.
    """
    settings = settings_of(ctx)
    with outages_not_logged():
        redis, ledger = query_servers(settings)
        spool = spooled_records(settings) if redis.server.reachable else None
        wrong = [*_without_rts(ctx.obj.app, settings), *problems(redis, ledger)]
        with noted(wrong):
            waiting = query_broker(ctx.obj.app, settings, redis)
            wrong += queue_problems(waiting, redis, settings)
    if as_json:
        print_json(status_document(settings, redis, ledger, spool, wrong))
    else:
        click.echo(status_text(settings, redis, ledger, spool, terminal_width()))
    for problem in wrong:
        click.echo(f"Problem: {printable(problem)}", err=True)
    counters = _counters(redis)
    if clear and counters:
        subtract_counters(settings, counters)
    if wrong:
        ctx.exit(1)


def _counters(redis: RedisState) -> dict[str, int]:
    """Return the counters that are shown: those above 0."""
    return {name: n for name, n in redis.vitals.counters.items() if n}


def _without_rts(app: Any, settings: Settings) -> list[str]:
    """Return a problem if rts is off, or not in *app* once that has imported its modules."""
    if not settings.enabled:
        return ["rts_enabled is False, so tasks of this app get no deadline and no verdict"]
    if app in installed or app.main == NO_APP:
        return []
    try:
        app.loader.import_default_modules()
    except Exception:  # noqa: BLE001  this host may lack what the workers have
        return []
    if app in installed:
        return []
    return [
        "rts is not installed in this app, so its tasks get no deadline and no verdict. Add "
        'rts.install(app) below the line that creates it, or imports = ("rts.auto",) to its '
        "celeryconfig, and restart workers and producers"
    ]


def status_document(
    settings: Settings,
    redis: RedisState,
    ledger: LedgerState,
    spool: int | None,
    wrong: list[str],
) -> dict[str, Any]:
    """Return the document of ``--json``; ``None`` in it if a server did not answer."""
    known = redis.server.reachable
    fleet = {
        **fleet_document(redis),
        "counters": _counters(redis),
        "alerts": {
            "firing": redis.alerts,
            "led": redis.alerts_led,
            "webhooks": [
                {"to": hook.shown, "waiting": waiting}
                for hook, waiting in zip(settings.webhooks, redis.messages, strict=False)
            ],
        },
    }
    return {
        "ok": not wrong,
        "problems": wrong,
        "redis": redis.server,
        "mongo": {**asdict(ledger.server), "documents": ledger.documents},
        "breaker": {
            # What a process that connects now would find.
            "state": "closed" if known else "open",
            "opened": redis.vitals.counters.get("breaker_opened", 0) if known else None,
            "period_s": settings.breaker_period,
        },
        "clock": {"offset_s": redis.clock_offset_s, "error_s": redis.clock_error_s},
        "spool": {"directory": settings.spool_dir, "waiting": spool},
        **(fleet if known else dict.fromkeys(fleet)),
    }


def status_text(
    settings: Settings,
    redis: RedisState,
    ledger: LedgerState,
    spool: int | None,
    width: int | None,
) -> str:
    """Return all of it as text."""
    blocks = [facts(_facts(settings, redis, ledger, spool))]
    if redis.server.reachable:
        workers = worker_rows(redis.vitals)
        blocks.append(render(WORKER_COLUMNS, workers, width) if workers else NO_WORKERS)
    counters = [(name, str(n)) for name, n in _counters(redis).items()]
    if counters:
        blocks.append(render((Column("counter", number=False), Column("n")), counters, width))
    return "\n\n".join(blocks)


def _facts(
    settings: Settings, redis: RedisState, ledger: LedgerState, spool: int | None
) -> Iterator[tuple[str, str]]:
    """Yield what there is one of, each with its name."""
    known = redis.server.reachable
    yield "Redis", _server(redis.server)
    yield "MongoDB", _server(ledger.server)
    if ledger.documents:
        yield "Ledger", ", ".join(f"{n} {name}" for name, n in ledger.documents.items())
    if redis.clock_offset_s is not None:
        yield "Clock", _clock(redis.clock_offset_s, redis.clock_error_s or 0.0)
    opened = counted(redis.vitals.counters.get("breaker_opened", 0), "time")
    yield "Breaker", f"closed, opened {opened} so far" if known else "open"
    if known:
        yield "Outbox", outbox_text(redis.vitals)
    waiting = "unknown number waiting" if spool is None else f"{spool} waiting"
    yield "Spool", f"{waiting} in {settings.spool_dir}"
    if not known:
        return
    late = f"{redis.overdue_tasks} past the deadline"
    yield "Open tasks", f"{redis.open_tasks} not ended, {late}"
    yield "Running", f"{redis.vitals.notes} now, {len(redis.vitals.late)} past the deadline"
    if redis.alerts or settings.webhooks:
        yield "Alerts", f"{redis.alerts} firing{'' if redis.alerts_led else f', {UNLED}'}"
        for n, (hook, waits) in enumerate(zip(settings.webhooks, redis.messages, strict=False)):
            which = f" {n + 1}" if len(settings.webhooks) > 1 else ""  # they may look the same
            yield f"Webhook{which}", f"{waits} waiting for {hook.shown}"


def _server(server: ServerState) -> str:
    if not server.reachable:
        return f"NOT REACHABLE at {server.url}"
    latency_ms = (server.latency_s or 0.0) * 1000
    return f"{server.version or 'up'} at {server.url}, {latency_ms:.2f} ms"


def _clock(offset_s: float, error_s: float) -> str:
    if abs(offset_s) <= max(DEADBAND_S, error_s):
        return "this host and Redis agree"
    which = "behind" if offset_s > 0 else "ahead of"
    return f"this host is {seconds(abs(offset_s))} s {which} Redis, which rts corrects for"
