"""The cost of the deadline order: EDF against kombu's own Redis transport.

Both with rts, alternating within one run; all servers are embedded and private.

- tasks/s: no-op tasks, published by one process, then processed by a prefork worker; wall
  time, from when it is told to take them to the end of the last one;
- claims with a number of messages waiting: median wall time in microseconds, one client,
  alternating between queues of all sizes;
- Redis memory per waiting message: after publishing, less what was used before.

    python benchmarks/order.py [--pairs 7] [--tasks 5000] [--waiting 1000,1000000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from heading import note, print_heading
from isolation import isolated, noop_environment, run_script

from rts.testing import MongoServer, RedisServer, WorkerProcess, wait_until

HERE = Path(__file__).parent
#: Claims to time from each queue, at most.
CLAIMS = 500
PUBLISH = """
import sys, time
from noop_app import noop
for _ in range(200):
    noop.apply_async(queue="warm")
started = time.perf_counter()
for _ in range(int(sys.argv[1])):
    noop.apply_async(queue="work")
print(time.perf_counter() - started)
"""
FILL = """
import sys, time, uuid
from kombu.utils.json import dumps
from noop_app import app, noop
from rts.scheduling.layout import HOPEFUL, keys_of
queue, messages = sys.argv[1], int(sys.argv[2])
noop.apply_async(queue="one")
with app.connection_for_write() as connection:
    channel = connection.default_channel
    raw = channel._get("one")
    raw["properties"]["delivery_info"]["routing_key"] = queue
    later = time.time() + 1e6
    with channel.client.pipeline(transaction=False) as pipe:
        for i in range(messages):
            # The same commands as a producer, many at a time.
            raw["properties"]["delivery_tag"] = str(uuid.uuid4())
            raw["headers"]["rts_deadline"] = later + i * 7919 % 1000003
            if hasattr(channel, "_score_and_member"):
                score, member = channel._score_and_member(queue, raw)
                pipe.zadd(*keys_of(channel, queue, HOPEFUL), {member: score})
            else:
                pipe.lpush(queue, dumps(raw))
            if i % 1000 == 999:
                pipe.execute()
        pipe.execute()
"""
CLAIM = """
import json, statistics, sys, time
from noop_app import app
queues, claims = sys.argv[1].split(","), int(sys.argv[2])
with app.connection_for_read() as connection:
    channel = connection.default_channel
    took = {queue: [] for queue in queues}
    for _ in range(claims):
        for queue in queues:  # alternating, so that noise affects all alike
            started = time.perf_counter()
            channel.basic_get(queue).ack()
            took[queue].append(time.perf_counter() - started)
    print(json.dumps({queue: statistics.median(times) for queue, times in took.items()}))
"""


class Bench:
    """A pair of servers, and the processes that use them."""

    def __init__(self, redis_url: str, mongo_url: str) -> None:
        self.client = redis.Redis.from_url(redis_url, decode_responses=True)
        self.control = Celery("control", broker=redis_url, set_as_current=False).control
        settings = {"rts_mongo_url": mongo_url}
        #: Environments of the processes, by order.
        self.env = {
            "fifo": noop_environment(redis_url, settings),
            "edf": noop_environment(redis_url, {**settings, "rts_scheduler": "edf"}),
        }

    def throughput(self, order: str, tasks: int) -> tuple[float, float]:
        """Return the tasks per second of a publisher and of a worker."""
        self.client.flushdb()
        env = self.env[order]
        published = tasks / float(run_script(PUBLISH, env, tasks))
        worker = WorkerProcess(
            "noop_app", queues=["warm"], cwd=HERE, env=env, loglevel="WARNING"
        )
        with worker:
            wait_until(lambda: self.left("warm") == 0, 60)
            time.sleep(1)
            self.control.add_consumer("work")
            started = time.perf_counter()
            wait_until(lambda: self.left("work") == 0, 600, interval=0.005)
            rate = tasks / (time.perf_counter() - started)
            return published, rate

    def left(self, queue: str) -> int:
        """Return how many messages are waiting or unacknowledged."""
        waiting = self.client.llen(queue) + self.client.hlen("unacked")
        return int(waiting + self.client.zcard(f"{queue}\x06\x16edf"))

    def waiting(self, order: str, sizes: list[int]) -> dict[int, tuple[float, float]]:
        """Return seconds per claim and bytes per message, by the number waiting."""
        self.client.flushdb()
        memory = {}
        for size in sizes:
            before = self.client.info("memory")["used_memory"]
            run_script(FILL, self.env[order], f"full{size}", size)
            memory[size] = (self.client.info("memory")["used_memory"] - before) / size
        queues = ",".join(f"full{size}" for size in sizes)
        claims = min(CLAIMS, min(sizes) // 2)
        took = json.loads(run_script(CLAIM, self.env[order], queues, claims))
        return {size: (took[f"full{size}"], memory[size]) for size in sizes}


def main() -> None:
    """Run it and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--waiting", default="1000,1000000", metavar="N,N")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.waiting.split(",") if size]
    rates: dict[str, list[tuple[float, float]]] = {"fifo": [], "edf": []}
    with isolated(), RedisServer() as server, MongoServer() as mongo:
        bench = Bench(server.url, mongo.url)
        for pair in range(arguments.pairs):
            for order in ("fifo", "edf") if pair % 2 == 0 else ("edf", "fifo"):
                rates[order].append(bench.throughput(order, arguments.tasks))
            note(f"pair {pair + 1}/{arguments.pairs}")
        claims = {order: bench.waiting(order, sizes) for order in ("fifo", "edf")}
    results: dict[str, Any] = {}
    for index, what in enumerate(("publish", "worker")):
        fifo = [rate[index] for rate in rates["fifo"]]
        edf = [rate[index] for rate in rates["edf"]]
        results[what] = {
            "fifo": statistics.median(fifo),
            "edf": statistics.median(edf),
            "ratio": statistics.median(e / f for e, f in zip(edf, fifo, strict=True)),
        }
    for size in sizes:
        for index, what in enumerate(("claim_s", "bytes")):
            results.setdefault(what, {})[size] = {
                order: figures[size][index] for order, figures in claims.items()
            }
    edf_s = [results["claim_s"][size]["edf"] for size in sorted(sizes)]
    results["claim_growth"] = edf_s[-1] / edf_s[0]
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        show(results, sizes, arguments)


def show(results: dict[str, Any], sizes: list[int], arguments: argparse.Namespace) -> None:
    """Print the tables."""
    print_heading(
        ("celery", "kombu", "redis"),
        workload=f"{arguments.tasks} no-op tasks a run, {arguments.pairs} pairs, alternating",
        caveats="wall time, servers on the same cores; ratio = median of the pairs' ratios",
    )
    print(f"{'':<34}{'FIFO':>10}{'EDF':>10}{'ratio':>8}")
    for what in ("publish", "worker"):
        row = results[what]
        name = f"{what}, tasks/s"
        print(f"{name:<34}{row['fifo']:>10.0f}{row['edf']:>10.0f}{row['ratio']:>8.3f}")
    for size in sizes:
        row = results["claim_s"][size]
        name = f"claim and ack, {size:,} waiting, µs"
        fifo_us, edf_us = row["fifo"] * 1e6, row["edf"] * 1e6
        print(f"{name:<34}{fifo_us:>10.0f}{edf_us:>10.0f}{edf_us / fifo_us:>8.3f}")
        row = results["bytes"][size]
        name = f"bytes a message, {size:,} waiting"
        print(
            f"{name:<34}{row['fifo']:>10.0f}{row['edf']:>10.0f}{row['edf'] / row['fifo']:>8.3f}"
        )
    least, most = min(sizes), max(sizes)
    print(
        f"\nEDF, a claim with {most:,} waiting to one with {least:,}: "
        f"{results['claim_growth']:.3f}"
    )


if __name__ == "__main__":
    main()
