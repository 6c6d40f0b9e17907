"""A real Prometheus scrapes the exporter; an incident fires the burn alert and ends it."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rts.ledger.mongo import MongoLedger
from rts.settings import Settings
from rts.testing import wait_until
from rts.testing.processes import OwnedProcess
from tests.conftest import CELERY, ROOT, MakeStage, Stage
from tests.metrics import Fleet
from tests.programs import needed
from tests.records import success

RULES = ROOT / "docs" / "monitoring" / "rules.yml"
#: The windows of the rules in this test, seconds.
SHORT = {"5m": 6, "30m": 10, "1h": 15, "6h": 25, "3d": 60}


def shortened(rules: str) -> str:
    """Return the rules with windows that an impatient test can wait for."""
    for window, seconds in SHORT.items():
        rules = rules.replace(f"[{window}]", f"[{seconds}s]")
    return re.sub(r"for: \d+m", "for: 1s", rules)


class Prometheus:
    """A Prometheus with the (shortened) rules, that scrapes one exporter every second."""

    def __init__(self, folder: Path, exporter: str) -> None:
        folder.mkdir()
        (folder / "rules.yml").write_text(shortened(RULES.read_text()))
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": ["rules.yml"],
                    "scrape_configs": [
                        {"job_name": "rts", "static_configs": [{"targets": [exporter]}]}
                    ],
                }
            )
        )
        self.log = folder / "log"
        command = [
            needed("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            "--web.listen-address=127.0.0.1:0",
        ]
        self.process = OwnedProcess(command, self.log)
        # With port 0 it says which one it took.
        found = wait_until(
            lambda: (
                re.search(r"Listening on.* address=(127\.0\.0\.1:\d+)", self.log.read_text())
                or not self.process.running
            )
        )
        assert isinstance(found, re.Match), self.log.read_text()
        self.url = f"http://{found[1]}"

    def get(self, path: str) -> Any:
        """Return an answer of its API."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return json.load(answer)["data"]
        except (urllib.error.URLError, ConnectionError):
            return None  # it starts

    def firing(self) -> dict[str, dict[str, str]]:
        """Return the annotations of the alerts that fire, by name."""
        alerts = (self.get("/api/v1/alerts") or {}).get("alerts", ())
        return {
            alert["labels"]["alertname"]: alert["annotations"]
            for alert in alerts
            if alert["state"] == "firing"
        }


@pytest.fixture
def exporter(make_stage: MakeStage, tmp_path: Path) -> Iterator[tuple[Stage, str]]:
    stage = make_stage(rts_slo={"cpu-light": 0.99})
    log = tmp_path / "exporter.log"
    command = [*CELERY, "rts", "exporter", "--port", "0"]
    env = {**os.environ, **stage.environment}
    process = OwnedProcess(command, log, env=env, cwd=ROOT)
    try:
        found = wait_until(lambda: re.search(r"http://(\S+)/metrics", log.read_text()))
        yield stage, found[1]
    finally:
        process.stop(10)


def test_the_burn_alert_fires_and_resolves(exporter: tuple[Stage, str], tmp_path: Path) -> None:
    stage, address = exporter
    settings = Settings(
        redis_url=stage.redis_url,
        mongo_url=stage.conf["rts_mongo_url"],
        key_prefix=stage.prefix,
        slo={"cpu-light": 0.99},
    )
    ledger = MongoLedger(settings)
    fleet = Fleet(settings, ledger)
    prometheus = Prometheus(tmp_path / "prometheus", address)
    count = [0]

    def flow(good: bool) -> None:
        """End a few tasks, as they would in a tenth of a second."""
        now = time.time()
        for _ in range(10):
            count[0] += 1
            deadline = now + 10 if good else now - 1
            made = success(f"t{count[0]}")._replace(arrival=now - 20, deadline=deadline)
            fleet.end(made._replace(started_at=now - 2, completed_at=now))
        fleet.drain()

    def until(condition: Callable[[], bool], good: bool) -> None:
        def step() -> bool:
            flow(good)
            return condition()

        wait_until(step, timeout=90, interval=0.1, message=str(prometheus.firing()))

    try:
        wait_until(lambda: prometheus.get("/api/v1/targets"))
        until(lambda: healthy(prometheus), good=True)
        # A while in which all is well: nothing fires.
        begin = time.monotonic()
        until(lambda: time.monotonic() - begin > 5, good=True)
        assert prometheus.firing() == {}
        until(lambda: "RtsSloBurnsFast" in prometheus.firing(), good=False)
        told = prometheus.firing()["RtsSloBurnsFast"]
        assert re.search(
            r"The error budget of cpu-light burns at \d+\.\d times", told["summary"]
        )
        # It ends while the long window still burns.
        until(lambda: "RtsSloBurnsFast" not in prometheus.firing(), good=True)
        query = "/api/v1/query?query=rts_slo_verdicts_total%7Bverdict%3D%22met%22%7D"
        (found,) = prometheus.get(query)["result"]
        assert 0 < float(found["value"][1]) <= count[0]
    finally:
        prometheus.process.stop(10)
        ledger.close()


def healthy(prometheus: Prometheus) -> bool:
    """Return whether the exporter was scraped, and its metrics are there."""
    targets = (prometheus.get("/api/v1/targets") or {}).get("activeTargets", ())
    return bool(targets) and all(target["health"] == "up" for target in targets)
