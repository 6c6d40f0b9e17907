"""The fleet as ``rts status`` and ``rts watch`` show it: outbox, workers, unfinished tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rts.cli.table import NONE, Column, seconds
from rts.load.sample import FIGURES
from rts.views.fleet_state import Vitals
from rts.views.json_values import utc
from rts.views.status import RedisState, worker_document

#: Alerts that nobody evaluates may be over, and new ones do not start.
UNLED = "but nothing evaluates them now (a worker with rts_drain and rts_webhooks would)"
NO_WORKERS = (
    "No workers. One that is running has no rts (add rts.install(app), and restart it), or "
    "another Redis."
)


def fleet_document(redis: RedisState) -> dict[str, Any]:
    """Return the outbox, the workers and the tasks that have not ended, for JSON; numbers are
    ``None`` if Redis does not answer.
    """
    vitals = redis.vitals

    def known(number: float) -> float | None:
        return number if redis.server.reachable else None

    return {
        "outbox": {
            "length": known(vitals.outbox_length),
            "lag_s": known(vitals.lag_s),
            "oldest_at": utc(vitals.oldest_at),
        },
        "workers": [worker_document(worker, vitals.now) for worker in vitals.workers],
        "running": {"runs": known(vitals.notes), "overdue": known(len(vitals.late))},
        "open": {"tasks": known(redis.open_tasks), "overdue": known(redis.overdue_tasks)},
    }


def outbox_text(vitals: Vitals) -> str:
    """Return how many records wait, and for how long."""
    lag = f", the oldest for {seconds(vitals.lag_s)} s" if vitals.outbox_length else ""
    return f"{vitals.outbox_length} waiting{lag}"


WORKER_COLUMNS = (
    Column("worker", number=False),
    Column("host", number=False),
    *map(Column, ("pid", "slots", "seen s ago", *FIGURES)),
    Column("", number=False),
)


def worker_rows(vitals: Vitals) -> list[Sequence[str]]:
    """Return the cells of each worker for ``WORKER_COLUMNS``."""
    return [
        (
            worker.worker,
            *(
                NONE if it is None else str(it)
                for it in (worker.host, worker.pid, worker.slots)
            ),
            f"{worker.age_s(vitals.now):.1f}",
            *(f"{worker.load[of]:.2f}" if of in worker.load else NONE for of in FIGURES),
            "silent" if worker.is_silent(vitals.now) else "",
        )
        for worker in vitals.workers
    ]
