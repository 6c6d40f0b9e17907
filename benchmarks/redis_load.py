"""What rts asks of Redis, beside what Celery asks of it as a broker.

No-op tasks, a prefork pool and no result backend. rts has a server of its own here, so that
the two can be told apart; what each server does while the worker is idle is subtracted. All
servers are embedded and private.

    python benchmarks/redis_load.py [--tasks 4000] [--idle-s 10]
"""

from __future__ import annotations

import argparse
import json
import time

import pymongo
import redis
from heading import print_heading
from isolation import isolated, noop_environment, run_script

from rts.testing import MongoServer, RedisServer, WorkerProcess, wait_until

SLOTS = 2
PUBLISH = """
import sys
from noop_app import noop
for _ in range(int(sys.argv[1])):
    noop.delay()
"""
#: By label: fields of INFO whose sum is counted, and how many units of it make one of ours.
COUNTED = {
    "CPU, µs": (("used_cpu_sys", "used_cpu_user"), 1e-6),
    "received, bytes": (("total_net_input_bytes",), 1),
    "sent, bytes": (("total_net_output_bytes",), 1),
}

Counts = dict[str, float]


def counts(server: RedisServer) -> Counts:
    """Return what the server has done so far, and when that was, in seconds."""
    with redis.Redis.from_url(server.url) as client:
        info = client.info()
    done = {
        label: sum(info[field] for field in fields) / unit
        for label, (fields, unit) in COUNTED.items()
    }
    return {**done, "at": time.monotonic()}


def idle_and_per_task(
    first: Counts, idle: Counts, last: Counts, tasks: int
) -> tuple[Counts, Counts]:
    """Return what the server does a second while the worker is idle, and for each task."""
    passed_s, busy_s = idle["at"] - first["at"], last["at"] - idle["at"]
    per_s = {label: (idle[label] - first[label]) / passed_s for label in COUNTED}
    per_task = {
        label: (last[label] - idle[label] - per_s[label] * busy_s) / tasks for label in COUNTED
    }
    return per_s, per_task


def measure(tasks: int, idle_s: float) -> dict[str, dict[str, Counts]]:
    """Return, by server ("rts" and "broker"), what it does idle and for each task."""
    with isolated(), RedisServer() as broker, RedisServer() as own, MongoServer() as mongo:
        env = noop_environment(
            broker.url, {"rts_redis_url": own.url, "rts_mongo_url": mongo.url}
        )
        servers = {"rts": own, "broker": broker}
        with (
            pymongo.MongoClient(mongo.url) as client,
            WorkerProcess("noop_app", concurrency=SLOTS, loglevel="WARNING", env=env),
        ):
            ledger = client.get_default_database().tasks
            run_script(PUBLISH, env, SLOTS)
            wait_until(lambda: ledger.count_documents({"state": "SUCCESS"}) == SLOTS, 60)
            time.sleep(3)  # what follows a start is over
            first = {name: counts(server) for name, server in servers.items()}
            time.sleep(idle_s)
            idle = {name: counts(server) for name, server in servers.items()}
            run_script(PUBLISH, env, tasks)
            expected = SLOTS + tasks
            wait_until(lambda: ledger.count_documents({"state": "SUCCESS"}) == expected, 600)
            time.sleep(1)
            last = {name: counts(server) for name, server in servers.items()}
    results = {}
    for name in servers:
        per_s, per_task = idle_and_per_task(first[name], idle[name], last[name], tasks)
        results[name] = {"a task": per_task, "idle, a second": per_s}
    return results


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=4000)
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments.tasks, arguments.idle_s)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print_heading(
        ("celery", "kombu", "redis"),
        workload=f"{arguments.tasks} no-op tasks, one worker, {SLOTS} slots, no result backend",
    )
    print(f"{'Redis':<32}{'rts':>8}{'Celery':>10}")
    for when in ("a task", "idle, a second"):
        for label in COUNTED:
            rts, celery = results["rts"][when][label], results["broker"][when][label]
            print(f"{f'{when}: {label}':<32}{rts:>8,.0f}{celery:>10,.0f}")


if __name__ == "__main__":
    main()
