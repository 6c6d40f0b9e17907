"""Replay a workload through real workers: each job is a task that sleeps.

The speed-up turns hours into minutes: arrivals, service times, first taus and floors are all
divided by it, so that the same deadlines are met as long as a task is long compared with
Celery's own overhead (a few milliseconds). The time until publishers learn from a finished run
does not scale with it: it stays at some tenths of a second, which the speed-up multiplies on
the workload's clock (:func:`learning_lag_s`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pymongo

from rts.settings import OVERRIDING, Settings
from rts.simulation.traces import Job, with_types
from rts.tau.cache import FRESH_S
from rts.testing.servers import MongoServer, RedisServer
from rts.testing.waiting import wait_until
from rts.testing.workers import WorkerProcess

APP = "rts.testing.replay_app"
#: Seconds that the replay may take beyond twice what the slots need for the work.
PATIENCE_S = 60.0

#: Settings that decide the results, whatever the speed.
RULES = (
    *("sla_multiplier", "deadline_policy", "quantile", "learning_rate", "tau_scope"),
    *("min_samples", "max_types", "hopeless", "hopeless_slots", "late_share", "order"),
)

#: Shortest time in seconds after which the publisher reads the taus again. It is a second in
#: production and less with the speed-up, but must not take CPU from the worker.
MIN_FRESH_S = 0.1
#: Mean seconds until a finished run is in Redis: a worker ships five times a second.
SHIPPED_S = 0.1

_PUBLISH = """
import json, sys, time
import rts.tau.cache
from rts.testing.replay_app import app, spec
rts.tau.cache.FRESH_S = spec["fresh_s"]
jobs = json.load(sys.stdin)
with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
    for task in app.tasks.values():  # finalizes the app before the clock starts
        pass
    producer.connection.ensure_connection()
    begun = time.time() + 0.5
    for arrival, name, seconds, kind in jobs:
        pause = begun + arrival - time.time()
        if pause > 0:
            time.sleep(pause)
        app.send_task(name, (seconds,), headers={"task_type": kind}, producer=producer)
        print(".", end="", flush=True)
"""


class Replayed(NamedTuple):
    """The outcome of a job."""

    task_type: str
    met: bool


def fresh_s(speedup: float) -> float:
    """Return the seconds after which the publisher of a replay reads the taus again."""
    return max(MIN_FRESH_S, FRESH_S / speedup)


def learning_lag_s(speedup: float) -> float:
    """Return the mean seconds, on the workload's clock, until a finished run has changed the
    taus.
    """
    return (SHIPPED_S + fresh_s(speedup) / 2) * speedup


def sped_up(settings: Settings, speedup: float) -> dict[str, Any]:
    """Return the settings that give the same results with jobs that are *speedup* times as
    fast.
    """
    return {
        "rts_task_types": {
            kind.name: {"tau": kind.tau / speedup, "sla_multiplier": kind.sla_multiplier}
            for kind in settings.task_types.values()
        },
        "rts_min_slack": settings.min_slack / speedup,
        **{f"rts_{name}": getattr(settings, name) for name in RULES},
        "rts_queue_horizons": {q: s / speedup for q, s in settings.queue_horizons.items()},
    }


def replay(
    jobs: Sequence[Job],
    slots: int,
    scheduler: str | None,
    *,
    settings: Settings | None = None,
    speedup: float = 100.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    look: Callable[[Any], None] = lambda ledger: None,
) -> list[Replayed]:
    """Run *jobs*, sorted by arrival, on a worker of *slots* processes with servers of its own.

    *scheduler* is ``rts_scheduler``. *progress* gets the number of jobs with a verdict, and of
    all. *look* gets the ledger's database at the end, before its server stops. Types that
    *settings* lacks are declared.

    Raises:
        TimeoutError: the queue was not drained in time.
        ServerNotFound, WorkerFailed: a server or the worker could not be started.
    """
    settings = with_types(settings or Settings(), jobs)
    rows = [(j.arrival_s / speedup, j.name, j.runtime_s / speedup, j.task_type) for j in jobs]
    work_s = sum(seconds for _, _, seconds, _ in rows) / slots
    with RedisServer() as redis, MongoServer() as mongo, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rts-replay-")))
        spec = {
            "broker": redis.url,
            "conf": {
                **sped_up(settings, speedup),
                "rts_scheduler": scheduler,
                "rts_redis_url": redis.url,
                "rts_mongo_url": mongo.url,
                # The default one is named after the URL of Redis: an earlier server's runs may
                # lie there.
                "rts_spool_dir": str(folder / "spool"),
            },
            "names": sorted({job.name for job in jobs}),
            "fresh_s": fresh_s(speedup),
        }
        env = environment(spec, folder / "spec.json")
        client: Any = stack.enter_context(pymongo.MongoClient(mongo.url, tz_aware=True))
        ledger = client.get_default_database()

        def done() -> bool:
            count = ledger.tasks.count_documents({"completed_at": {"$ne": None}})
            progress(count, len(rows))
            return bool(count >= len(rows))

        # It has no neighbours to ask for a second what they have revoked.
        alone = ("--without-mingle",)
        with WorkerProcess(
            APP, concurrency=slots, arguments=alone, env=env, loglevel="WARNING"
        ) as worker:
            wait_until(lambda: len(worker.children()) >= slots, message="all pool processes")
            with _publishing(rows, env) as publisher:
                wait_until(done, rows[-1][0] + 2 * work_s + PATIENCE_S, interval=0.25)
                publisher.wait(10)
            look(ledger)
            tasks = ledger.tasks.find({}, {"task_type": 1, "sla_success": 1})
            return [Replayed(task["task_type"], bool(task["sla_success"])) for task in tasks]


def environment(spec: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the environment in which the app reads *spec* from a file at *path*: the names of
    a trace may not fit into a variable. Nothing in it overrides the app's settings.
    """
    path.write_text(json.dumps(spec))
    # Emptied, as a worker that is started here inherits what is merely left out.
    return {**os.environ, **dict.fromkeys(OVERRIDING, ""), "RTS_REPLAY": str(path)}


@contextmanager
def _publishing(
    rows: Sequence[tuple[float, str, float, str]], env: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Publish *rows*, of arrival, name, runtime and type, from a process of its own."""
    publisher = subprocess.Popen(
        [sys.executable, "-c", _PUBLISH],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert publisher.stdin is not None
        json.dump(rows, publisher.stdin)
        publisher.stdin.close()
        yield publisher
    finally:
        publisher.kill()
        publisher.wait()


def share(replayed: Sequence[Replayed]) -> float:
    """Return the share of deadlines met, 0 to 1; 1.0 without jobs."""
    return sum(job.met for job in replayed) / len(replayed) if replayed else 1.0
