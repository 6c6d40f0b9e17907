"""Four processes learn at once, and the EMA is that of one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from rts.testing import wait_until
from tests.conftest import MakeApp, MakeStage


@pytest.mark.usefixtures("unmeasured")
def test_a_thousand_runs_over_four_processes(
    make_stage: MakeStage, apps: MakeApp, mongo: Any, redis_client: Any
) -> None:
    stage = make_stage()
    stage.worker(concurrency=4)
    app = apps(stage)
    names = ("tests.apps.basic.ok", "tests.apps.basic.late")
    for i in range(1000):
        app.send_task(names[i % 2], (0.001 * (i % 7),), headers={"task_type": "cpu-light"})
        if i % 50 == 0:
            app.send_task("tests.apps.basic.fail", headers={"task_type": "cpu-light"})
            app.send_task("tests.apps.basic.retry_once", headers={"task_type": "mixed"})
    ended = {"completed_at": {"$ne": None}}  # not only overdue
    wait_until(lambda: mongo.tasks.count_documents(ended) == 1040, timeout=90)

    runs = {
        run["tau_before"]: run
        for run in mongo.assignments.find({"task_type": "cpu-light", "state": "SUCCESS"})
    }
    # The order in which the runs were applied is the chain of their taus.
    taus = {None: 5.0} | dict.fromkeys(names, 5.0)
    for _ in range(1000):
        run = runs.pop(taus[None])
        for key in (None, run["name"]):
            taus[key] = 0.2 * run["runtime_s"] + 0.8 * taus[key]
        assert run["tau_after"] == pytest.approx(taus[None], rel=1e-12)
        taus[None] = run["tau_after"]
        assert run["name_tau_after"] == pytest.approx(taus[run["name"]], rel=1e-9)
    assert runs == {}
    stored = redis_client.hgetall(f"{stage.prefix}tau")
    assert float(stored["cpu-light"]) == pytest.approx(taus[None], abs=1e-9)
    for name in names:
        assert float(stored[f"cpu-light/{name}"]) == pytest.approx(taus[name], abs=1e-9)
    counts = redis_client.hgetall(f"{stage.prefix}count")
    assert counts["cpu-light"] == "1000"
    assert "cpu-light/tests.apps.basic.fail" not in counts
    assert counts["mixed/tests.apps.basic.retry_once"] == "20"
