"""Tasks that replace themselves with a chain, a group or a chord: one verdict, at its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
from celery import Celery, chain, chord, group

from rts.settings import Settings
from rts.testing import wait_until
from tests.conftest import MakeApp, MakeStage

BASIC = "tests.apps.basic"


def ok(app: Celery) -> Any:
    return app.signature(f"{BASIC}.ok", immutable=True)


def canvases(app: Celery) -> dict[str, Any]:
    """Return the replacements, by the name of the task that gets the id."""
    last = app.signature(f"{BASIC}.headers")
    nested = app.signature(
        f"{BASIC}.replaced_by_canvas", (dict(chain(ok(app), ok(app))),), immutable=True
    )
    found = {
        "chain": chain(ok(app), ok(app), last),
        "group": group(ok(app), ok(app)),
        "chord": chord([ok(app), ok(app)], last),
        "chord of chains": chord([chain(ok(app), ok(app)), ok(app)], last),
        "chord with a chain behind it": chord([ok(app), ok(app)], chain(ok(app), last)),
        "chain whose first replaces itself": chain(nested, ok(app), last),
        "chain whose last replaces itself": chain(ok(app), nested),
        "chain that retries": chain(
            app.signature(f"{BASIC}.autoretry", immutable=True),
            ok(app),
            app.signature(f"{BASIC}.autoretry", immutable=True),
        ),
    }
    if celery.VERSION >= (5, 7):  # before, nothing gets the id
        found["chain that ends in a group"] = chain(ok(app), group(ok(app), ok(app)))
    return found


def replaced(app: Celery, canvas: Any, deadline: float) -> Any:
    return app.send_task(
        f"{BASIC}.replaced_by_canvas",
        (dict(canvas),),
        headers={"sla_deadline": deadline},
    )


CHORDS = ("group", "chord", "chord of chains", "chord with a chain behind it")


@pytest.mark.parametrize("how", ["alone", "propagated", "without chords of the backend"])
def test_the_verdict_is_the_last_tasks_by_the_first_ones_deadline(
    make_stage: MakeStage,
    apps: MakeApp,
    redis_client: redis.Redis,
    mongo: Any,
    settings: Settings,
    tmp_path: Path,
    how: str,
) -> None:
    stage = make_stage(rts_propagate_deadline=how == "propagated")
    wanted = canvases(Celery(set_as_current=False))
    if how == "without chords of the backend":
        (tmp_path / "results").mkdir()
        stage.backend = f"file://{tmp_path / 'results'}"
        wanted = {which: wanted[which] for which in CHORDS}
    stage.worker(BASIC)
    app = apps(stage)
    deadline = float(int(time.time()) + 300)
    results = {which: replaced(app, canvas, deadline) for which, canvas in wanted.items()}
    for which, result in results.items():
        got = result.get(timeout=60)
        if isinstance(got, dict) and how != "propagated":
            tau, k, arrival = (got[f"rts_{name}"] for name in ("tau", "k", "arrival"))
            due = arrival + max(k * tau, tau + settings.min_slack)
            assert got["rts_deadline"] == pytest.approx(due, abs=1e-6), which
        task = wait_until(
            lambda which=which, result=result: mongo.tasks.find_one(
                {"_id": result.id, "state": "SUCCESS"}
            ),
            message=which,
        )
        runs = list(mongo.assignments.find({"task_id": result.id}).sort("started_at"))
        assert [run["state"] for run in runs if run["state"] != "RETRY"] == [
            "REPLACED",
            *["REPLACED"] * (which == "chain whose last replaces itself"),
            "SUCCESS",
        ], which
        assert (task["run_id"], task["attempts"]) == (runs[-1]["_id"], len(runs)), which
        assert task["name"] != f"{BASIC}.replaced_by_canvas"
        assert task["deadline"].timestamp() == deadline, which
        assert task["sla_success"] is True
        assert task["arrival"] > runs[0]["started_at"], which
    # Nothing is left open, not even by a note that comes after the end.
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 0)
    assert redis_client.hget(settings.keys.counters, "hook_errors") is None


def test_there_is_no_verdict_before_the_last_has_ended(
    make_stage: MakeStage,
    apps: MakeApp,
    redis_client: redis.Redis,
    mongo: Any,
    settings: Settings,
) -> None:
    stage = make_stage()
    stage.worker(BASIC)
    app = apps(stage)
    queue = stage.prefix.strip(":") + "-nobody"
    deadline = time.time() + 600
    result = replaced(app, chain(ok(app).set(queue=queue), ok(app)), deadline)
    task = wait_until(lambda: mongo.tasks.find_one({"_id": result.id}))
    assert (task["state"], task["sla_success"], task["cause"]) == ("REPLACED", None, None)
    assert task["completed_at"] is None
    wait_until(lambda: redis_client.zscore(settings.keys.open, result.id) == deadline)


def test_a_replacement_that_ends_late_or_never_is_overdue_once(
    make_stage: MakeStage,
    apps: MakeApp,
    redis_client: redis.Redis,
    mongo: Any,
    settings: Settings,
    tmp_path: Path,
) -> None:
    stage = make_stage()
    stage.worker(BASIC)
    app, marker = apps(stage), tmp_path / "marker"
    late = app.signature(f"{BASIC}.until", (str(marker),), immutable=True)
    failing = app.signature(f"{BASIC}.fail", immutable=True)
    wait_until(lambda: redis_client.exists(settings.keys.overdue_lease), message="it looks")
    deadline = time.time() + 4
    fails = replaced(app, chain(failing, ok(app)), deadline)
    takes = replaced(app, chain(late, ok(app)), deadline)
    for result in (fails, takes):
        task = wait_until(
            lambda result=result: mongo.tasks.find_one({"_id": result.id, "cause": "overdue"})
        )
        assert (task["state"], task["sla_success"]) == ("REPLACED", False)
        assert task["verdict_at"] == task["deadline"]
    marker.touch()
    task = wait_until(lambda: mongo.tasks.find_one({"_id": takes.id, "state": "SUCCESS"}))
    assert (task["sla_success"], task["cause"]) == (False, None)
    assert task["deadline"].timestamp() == pytest.approx(deadline, abs=1e-3)
    told = [
        json.loads(fields["e"])["task_id"]
        for _, fields in redis_client.xrange(settings.keys.events)
    ]
    assert sorted(told) == sorted([fails.id, takes.id])
    wait_until(lambda: redis_client.zcard(settings.keys.open) == 0)
    wait_until(lambda: redis_client.zrange(settings.keys.overdue, 0, -1) == [fails.id])
