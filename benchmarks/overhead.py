"""The overhead of rts: CPU of publishing and of a worker, memory of a pool child.

Plain Celery and Celery with rts alternate within one run: no-op tasks, prefork pool, Redis
as the broker, no result backend, which makes plain Celery as cheap as possible. With
--backend results are stored in Redis, as most apps do. With --events plain Celery also runs
with its own events, which Flower and exporters go by. All servers are embedded and private.

- publish: CPU seconds of one process per published task;
- worker: CPU seconds per task of the worker's whole process tree (main process, pool
  children and, with rts, the companion process), until the last record is in MongoDB;
- memory: resident bytes of a pool child after the run.

All tasks are published before the first one runs, some seconds later. Their relative
deadline is a minute; with --late it is the default of one second, so that all of them are
found overdue, and their verdicts written, before they end.

    python benchmarks/overhead.py [--pairs 7] [--tasks 4000] [--flat 100000] [--late]
                                  [--backend] [--events]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import redis
from heading import note, print_heading
from isolation import isolated, noop_environment, run_script

from rts.settings import Settings
from rts.testing import MongoServer, RedisServer, WorkerProcess, wait_until

HERE = Path(__file__).parent
#: A relative deadline in seconds that all tasks meet, unlike the default.
ON_TIME_S = 60.0
#: What is compared.
PLAIN, RTS, EVENTS = "plain", "with rts", "with events"
#: The settings of Celery's own events: of the worker (``-E``) and of publishers.
EVENT_SETTINGS = {"worker_send_task_events": True, "task_send_sent_event": True}
PUBLISH = """
import sys, time
from noop_app import noop
tasks = int(sys.argv[1])
for _ in range(200):
    noop.apply_async(queue="warm")
started = time.process_time()
for _ in range(tasks):
    noop.apply_async(queue="work")
print((time.process_time() - started) / tasks)
"""
WRITE_MODULES = """
import sys
from noop_app import write_modules
write_modules.apply_async((sys.argv[1],), queue="warm")
"""
#: Has the worker consume the queue of the measured tasks, or stop doing so.
CONTROL = """
import sys
from noop_app import app
getattr(app.control, sys.argv[1])("work", reply=True, limit=1)
"""


class Bench:
    """A pair of servers and the runs on them."""

    def __init__(
        self, redis_url: str, mongo_url: str, concurrency: int, slack_s: float, backend: bool
    ) -> None:
        settings = {"rts_mongo_url": mongo_url, "rts_min_slack": slack_s}
        celery: dict[str, Any] = {}
        if backend:
            celery = {"task_ignore_result": False, "result_backend": redis_url}
        #: Environments of the processes, by what they have.
        self.env = {
            PLAIN: noop_environment(redis_url, {}, celery),
            RTS: noop_environment(redis_url, settings, celery),
            EVENTS: noop_environment(redis_url, {}, {**celery, **EVENT_SETTINGS}),
        }
        self.concurrency = concurrency
        self.client = redis.Redis.from_url(redis_url, decode_responses=True)

    def run(self, kind: str, tasks: int, steps: int = 1) -> dict[str, Any]:
        """Return the figures of one run: CPU in seconds per task, memory in bytes."""
        self.client.flushdb()  # a private server of this benchmark
        env, rts = self.env[kind], kind == RTS
        worker = WorkerProcess(
            "noop_app",
            hostname="bench@%h",
            concurrency=self.concurrency,
            queues=["warm"],
            loglevel="WARNING",
            cwd=HERE,
            env=env,
        )
        with worker, tempfile.TemporaryDirectory() as folder:
            tree = psutil.Process(worker.pid)
            wait_until(lambda: len(worker.children()) >= self.concurrency, timeout=60)
            modules = Path(folder, "modules")
            run_script(WRITE_MODULES, env, modules)
            wait_until(lambda: modules.exists() and modules.stat().st_size > 0, timeout=60)
            result: dict[str, Any] = {
                "pymongo in a child": any(
                    line.split(".")[0] in ("pymongo", "bson")
                    for line in modules.read_text().splitlines()
                ),
                "rss": [],
            }
            for _ in range(steps):
                result["publish"] = float(run_script(PUBLISH, env, tasks))
                self.settle("warm", rts)
                before = self.cpu(tree)
                run_script(CONTROL, env, "add_consumer")
                self.settle("work", rts)
                result["worker"] = (self.cpu(tree) - before) / tasks
                result["rss"].append(
                    max(child.memory_info().rss for child in worker.children())
                )
                run_script(CONTROL, env, "cancel_consumer")
            return result

    def cpu(self, tree: psutil.Process) -> float:
        """Return the CPU seconds of the whole process tree."""
        return sum(
            process.cpu_times().user + process.cpu_times().system
            for process in [tree, *tree.children(recursive=True)]
        )

    def settle(self, queue: str, rts: bool) -> None:
        """Wait until the queue is empty and, with rts, the outbox drained."""

        def settled() -> bool:
            if self.client.llen(queue) or self.client.hlen("unacked"):
                return False
            return not rts or not self.client.xlen("rts:outbox")

        wait_until(settled, timeout=600, interval=0.1)
        time.sleep(0.5)


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument(
        "--flat", type=int, default=0, metavar="TASKS", help="memory over a long run"
    )
    parser.add_argument("--late", action="store_true", help="tasks miss their deadlines")
    parser.add_argument("--backend", action="store_true", help="store results in Redis")
    parser.add_argument("--events", action="store_true", help="compare Celery's events, too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    slack_s = Settings().min_slack if arguments.late else ON_TIME_S

    kinds = [PLAIN, RTS] + [EVENTS] * arguments.events
    rounds: list[dict[str, dict[str, Any]]] = []
    flat: list[int] = []
    with isolated(), RedisServer() as server, MongoServer() as mongo:
        bench = Bench(server.url, mongo.url, arguments.concurrency, slack_s, arguments.backend)
        for index in range(arguments.pairs):
            order = kinds if index % 2 == 0 else kinds[::-1]
            rounds.append({kind: bench.run(kind, arguments.tasks) for kind in order})
            note(f"pair {index + 1}/{arguments.pairs}")
        if arguments.flat:
            flat = bench.run(RTS, arguments.flat // 10, steps=10)["rss"]

    results = {
        "publish": medians(rounds, RTS, "publish"),
        "worker": medians(rounds, RTS, "worker"),
        "rss_growth_bytes": statistics.median(
            runs[RTS]["rss"][-1] - runs[PLAIN]["rss"][-1] for runs in rounds
        ),
        "pymongo in a child": any(runs[RTS]["pymongo in a child"] for runs in rounds),
        "rss_over_time_bytes": flat,
    }
    if arguments.events:
        results["publish with events"] = medians(rounds, EVENTS, "publish")
        results["worker with events"] = medians(rounds, EVENTS, "worker")
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        show(results, arguments)


def medians(
    rounds: list[dict[str, dict[str, Any]]], kind: str, figure: str
) -> tuple[float, float, float]:
    """Return the medians of a figure for plain Celery and for *kind*, and that of the rounds'
    ratios.
    """
    plain = statistics.median(runs[PLAIN][figure] for runs in rounds)
    other = statistics.median(runs[kind][figure] for runs in rounds)
    ratio = statistics.median(runs[kind][figure] / runs[PLAIN][figure] for runs in rounds)
    return plain, other, ratio


def show(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the table."""
    print_heading(
        ("celery", "kombu", "redis", "pymongo"),
        workload=f"{arguments.tasks} no-op tasks a run, {arguments.pairs} pairs, alternating; "
        f"prefork, {arguments.concurrency} children, "
        f"{'results in Redis' if arguments.backend else 'no result backend'}, "
        f"{'overdue' if arguments.late else 'on time'}",
        caveats="CPU time, not wall time; medians; ratio = median of the pairs' ratios",
    )
    more = f"{EVENTS:>14}{'ratio':>8}" if arguments.events else ""
    print(f"{'':<22}{PLAIN:>10}{RTS:>10}{'ratio':>8}{more}")
    for name in ("publish", "worker"):
        plain, with_rts, ratio = results[name]
        row = f"{name + ', µs of CPU':<22}{plain * 1e6:>10.0f}"
        row += f"{with_rts * 1e6:>10.0f}{ratio:>8.3f}"
        if arguments.events:
            _, with_events, ratio = results[f"{name} with events"]
            row += f"{with_events * 1e6:>14.0f}{ratio:>8.3f}"
        print(row)
    print(f"memory of a pool child {results['rss_growth_bytes'] / 1e6:+.1f} MB")
    print(f"pymongo in a pool child: {'yes' if results['pymongo in a child'] else 'no'}")
    if results["rss_over_time_bytes"]:
        shown = " ".join(f"{rss / 1e6:.1f}" for rss in results["rss_over_time_bytes"])
        print(f"memory of a child over {arguments.flat} tasks, MB: {shown}")


if __name__ == "__main__":
    main()
