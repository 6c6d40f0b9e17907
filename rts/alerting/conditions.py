"""What is wrong now: objectives that burn, and tasks that are overdue."""

from __future__ import annotations

from collections.abc import Iterable

from rts.alerting.alert import Condition
from rts.views.slo import Standing

SLO_BURNING, TASK_OVERDUE = "slo_burning", "task_overdue"

#: Groups of overdue tasks that are told apart: queues may have strangers' names.
MAX_GROUPS = 50


def burning_conditions(standings: Iterable[Standing]) -> list[Condition]:
    """Return one condition for each objective and severity that burns: the most urgent
    rule of that severity. The most urgent severity covers the others.
    """
    found: dict[str, Condition] = {}
    for standing in standings:
        first: str | None = None
        for rule in standing.burning:
            key = f"{SLO_BURNING}/{standing.objective}/{rule.severity}"
            first = first or key
            window = standing.windows[rule.long]
            whose = "all other tasks" if standing.objective == "*" else standing.objective
            in_time = 100 * (window.on_time_ratio or 0.0)
            summary = (
                f"{whose}: {in_time:.1f} % in time within {rule.long} ({window.valid} tasks), "
                f"objective {100 * standing.target:g} %. The error budget burns "
                f"{window.burn_rate:.1f} times too fast"
            )
            labels = {"objective": standing.objective, "window": rule.long}
            values = {
                "target": standing.target,
                "burn_rate": window.burn_rate,
                "threshold": rule.factor,
                "tasks": window.valid,
                "budget_left_ratio": standing.budget_left_ratio,
            }
            found.setdefault(
                key,
                Condition(
                    *(key, SLO_BURNING, rule.severity, summary, labels, values),
                    covered_by=None if first == key else first,
                ),
            )
    return list(found.values())


def overdue_conditions(
    tasks: Iterable[tuple[str, str | None, float]], now: float
) -> list[Condition]:
    """Return one condition for each type and queue with overdue tasks, those with the
    most first, and at most ``MAX_GROUPS``.

    *tasks* are type, queue and deadline of each task that is overdue at *now*.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for task_type, queue, deadline in tasks:
        groups.setdefault((task_type, queue or "unknown"), []).append(deadline)
    most = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    found = []
    for (task_type, queue), deadlines in most[:MAX_GROUPS]:
        count, oldest_s = len(deadlines), max(0.0, now - min(deadlines))
        what = "1 task is" if count == 1 else f"{count} tasks are"
        found.append(
            Condition(
                f"{TASK_OVERDUE}/{task_type}/{queue}",
                TASK_OVERDUE,
                "page",
                f"{what} overdue: type {task_type}, queue {queue}, the oldest for "
                f"{oldest_s:.0f} s",
                {"task_type": task_type, "queue": queue},
                {"tasks": count, "oldest_s": oldest_s},
            )
        )
    return found
