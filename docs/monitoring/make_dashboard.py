"""Generate the Grafana dashboard: python docs/monitoring/make_dashboard.py

The dashboard is code, so that it can be read and reviewed: rows of panels, each with
its unit and queries. A test compares the JSON with this file, and its queries with
the existing metrics.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "grafana" / "rts.json"

#: Filled in by Grafana.
WINDOW = "$__rate_interval"
#: Whichever Prometheus a Grafana has, by the dashboard's variable.
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Grafana's grid is 24 wide.
HEIGHT, WIDTH = 8, 24


@dataclass(frozen=True)
class Panel:
    """One panel: queries with their legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    description: str = ""
    #: Thresholds at which green turns yellow, and red.
    steps: tuple[float | None, float | None] = (None, None)
    #: Whether more is better: then the colours are reversed.
    more_is_better: bool = False
    stacked: bool = False


def quantile(q: float, metric: str) -> str:
    """Return the query of a quantile of a histogram, by type."""
    by = f"sum by (task_type, le) (rate({metric}_bucket{{{TYPE}}}[{WINDOW}]))"
    return f"histogram_quantile({q}, {by})"


#: One fleet, by the job that scrapes it, and what is chosen of it.
JOB = 'job=~"$job"'
TYPE = f'{JOB}, task_type=~"$task_type"'
VERDICTS = f"rts_deadlines_total{{{TYPE}}}"
MET = f'rts_deadlines_total{{{TYPE}, verdict="met"}}'

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Objectives",
        (
            Panel(
                "On time, last hour",
                "percentunit",
                (
                    (
                        f'1 - rts_slo_window_missed{{{JOB}, window="1h"}}'
                        f' / (rts_slo_window_verdicts{{{JOB}, window="1h"}} > 0)',
                        "{{objective}}",
                    ),
                ),
                "stat",
                "Share of tasks that met their deadline, by objective, as in rts report.",
                (0.9, 0.95),
                True,
            ),
            Panel(
                "Error budget left",
                "percentunit",
                ((f"rts_slo_budget_left_ratio{{{JOB}}}", "{{objective}}"),),
                "gauge",
                "Below 0 the budget is overspent.",
                (0.0, 0.25),
                True,
            ),
            Panel(
                "Burn rate",
                "none",
                (
                    (f'rts_slo_burn_rate{{{JOB}, window="1h"}}', "{{objective}} 1h"),
                    (f'rts_slo_burn_rate{{{JOB}, window="6h"}}', "{{objective}} 6h"),
                ),
                description="1 uses up the budget exactly; 14.4 over an hour pages.",
                steps=(1.0, 14.4),
            ),
        ),
    ),
    (
        "Deadlines",
        (
            Panel(
                "On time by type",
                "percentunit",
                (
                    (
                        # A type that has never met a deadline has no series that says so.
                        f"(sum by (task_type) (rate({MET}[{WINDOW}]))"
                        f" or 0 * sum by (task_type) (rate({VERDICTS}[{WINDOW}])))"
                        f" / sum by (task_type) (rate({VERDICTS}[{WINDOW}]))",
                        "{{task_type}}",
                    ),
                ),
            ),
            Panel(
                "Misses by cause",
                "ops",
                (
                    (
                        f"sum by (cause) (rate(rts_misses_total{{{TYPE}}}[{WINDOW}]))",
                        "{{cause}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Tasks with the most misses",
                "none",
                (
                    (
                        "topk(10, sum by (task) (increase("
                        f'rts_deadlines_total{{{TYPE}, verdict="missed"}}[1h])) > 0)',
                        "{{task}}",
                    ),
                ),
                "bargauge",
                "Misses in the last hour, by task name.",
            ),
        ),
    ),
    (
        "Why: runtime and tau, queueing, lateness",
        (
            Panel(
                "Runtime and tau",
                "s",
                (
                    (quantile(0.5, "rts_runtime_seconds"), "{{task_type}} p50"),
                    (quantile(0.95, "rts_runtime_seconds"), "{{task_type}} p95"),
                    (f'rts_tau_seconds{{{TYPE}, task=""}}', "{{task_type}} tau"),
                ),
            ),
            Panel(
                "Queueing delay, p95",
                "s",
                ((quantile(0.95, "rts_queueing_delay_seconds"), "{{task_type}}"),),
            ),
            Panel(
                "Lateness, p95",
                "s",
                ((quantile(0.95, "rts_lateness_seconds"), "{{task_type}}"),),
                description="End minus deadline; below 0 is on time.",
            ),
        ),
    ),
    (
        "Queues and workers",
        (
            Panel(
                "Open and overdue tasks",
                "none",
                (
                    (f"sum by (queue) (rts_open_tasks{{{JOB}}})", "{{queue}} open"),
                    (
                        f"sum by (queue, state) (rts_overdue_tasks{{{JOB}}})",
                        "{{queue}} overdue, {{state}}",
                    ),
                ),
            ),
            Panel(
                "Waiting messages",
                "none",
                (
                    (f"rts_queue_messages{{{JOB}}}", "{{queue}} {{form}}"),
                    (f"rts_hopeless_tasks{{{JOB}}}", "{{queue}} hopeless"),
                ),
            ),
            Panel(
                "Worker load",
                "percentunit",
                (
                    (
                        f'rts_worker_load_ratio{{{JOB}, resource!="load"}}',
                        "{{worker}} {{resource}}",
                    ),
                ),
                description="Share of what a worker may use; above 100 % it is overloaded.",
                steps=(0.8, 1.0),
            ),
        ),
    ),
    (
        "rts itself",
        (
            Panel(
                "Records in the outbox", "none", ((f"rts_outbox_records{{{JOB}}}", "records"),)
            ),
            Panel(
                "Ledger lag",
                "s",
                ((f"rts_outbox_lag_seconds{{{JOB}}}", "lag"),),
                steps=(10.0, 60.0),
            ),
            Panel(
                "Servers, slots, errors",
                "none",
                (
                    (f"rts_up{{{JOB}}}", "{{server}} up"),
                    (f"sum(rts_worker_slots{{{JOB}}})", "slots"),
                    (f"sum by (what) (increase(rts_refused_total{{{JOB}}}[1h]))", "{{what}}"),
                    (f"increase(rts_breaker_opened_total{{{JOB}}}[1h])", "breaker opened"),
                ),
            ),
        ),
    ),
)


def panel_json(panel: Panel, number: int, x: int, y: int, width: int) -> dict[str, Any]:
    """Return one panel as Grafana reads it."""
    colours = ["red", "yellow", "green"] if panel.more_is_better else ["green", "yellow", "red"]
    steps = [{"color": colours[0] if panel.steps[0] is not None else "green", "value": None}]
    for colour, value in zip(colours[1:], panel.steps, strict=True):
        if value is not None:
            steps.append({"color": colour, "value": value})
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none"}
        shown = {"mode": "line" if panel.steps[0] is not None else "off"}
        defaults["custom"] = {
            "stacking": stacking,
            "thresholdsStyle": shown,
            "fillOpacity": 20 if panel.stacked else 0,
        }
        options = {"legend": {"displayMode": "list", "placement": "bottom"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": width, "x": x, "y": y},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": SOURCE,
                "expr": expr,
                "legendFormat": legend,
                # Of a range, whatever was among the first at any time would be shown.
                **({"instant": True, "range": False} if panel.kind == "bargauge" else {}),
            }
            for n, (expr, legend) in enumerate(panel.queries)
        ],
    }


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a variable whose values are those of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "panels": [],
            }
        )
        width = WIDTH // len(row)
        for column, panel in enumerate(row):
            panels.append(panel_json(panel, len(panels) + 1, column * width, y + 1, width))
        y += HEIGHT + 1
    return {
        "uid": "rts",
        "title": "rts: deadlines",
        "tags": ["celery", "rts"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "refresh": 1,
                    "current": {},
                },
                variable("job", "Job", "label_values(rts_up, job)"),
                variable(
                    "task_type", "Type", f"label_values(rts_runs_total{{{JOB}}}, task_type)"
                ),
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=2) + "\n")
