"""Records for tests, and a sink of them."""

from __future__ import annotations

import time
from typing import Any

from rts.records import Execution


def run(task_id: str) -> Execution:
    """Return a run of a task *task_id* that has not started."""
    return Execution(
        run_id=f"run-{task_id}",
        task_id=task_id,
        name="proj.add",
        task_type="cpu-light",
        type_source="explicit",
        tau=5.0,
        k=2.0,
        arrival=1.0,
        deadline=11.0,
        arrival_source="published",
        queue=None,
        retries=0,
        parent_id=None,
        root_id=None,
        worker="w@h",
        instance="w@h/1-a",
        pid=1,
    )


def success(task_id: str, runtime_s: float = 1.0) -> Execution:
    """Return a run that ended well after *runtime_s* seconds."""
    return run(task_id)._replace(
        state="SUCCESS", started_at=1.0, completed_at=1.0 + runtime_s, runtime_s=runtime_s
    )


def ended(number: int, ago_s: float, **changes: Any) -> Execution:
    """Return a run of 3 s that ended *ago_s* seconds before now, in time."""
    completed_at = time.time() - ago_s
    known = run(f"task-{number}")._replace(
        run_id=f"run-{number}",
        name="proj.work",
        arrival=completed_at - 4,
        deadline=completed_at + 2,
        queue="q",
        worker="w@host",
        instance="w@host/1",
        started_at=completed_at - 3,
        load_at_start={"load": 0.25, "cpu": 0.25, "memory": 0.25, "gpu": None},
        completed_at=completed_at,
        runtime_s=3.0,
        cpu_s=2.0,
        max_rss_bytes=1 << 20,
        state="SUCCESS",
    )
    return known._replace(**changes)


def as_line(execution: Execution) -> bytes:
    """Return a record as it stands in the spool."""
    return execution.to_json().encode() + b"\n"


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.ends: list[Execution] = []

    def ended(self, execution: Execution) -> None:
        self.ends.append(execution)

    def ended_line(self, line: bytes) -> None:
        self.ends.append(Execution.from_json(line))
