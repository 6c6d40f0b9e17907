"""The last runs of a queue: of which queues they are noted."""

from __future__ import annotations

from typing import Any

import pytest

from rts.keys import Keys
from rts.ledger.recent import KEPT_S, MAX_QUEUES, MAX_RECORD, RecentRuns, read_recent
from tests.records import success


def test_queues_whose_runs_are_noted_are_bounded() -> None:
    at = 1000.0
    recent = RecentRuns(Keys("rts:"), lambda: at)

    def commands(queue: str) -> int:
        run = success("a")._replace(queue=queue)
        return len(recent.pack([(run, run.to_json().encode())]))

    assert all(commands(f"user-{n}") for n in range(MAX_QUEUES))
    assert not commands("another")
    assert commands("user-0"), "those that are known go on"
    at += KEPT_S - 1
    assert commands("user-0")
    assert not commands("another")
    at += 2
    assert commands("another"), "the others were silent for so long that their keys are gone"
    assert commands("user-0")


def test_runs_of_tasks_with_huge_ids_are_not_noted() -> None:
    run = success("x" * MAX_RECORD)._replace(queue="q")
    assert not RecentRuns(Keys("rts:")).pack([(run, run.to_json().encode())])


@pytest.mark.parametrize(
    "foreign",
    [
        *({"task_id": ["x"]}, {"task_type": {}}, {"queue": []}),
        *({"arrival": "soon"}, {"tau": None}, {"completed_at": "x"}, {"started_at": 1e999}),
    ],
)
def test_runs_that_cannot_be_computed_with_are_left_out(foreign: Any) -> None:
    run = success("a")._replace(queue="q")
    texts = [run.to_json(), run._replace(**{"task_id": "b", **foreign}).to_json(), b"none"]
    assert [found.task_id for found in read_recent(texts)] == ["a"]
