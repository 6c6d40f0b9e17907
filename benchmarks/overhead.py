"""The overhead of rts: CPU of publishing and of a worker, memory of a pool child.

Plain Celery and Celery with rts alternate within one run: no-op tasks, prefork pool, Redis
as the broker, no result backend, which makes plain Celery as cheap as possible. All servers
are embedded and private.

- publish: CPU seconds of one process per published task;
- worker: CPU seconds per task of the worker's whole process tree (main process, pool
  children and, with rts, the companion process), until the last record is in MongoDB;
- memory: resident bytes of a pool child after the run.

All tasks are published before the first one runs, some seconds later. Their relative
deadline is a minute; with --late it is the default of one second, so that all of them are
found overdue, and their verdicts written, before they end.

    python benchmarks/overhead.py [--pairs 7] [--tasks 4000] [--flat 100000] [--late]
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
        self, redis_url: str, mongo_url: str, concurrency: int, slack_s: float
    ) -> None:
        settings = {"rts_mongo_url": mongo_url, "rts_min_slack": slack_s}
        #: Environments of the processes, by whether they have rts.
        self.env = {
            False: noop_environment(redis_url, {}),
            True: noop_environment(redis_url, settings),
        }
        self.concurrency = concurrency
        self.client = redis.Redis.from_url(redis_url, decode_responses=True)

    def run(self, rts: bool, tasks: int, steps: int = 1) -> dict[str, Any]:
        """Return the figures of one run: CPU in seconds per task, memory in bytes."""
        self.client.flushdb()  # a private server of this benchmark
        env = self.env[rts]
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
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    slack_s = Settings().min_slack if arguments.late else ON_TIME_S

    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    flat: list[int] = []
    with isolated(), RedisServer() as server, MongoServer() as mongo:
        bench = Bench(server.url, mongo.url, arguments.concurrency, slack_s)
        for index in range(arguments.pairs):
            order = (False, True) if index % 2 == 0 else (True, False)
            runs = {rts: bench.run(rts, arguments.tasks) for rts in order}
            pairs.append((runs[False], runs[True]))
            note(f"pair {index + 1}/{arguments.pairs}")
        if arguments.flat:
            flat = bench.run(True, arguments.flat // 10, steps=10)["rss"]

    results = {
        "publish": medians(pairs, "publish"),
        "worker": medians(pairs, "worker"),
        "rss_growth_bytes": statistics.median(r["rss"][-1] - p["rss"][-1] for p, r in pairs),
        "pymongo in a child": any(r["pymongo in a child"] for _, r in pairs),
        "rss_over_time_bytes": flat,
    }
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        show(results, arguments)


def medians(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], figure: str
) -> tuple[float, float, float]:
    """Return the medians of a figure without and with rts, and that of the pairs' ratios."""
    plain = statistics.median(p[figure] for p, _ in pairs)
    with_rts = statistics.median(r[figure] for _, r in pairs)
    ratio = statistics.median(r[figure] / p[figure] for p, r in pairs)
    return plain, with_rts, ratio


def show(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the table."""
    print_heading(
        ("celery", "kombu", "redis", "pymongo"),
        workload=f"{arguments.tasks} no-op tasks a run, {arguments.pairs} pairs, alternating; "
        f"prefork, {arguments.concurrency} children, no result backend, "
        f"{'overdue' if arguments.late else 'on time'}",
        caveats="CPU time, not wall time; medians; ratio = median of the pairs' ratios",
    )
    print(f"{'':<22}{'plain':>10}{'with rts':>10}{'ratio':>8}")
    for name, text in (("publish", "publish, µs of CPU"), ("worker", "worker, µs of CPU")):
        plain, with_rts, ratio = results[name]
        print(f"{text:<22}{plain * 1e6:>10.0f}{with_rts * 1e6:>10.0f}{ratio:>8.3f}")
    print(f"memory of a pool child {results['rss_growth_bytes'] / 1e6:+.1f} MB")
    print(f"pymongo in a pool child: {'yes' if results['pymongo in a child'] else 'no'}")
    if results["rss_over_time_bytes"]:
        shown = " ".join(f"{rss / 1e6:.1f}" for rss in results["rss_over_time_bytes"])
        print(f"memory of a child over {arguments.flat} tasks, MB: {shown}")


if __name__ == "__main__":
    main()
