"""Rules and dashboard: Prometheus takes them, and they say what rts.objectives says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rts.objectives import BURN_RULES, MIN_MISSES
from rts.settings import Settings
from rts.unfinished.heartbeat import Heartbeat
from rts.views import families
from rts.views.fleet_state import Vitals
from rts.views.queue_state import QueueState
from rts.views.readings import Histogram, Reading
from rts.views.slo import ObjectiveStatus, WindowStanding
from tests.programs import needed

FOLDER = Path(__file__).parent.parent.parent / "docs" / "monitoring"
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yml").read_text())
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "rts.json").read_text())
EXPRESSIONS = [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
]


def promtool(*arguments: str, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [needed("promtool"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def names() -> set[str]:
    """Return the names of all series that the exporter can show."""
    reading = Reading(
        vitals=Vitals(counters={"x": 1}),
        runs={("t", "n", "SUCCESS"): 1},
        verdicts={("t", "n", "q", "met"): 1, ("t", "n", "q", "late"): 1},
        histograms={(kind, "t"): Histogram({}, 1.0) for kind in families.HISTOGRAMS},
        taus={("t", None): 1.0},
        open_tasks={"q": 1},
        overdue_running={"q": 1},
        workers=(Heartbeat("w/1", 1.0, "w", {"cpu": 0.5}, slots=1),),
    )
    settings = Settings()
    window = WindowStanding("1h", 3600.0, 1, 1, 1.0, 0.0)
    standing = ObjectiveStatus("*", 0.95, {"1h": window}, 1.0, ())
    found = [
        families.targets(settings),
        families.verdicts(reading, settings),
        *families.counts(reading),
        *families.gauges(reading),
        *families.objectives([standing]),
        *families.queues([(QueueState("q", 1, 1, 1, None), 1)]),
    ]
    samples = {sample.name for family in found for sample in family.samples}
    return {*samples, "rts_up", "rts_info"}


def used(expression: str) -> set[str]:
    """Return the series of ours that an expression reads."""
    return set(re.findall(r"\brts_[a-z_]+\b(?!:)", expression))


def test_prometheus_takes_configuration_and_rules() -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml")):
        checked = promtool(*arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_rules_do_what_their_tests_say() -> None:
    checked = promtool("test", "rules", "rules_test.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("before", "after", "noticed_by"),
    [
        (">= 14.4 and", ">= 144 and", "twenty minutes in which"),
        (">= 9.5", ">= 0", "a quiet night"),
        ("rts_overdue_tasks{state=", "rts_overdue_tasks{status=", "overdue tasks"),
        ("> 2 * rts:tau:type", "> 20 * rts:tau:type", "runtimes that are far"),
        ("absent(rts_up)", "absent(rts_down)", "a server that is away"),
        ("unless on (job) rts_worker_slots", "unless on (job) rts_worker_slot", "a fleet"),
        ("max by (job, server)", "max by (server)", "two fleets"),
    ],
)
def test_the_tests_of_the_rules_notice_a_change(
    before: str, after: str, noticed_by: str, tmp_path: Path
) -> None:
    text = (FOLDER / "rules.yml").read_text()
    assert before in text
    text = text.replace(before, after)
    if before == ">= 9.5":  # two misses are asked for as well
        text = text.replace(">= 1.5", ">= 0.1")
    (tmp_path / "rules.yml").write_text(text)
    # The one test alone: all of them take seconds.
    head, *tests = re.split(r"(?m)^(?=  - name: )", (FOLDER / "rules_test.yml").read_text())
    (test,) = (each for each in tests if each.startswith(f"  - name: {noticed_by}"))
    (tmp_path / "rules_test.yml").write_text(head + test)
    checked = promtool("test", "rules", "rules_test.yml", cwd=tmp_path)
    assert "FAILED" in checked.stderr + checked.stdout


def test_the_burn_rules_are_those_of_rts() -> None:
    alerts = [rule for rule in ALL_RULES if rule.get("alert", "").startswith("RtsSlo")]
    assert len(alerts) == len(BURN_RULES)
    for alert, rule in zip(alerts, BURN_RULES, strict=True):
        expression = " ".join(alert["expr"].split())
        assert expression == (
            f"rts:slo_burn:ratio{rule.long} >= {rule.factor:g} and "
            f"rts:slo_burn:ratio{rule.short} >= {rule.factor:g} and "
            f"rts:slo_verdicts:increase{rule.long} >= {Settings().slo_min_events - 0.5} and "
            f"rts:slo_missed:increase{rule.long} >= {MIN_MISSES - 0.5}"
        )
        assert alert["labels"]["severity"] == rule.severity


def test_what_the_alert_of_lost_records_reads_is_there_before_any_is_lost() -> None:
    (alert,) = (rule for rule in ALL_RULES if rule.get("alert") == "RtsRecordsLost")
    (read,) = re.findall(r'what=~"([^"]+)"', alert["expr"])
    samples = [s for family in families.counts(Reading()) for s in family.samples]
    told = {s.labels["what"]: s.value for s in samples if s.name == "rts_refused_total"}
    assert told == dict.fromkeys(read.split("|"), 0)
    assert [s.value for s in samples if s.name == "rts_breaker_opened_total"] == [0]


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    alerts = [rule for rule in ALL_RULES if "alert" in rule]
    assert len(alerts) >= 8
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert len(alert["annotations"]["summary"]) > 20
        assert len(alert["annotations"]["description"]) > 40


def test_rules_and_dashboard_use_metrics_that_there_are() -> None:
    known = names()
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in ALL_RULES)]:
        assert used(expression) <= known, expression
    # All that is shown is used, or is told in the docs.
    told = (FOLDER.parent / "monitoring.md").read_text()
    for name in known:
        assert re.sub("_(bucket|sum|count|total)$", "", name) in told, name


def test_every_query_of_the_dashboard_is_of_the_chosen_fleet() -> None:
    for expression in EXPRESSIONS:
        read = re.findall(r"\brts_[a-z_]+", expression)
        assert len(read) == expression.count('{job=~"$job"'), expression


def test_every_query_of_the_dashboard_is_understood(tmp_path: Path) -> None:
    assert len(EXPRESSIONS) > 20
    rules = [
        {
            "record": f"x:{n}",
            "expr": e.replace("$__rate_interval", "1m").replace("$task_type", ".*"),
        }
        for n, e in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "q.yml").write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}))
    checked = promtool("check", "rules", "q.yml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_dashboard_is_what_its_program_writes() -> None:
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make_dashboard.py")
    make = importlib.util.module_from_spec(spec)
    sys.modules["make"] = make  # dataclasses look their module up
    try:
        spec.loader.exec_module(make)
        assert make.dashboard() == DASHBOARD, "run docs/monitoring/make_dashboard.py"
    finally:
        del sys.modules["make"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_grafana_finds_source_and_dashboard() -> None:
    sources = yaml.safe_load((FOLDER / "grafana" / "datasources.yml").read_text())
    (source,) = sources["datasources"]
    variables = DASHBOARD["templating"]["list"]
    # By a variable, as the uid of a source is another one in each Grafana.
    asked = [(v["name"], v["query"]) for v in variables if v["type"] == "datasource"]
    assert asked == [("datasource", source["type"])]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    users = [*panels, *(v for v in variables if v["type"] == "query")]
    assert {user["datasource"]["uid"] for user in users} == {"${datasource}"}
    providers = yaml.safe_load((FOLDER / "grafana" / "dashboards.yml").read_text())
    compose = (FOLDER.parent.parent / "docker-compose.yml").read_text()
    assert f"rts.json:{providers['providers'][0]['options']['path']}/rts.json:ro" in compose


def test_the_tasks_with_the_most_misses_are_those_of_now() -> None:
    """Of a range, Grafana shows each series' last value, also of one that is no longer among
    the ten: that of hours ago.
    """
    targets = (target for panel in DASHBOARD["panels"] for target in panel.get("targets", ()))
    (target,) = (target for target in targets if "topk" in target["expr"])
    assert (target["instant"], target["range"]) == (True, False)
    assert "> 0" in target["expr"]  # not any tasks that missed none
