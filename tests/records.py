"""Records for tests."""

from __future__ import annotations

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


def as_line(execution: Execution) -> bytes:
    """Return a record as it stands in the spool."""
    return execution.to_json().encode() + b"\n"
