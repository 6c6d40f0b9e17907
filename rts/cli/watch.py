"""``rts watch``: a live view in the terminal."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import click

from rts.alerting.alert import Alert
from rts.alerting.book import firing
from rts.cli.probes import LedgerState, RedisState, look
from rts.cli.shared import (
    as_json,
    iso,
    ledger_of,
    link_to_redis,
    outages_not_logged,
    print_json,
    settings_of,
)
from rts.cli.status import NO_WORKERS, WORKER_COLUMNS, problems, worker_row
from rts.cli.table import NONE, Column, cut, percent, render, seconds, terminal_width
from rts.errors import StoreUnavailable
from rts.objectives import objective_of
from rts.scheduling import queues
from rts.scheduling.queues import QueueState
from rts.settings import Settings
from rts.views.report import ReportRow, report
from rts.views.slo import Standing, standings

#: What "now" means, and the other windows of a type's row.
WINDOWS = {"now": timedelta(minutes=5), "1h": timedelta(hours=1), "24h": timedelta(hours=24)}
#: The long windows are asked for again after so many times what the last answer took:
#: on a large ledger they cost the server more than they change.
SPARE = 10.0
#: Seconds between looks at the keyboard.
KEYS_S = 0.1

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass(frozen=True)
class Picture:
    """What is shown."""

    at: datetime
    redis: RedisState
    ledger: LedgerState
    problems: Sequence[str] = ()
    standings: Sequence[Standing] = ()
    #: By window: by type.
    types: dict[str, dict[str, ReportRow]] = field(default_factory=dict)
    queues: Sequence[QueueState] = ()
    alerts: Sequence[Alert] = ()


@click.command(name="watch", short_help="A live view in the terminal.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2),
    default=2.0,
    show_default=True,
    help="Seconds between looks.",
)
@as_json
@click.pass_context
def command(ctx: click.Context, interval: float, as_json: bool) -> None:
    """Show deadlines met by type against their objective, the error budgets, queues,
    workers, and where records wait; again and again, until q or Ctrl-C.

    "now" is the last five minutes. Where the output is no terminal, it is printed once.
    """
    app, settings = ctx.obj.app, settings_of(ctx)
    gather = Gatherer(app, settings)
    with outages_not_logged():
        if as_json:
            print_json(document(gather.look()))
        elif not (sys.stdout.isatty() and sys.stdin.isatty()):
            click.echo("\n".join(lines(gather.look(), settings, terminal_width())))
        else:
            live(gather.look, settings, interval)


class Gatherer:
    """Asks the servers. What one of them does not tell is left out."""

    def __init__(
        self, app: Any, settings: Settings, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._settings = settings
        self._now = now
        #: When the long windows are asked for again.
        self._ask_at = -1e9
        self._standings: Sequence[Standing] = ()
        self._day: dict[str, ReportRow] = {}

    def look(self) -> Picture:
        """Look once."""
        at = datetime.now(timezone.utc)
        redis, ledger = look(self._settings)
        types: dict[str, dict[str, ReportRow]] = {}
        waiting: Sequence[QueueState] = ()
        alerts: Sequence[Alert] = ()
        wrong = problems(redis, ledger)
        if ledger.server.reachable:
            try:
                types = self._ask_ledger(at)
            except StoreUnavailable as exc:
                wrong.append(str(exc))
        if redis.server.reachable:
            try:
                with link_to_redis(self._settings) as link:
                    alerts = firing(link, self._settings)
            except StoreUnavailable as exc:
                wrong.append(str(exc))
        try:
            waiting = self._ask_broker()
        except StoreUnavailable as exc:
            wrong.append(str(exc))
        return Picture(at, redis, ledger, wrong, self._standings, types, waiting, alerts)

    def _ask_ledger(self, at: datetime) -> dict[str, dict[str, ReportRow]]:
        with ledger_of(self._settings) as database:

            def rows(window: str) -> dict[str, ReportRow]:
                found = report(database, at - WINDOWS[window], at, "type")
                return {row.key: row for row in found}

            begin = self._now()
            if begin >= self._ask_at:
                self._standings = standings(database, self._settings, at)
                self._day = rows("24h")
                self._ask_at = self._now() + SPARE * (self._now() - begin)
            return {"now": rows("now"), "1h": rows("1h"), "24h": self._day}

    def _ask_broker(self) -> Sequence[QueueState]:
        with queues.queues_of(self._app, self._settings) as channel:
            if channel is None:
                return ()
            names = queues.names(self._app, channel)
            return [queues.state_of(channel, name) for name in names]


def lines(picture: Picture, settings: Settings, width: int | None) -> list[str]:
    """Return the view as lines of at most *width* characters."""
    blocks = [
        [f"rts at {iso(picture.at)}", *_facts(picture)],
        [f"Problem: {problem}" for problem in picture.problems],
        [f"Alert since {_when(alert)}: {alert.summary}" for alert in picture.alerts],
        _standings_table(picture, width),
        _types_table(picture, settings, width),
        _queues_table(picture, width),
        _workers_table(picture, width),
    ]
    found: list[str] = []
    for block in blocks:
        if block:
            found += [*([""] if found else []), *block]
    return found if width is None else [cut(text, width) for text in found]


def _facts(picture: Picture) -> list[str]:
    redis, ledger = picture.redis, picture.ledger
    servers = [
        f"{name} {'up' if server.reachable else 'NOT REACHABLE'}"
        for name, server in (("Redis", redis.server), ("MongoDB", ledger.server))
    ]
    facts = [" · ".join(servers)]
    if redis.server.reachable:
        lag = f", the oldest for {seconds(redis.lag_s)} s" if redis.outbox_length else ""
        facts.append(
            f"Outbox {redis.outbox_length} wait{lag} · "
            f"Open {redis.open_tasks}, past the deadline {redis.overdue_tasks} · "
            f"Running {redis.running}, past the deadline {redis.overdue}"
        )
    return facts


def _standings_table(picture: Picture, width: int | None) -> list[str]:
    columns = (
        Column("objective", number=False),
        *(Column(name) for name in ("target %", "5m %", "1h %", "tasks", "burn 1h")),
        Column("budget left %"),
        Column("", number=False),
    )
    rows = [
        (
            standing.objective,
            f"{100 * standing.target:g}",
            percent(standing.windows["5m"].on_time_ratio),
            percent(standing.windows["1h"].on_time_ratio),
            str(standing.windows["budget"].valid),
            f"{standing.windows['1h'].burn_rate:.1f}",
            percent(standing.budget_left_ratio),
            f"BURNS: {standing.burning[0].severity}" if standing.burning else "",
        )
        for standing in picture.standings
    ]
    return render(columns, rows, width).splitlines() if rows else []


def _types_table(picture: Picture, settings: Settings, width: int | None) -> list[str]:
    columns = (
        Column("type", number=False),
        Column("target %"),
        *(Column(window, group="deadlines met %") for window in WINDOWS),
        *(Column(window, group="tasks") for window in WINDOWS),
        Column("runtime p95 s"),
        Column("delay p95 s"),
    )
    rows = []
    for key in sorted({key for rows in picture.types.values() for key in rows}):
        found = [picture.types[window].get(key) for window in WINDOWS]
        objective = objective_of(settings.slo, key, "", None)
        target = NONE if objective is None else f"{100 * settings.slo[objective]:g}"
        day = found[-1] or found[-2]
        rows.append(
            (
                key,
                target,
                *(percent(None if row is None else row.on_time_ratio) for row in found),
                *(str(0 if row is None else row.tasks) for row in found),
                seconds(None if day is None or day.runtime is None else day.runtime.p95_s),
                seconds(
                    None
                    if day is None or day.queueing_delay is None
                    else day.queueing_delay.p95_s
                ),
            )
        )
    return render(columns, rows, width).splitlines() if rows else []


def _queues_table(picture: Picture, width: int | None) -> list[str]:
    columns = (
        Column("queue", number=False),
        *(Column(name) for name in ("waiting", "ordered", "demoted", "plain", "due in s")),
    )
    at = picture.at.timestamp()
    rows = [
        (
            state.name,
            str(state.waiting),
            str(state.ordered),
            str(state.demoted),
            str(state.plain),
            NONE if state.next_deadline is None else seconds(state.next_deadline - at),
        )
        for state in picture.queues
    ]
    return render(columns, rows, width).splitlines() if rows else []


def _workers_table(picture: Picture, width: int | None) -> list[str]:
    rows = [worker_row(worker) for worker in picture.redis.workers]
    return render(WORKER_COLUMNS, rows, width).splitlines() if rows else [NO_WORKERS]


def _when(alert: Alert) -> str:
    return iso(datetime.fromtimestamp(alert.started_at, timezone.utc))


def document(picture: Picture) -> dict[str, Any]:
    """Return the view as plain values."""
    return {
        "at": picture.at,
        "problems": list(picture.problems),
        "objectives": [asdict(standing) for standing in picture.standings],
        "types": {
            window: {key: asdict(row) for key, row in rows.items()}
            for window, rows in picture.types.items()
        },
        "queues": [asdict(state) for state in picture.queues],
        "workers": [asdict(worker) for worker in picture.redis.workers],
        "outbox": {"length": picture.redis.outbox_length, "lag_s": picture.redis.lag_s},
        "open": {
            "tasks": picture.redis.open_tasks,
            "overdue": picture.redis.overdue_tasks,
        },
        "running": {"runs": picture.redis.running, "overdue": picture.redis.overdue},
        "alerts": [asdict(alert) for alert in picture.alerts],
    }


def live(gather: Callable[[], Picture], settings: Settings, interval_s: float) -> None:
    """Draw what *gather* returns every *interval_s* seconds, until q or Ctrl-C.

    It gathers in a thread of its own: a server that hangs does not hold the keyboard.
    """
    found: list[Picture] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def look_again() -> None:
        try:
            while not stop.is_set():
                begin = time.monotonic()
                found[:] = [gather()]
                stop.wait(max(0.0, interval_s - (time.monotonic() - begin)))
        except Exception as exc:  # noqa: BLE001  it is raised in front of the person
            failed.append(exc)

    threading.Thread(target=look_again, daemon=True).start()
    drawn: object = None
    with screen() as size:
        while not failed:
            picture = found[0] if found else None
            if picture is not drawn or drawn is None or size.changed:
                size.changed = False
                _draw(picture, settings, interval_s)
                drawn = picture
            try:
                ready, _, _ = select.select([sys.stdin], [], [], KEYS_S)
                if ready and ends(os.read(sys.stdin.fileno(), 256)):
                    break
            except InterruptedError:
                continue
            except KeyboardInterrupt:
                break
    stop.set()
    if failed:
        raise failed[0]


def ends(keys: bytes) -> bool:
    """Return whether what was typed ends the view; nothing at all: the terminal is gone."""
    return not keys or any(key in keys for key in (b"q", b"Q", b"\x04"))


class Size:
    """Whether the terminal's size has changed. Not an event: a signal's handler could
    find its lock held by the thread that it interrupts.
    """

    changed = False

    def has_changed(self, *_: object) -> None:
        """Runs between two instructions of the main thread."""
        self.changed = True


def _draw(picture: Picture | None, settings: Settings, interval_s: float) -> None:
    size = os.get_terminal_size(sys.stdout.fileno())
    width, height = max(20, size.columns), max(3, size.lines)
    text = ["Looking…"] if picture is None else lines(picture, settings, width)
    room = height - 1
    if len(text) > room:
        hidden = len(text) - room + 1
        text = [*text[: room - 1], f"… {hidden} more lines; the window is too low"]
    text += [""] * (room - len(text))
    text.append(cut(f"every {interval_s:g} s · q ends", width))
    sys.stdout.write(_HOME + "\r\n".join(t + _END_OF_LINE for t in text) + _END_OF_SCREEN)
    sys.stdout.flush()


@contextmanager
def screen() -> Iterator[Size]:
    """Take over the terminal, and give it back as it was, whatever happens."""
    size = Size()
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, size.has_changed),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt),
    }
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield size
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
