"""What is wrong now: burning objectives and overdue tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rts.alerting.alert import Condition
from rts.fields import text
from rts.keys import Keys
from rts.link.link import Link
from rts.link.scripts import pack
from rts.objectives import ALL, BURN_RULES
from rts.records import OpenTask
from rts.unfinished.open_task_format import task_of
from rts.views.slo import ObjectiveStatus
from rts.webhooks import SLO_BURNING, TASK_OVERDUE

_MOST_URGENT = BURN_RULES[0].severity

#: Groups of overdue tasks with an alert of their own: there may be any number of queue names.
MAX_GROUPS = 50
#: Overdue tasks that are examined; those beyond are not counted.
MAX_OVERDUE = 2000


def burning_conditions(standings: Sequence[ObjectiveStatus]) -> list[Condition]:
    """Return one condition for each objective and severity that burns, by the most urgent rule
    of that severity. The most urgent severity covers the others.
    """
    found = []
    for standing in standings:
        whose = standing.objective
        if whose == ALL:
            whose = "all tasks" if len(standings) == 1 else "all other tasks"
        key = f"{SLO_BURNING}/{standing.objective}/"
        most_urgent = {rule.severity: rule for rule in reversed(standing.burning)}
        for severity, rule in most_urgent.items():
            window = standing.windows[rule.long]
            # Some were missed, so it never shows 100.
            on_time = min(99.9, 100 * (window.on_time_ratio or 0.0))
            summary = (
                f"{whose}: {on_time:.1f} % on time over {rule.long} ({window.valid} tasks), "
                f"objective {100 * standing.target:g} %. The error budget burns "
                f"{window.burn_rate:.1f} times too fast"
            )
            found.append(
                Condition(
                    key=key + severity,
                    kind=SLO_BURNING,
                    severity=severity,
                    summary=summary,
                    labels={"objective": standing.objective, "window": rule.long},
                    values={
                        "target": standing.target,
                        "burn_rate": window.burn_rate,
                        "threshold": rule.factor,
                        "tasks": window.valid,
                        "budget_left_ratio": standing.budget_left_ratio,
                    },
                    # Also by one that holds on while it does not burn for a moment.
                    covered_by=None if severity == _MOST_URGENT else key + _MOST_URGENT,
                )
            )
    return found


def overdue_conditions(tasks: Iterable[OpenTask], now: float) -> list[Condition]:
    """Return one condition for each type and queue with *tasks* that are overdue at *now*,
    those with the most tasks first.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for task in tasks:
        key = (text(str(task.task_type)), text(str(task.queue or "unknown")))
        groups.setdefault(key, []).append(task.deadline)
    most = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    found = []
    for (task_type, queue), deadlines in most:
        count, oldest_s = len(deadlines), max(0.0, now - min(deadlines))
        what = "1 task is" if count == 1 else f"{count} tasks are"
        found.append(
            Condition(
                key=f"{TASK_OVERDUE}/{task_type}/{queue}",
                kind=TASK_OVERDUE,
                severity="ticket",
                summary=f"{what} overdue: type {task_type}, queue {queue}, the oldest by "
                f"{oldest_s:.0f} s",
                labels={"task_type": task_type, "queue": queue},
                values={"tasks": count, "oldest_s": oldest_s},
            )
        )
    return found


def overdue_tasks(link: Link, keys: Keys) -> tuple[list[OpenTask], bool]:
    """Return the overdue tasks, and whether these are all of them: of more than
    ``MAX_OVERDUE``, the latest are returned.
    """
    count, ids = link.call(
        pack("ZCARD", keys.overdue), pack("ZREVRANGE", keys.overdue, 0, MAX_OVERDUE - 1)
    )
    if not ids:
        return [], True
    (infos,) = link.call(pack("HMGET", keys.open_info, *ids))
    tasks = (task_of(*pair) for pair in zip(ids, infos, strict=True))
    return [task for task in tasks if task is not None], int(count) <= MAX_OVERDUE
