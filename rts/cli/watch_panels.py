"""The view of ``rts watch`` as lines of text: facts, problems, and a table each for objectives,
types, queues and workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone

from rts.cli.fleet import NO_WORKERS, UNLED, WORKER_COLUMNS, outbox_text, worker_rows
from rts.cli.table import NONE, Column, cut, percent, printable, render, seconds, wrapped
from rts.cli.watch_data import WINDOWS, Snapshot
from rts.cli.watch_fitting import fitted, tables
from rts.objectives import objective_of
from rts.settings import Settings
from rts.views.json_values import iso
from rts.views.queue_state import QueueState
from rts.views.report import Percentiles
from rts.views.slo import ObjectiveStatus
from rts.views.status import RedisState


def lines_within(snapshot: Snapshot, settings: Settings, width: int, height: int) -> list[str]:
    """Return the view for a terminal; of what does not fit, the beginnings of sentences and the
    rows in most trouble.
    """
    for whole in (True, False):
        found = lines(snapshot, settings, width, whole=whole)
        if len(found) <= height:
            return found
    others = len(found) - sum(map(len, tables(snapshot)))
    part, left_out = fitted(snapshot, height - 2 - others)
    shown = lines(part, settings, width, snapshot.redis, whole=False)
    return [*shown, "", cut(left_out, width)]


def lines(
    snapshot: Snapshot,
    settings: Settings,
    width: int | None,
    fleet: RedisState | None = None,
    *,
    whole: bool = True,
) -> list[str]:
    """Return the view as lines of at most *width* characters. *fleet*: the state of Redis with
    all workers, where *snapshot* has only those that fit. *whole*: a long sentence takes
    several lines; else it is cut.
    """

    def told(sentences: Iterable[str]) -> list[str]:
        if width is None or not whole:
            return [*sentences]
        return [line for sentence in sentences for line in wrapped(sentence, width)]

    fleet = fleet or snapshot.redis
    queues = [_queue_row(state, snapshot.at, fleet) for state in snapshot.queues]
    blocks = [
        [f"rts at {iso(snapshot.at)}", *_facts(snapshot)],
        told(f"Problem: {printable(problem)}" for problem in snapshot.problems),
        told(_alerts(snapshot)),
        _table(_OBJECTIVES, map(_standing_row, snapshot.standings), width),
        _table(_TYPES, _type_rows(snapshot, settings), width),
        _table(_QUEUES, queues, width),
        _table(WORKER_COLUMNS, worker_rows(snapshot.redis.vitals), width),
    ]
    if snapshot.redis.server.reachable and not snapshot.redis.vitals.workers:
        blocks.append(told([NO_WORKERS]))
    found: list[str] = []
    for block in blocks:
        if block:
            found += [*([""] if found else []), *block]
    return found if width is None else [cut(text, width) for text in found]


def _facts(snapshot: Snapshot) -> list[str]:
    redis, ledger = snapshot.redis, snapshot.ledger
    first = [
        f"{name} {'up' if server.reachable else 'NOT REACHABLE'}"
        for name, server in (("Redis", redis.server), ("MongoDB", ledger.server))
    ]
    if not redis.server.reachable:
        return [" · ".join(first)]
    return [
        " · ".join([*first, f"Outbox {outbox_text(redis.vitals)}"]),
        f"Open {redis.open_tasks}, {redis.overdue_tasks} past the deadline · "
        f"Running {redis.vitals.notes}, {len(redis.vitals.late)} past the deadline",
    ]


def _alerts(snapshot: Snapshot) -> list[str]:
    found = []
    for alert in sorted(snapshot.alerts, key=lambda alert: alert.severity):  # pages first
        started_at = datetime.fromtimestamp(alert.started_at, timezone.utc)
        found.append(
            printable(
                f"{alert.severity.capitalize()} since {started_at:%Y-%m-%d %H:%MZ}: "
                f"{alert.summary}, as it began"
            )
        )
    unled = found and not snapshot.redis.alerts_led
    return [*found, f"Alerts are firing, {UNLED}"] if unled else found


_OBJECTIVES = (
    Column("objective", number=False),
    *map(Column, ("target %", "5m %", "1h %", "tasks", "burn 1h", "budget left %")),
    Column("", number=False),
)
_TYPES = (
    Column("type", number=False),
    Column("target %"),
    *(Column(window, group="deadlines met %") for window in WINDOWS),
    *(Column(window, group="tasks") for window in WINDOWS),
    *(Column(name, group="p95 s") for name in ("runtime", "delay")),
)
_QUEUES = (
    Column("queue", number=False),
    *map(Column, ("waiting", "ordered", "demoted", "plain", "next due in s", "slots")),
)


def _table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None
) -> list[str]:
    found = list(rows)
    return render(columns, found, width).splitlines() if found else []


def _standing_row(standing: ObjectiveStatus) -> Sequence[str]:
    return (
        standing.objective,
        f"{100 * standing.target:g}",
        percent(standing.windows["5m"].on_time_ratio),
        percent(standing.windows["1h"].on_time_ratio),
        str(standing.windows["budget"].valid),
        f"{standing.windows['1h'].burn_rate:.1f}",
        percent(standing.budget_left_ratio),
        f"BURNS: {standing.burning[0].severity}" if standing.burning else "",
    )


def _type_rows(snapshot: Snapshot, settings: Settings) -> Iterator[Sequence[str]]:
    for name in snapshot.type_names:
        found = [snapshot.types[window].get(name) for window in WINDOWS]
        objective = objective_of(settings.slo, name, "", None)
        # Of the shortest window with runs: an incident is over before it shows in a day's.
        ran = next((row for row in found if row is not None and row.runs), None)
        yield (
            name,
            NONE if objective is None else f"{100 * settings.slo[objective]:g}",
            *(percent(None if row is None else row.on_time_ratio) for row in found),
            *(str(0 if row is None else row.tasks) for row in found),
            _p95(None if ran is None else ran.runtime),
            _p95(None if ran is None else ran.queueing_delay),
        )


def _p95(of: Percentiles | None) -> str:
    return NONE if of is None else seconds(of.p95_s)


def _queue_row(state: QueueState, at: datetime, fleet: RedisState) -> Sequence[str]:
    due_at = state.next_deadline
    return (
        state.name,
        *(str(n) for n in (state.waiting, state.ordered, state.demoted, state.plain)),
        NONE if due_at is None else seconds(due_at - at.timestamp()),
        str(fleet.vitals.slots_for(state.name)) if fleet.server.reachable else NONE,
    )
