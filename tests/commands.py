"""What the tests of the commands share: servers of nobody, and runs for their ledgers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from click.testing import Result

from rts.ledger.mongo import MongoLedger
from rts.records import Execution, OutboxEntry
from rts.settings import Settings
from tests.records import run as run_of

#: Ports of nobody: nothing listens there.
NO_REDIS, NO_MONGO = "redis://:secret@127.0.0.1:1/0", "mongodb://u:secret@127.0.0.1:1/rts"

Run = Callable[..., Result]


def write(conf: dict[str, Any], *runs: Execution) -> None:
    ledger = MongoLedger(Settings.from_conf(conf))
    ledger.write([OutboxEntry(str(n), run) for n, run in enumerate(runs)])
    ledger.close()


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def write_verdicts(
    conf: dict[str, Any], *groups: tuple[str, float, int, int], runtime_s: float = 1.0
) -> None:
    """Write verdicts: type, seconds ago, how many on time, how many late."""
    runs = []
    for task_type, ago_s, good, bad in groups:
        for i in range(good + bad):
            end = time.time() - ago_s
            run = run_of(f"{task_type}-{ago_s}-{i}")._replace(
                run_id=f"{task_type}-{ago_s}-{i}:0",
                task_type=task_type,
                name=f"proj.{task_type}",
                arrival=end - 60,
                started_at=end - 1,
                completed_at=end,
                deadline=end + 60 if i < good else end - 1,
                runtime_s=runtime_s,
                state="SUCCESS",
            )
            runs.append(run)
    write(conf, *runs)
