"""Predictions against what then happens, in simulations of the same rule."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from rts.scheduling.forecast import Prediction, Snapshot, Work, predict
from rts.settings import Settings
from rts.simulation.orders import FirstComeFirstServed
from rts.simulation.simulator import simulate
from rts.simulation.traces import at_load, six_types
from rts.tau.sketch import Sketch


def known_ratios() -> dict[str, Sketch]:
    """Return what is learned from the six types' own runtimes."""
    rng, sketch = random.Random(3), Sketch()
    for _ in range(2000):
        sketch.update(rng.lognormvariate(-0.045, 0.3))
    return dict.fromkeys(Settings().task_types, sketch)


def test_an_idle_worker_starts_at_once() -> None:
    work = Work("mixed", 100.0, 10.0, 120.0)
    got = predict(Snapshot(100.0, 2, []), work, FirstComeFirstServed)
    assert got.start == got.start_high == 100.0
    assert got.finish == pytest.approx(109, rel=0.1)
    assert got.finish_low < got.finish < got.finish_high
    assert 0.85 < got.on_time < 1
    assert (got.ahead, got.slots) == (0, 2)


def test_what_runs_is_due_after_what_it_has_run() -> None:
    work = Work("mixed", 0.0, 10.0, 20.0)
    long = predict(Snapshot(100.0, 1, []), (work, 0.0), FirstComeFirstServed)
    assert long.finish > 100.0
    assert long.on_time == 0.0
    with pytest.raises(ValueError, match="no worker"):
        predict(Snapshot(0.0, 0, []), work, FirstComeFirstServed)


@pytest.mark.parametrize("order", [FirstComeFirstServed])
def test_predictions_of_a_loaded_run_hold(order: Any) -> None:
    slots, ratios = 8, known_ratios()
    jobs = at_load(six_types(1200, seed=4), slots, 1.1)
    outcomes = simulate(jobs, slots, order(), Settings(learning_rate=1e-9))
    errors, inside, asked = [], 0, 0
    for index in range(300, 1100, 8):
        outcome = outcomes[index]
        now = outcome.job.arrival_s
        earlier = outcomes[:index]

        def work(o: Any) -> Work:
            return Work(o.job.task_type, o.job.arrival_s, o.tau, o.deadline)

        waiting = [work(o) for o in earlier if o.started_at > now]
        running = [
            (work(o), o.started_at) for o in earlier if o.started_at <= now < o.finished_at
        ]
        got: Prediction = predict(
            Snapshot(now, slots, waiting, running, ratios), work(outcome), order, seed=index
        )
        wait, predicted = outcome.queueing_delay_s, got.start - now
        if wait > 10:
            errors.append(abs(predicted - wait) / wait)
        asked += 1
        inside += got.finish_low <= outcome.finished_at <= got.finish_high
    assert statistics.median(errors) <= 0.2
    assert 0.85 <= inside / asked <= 0.95
