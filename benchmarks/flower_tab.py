"""Response times of the pages of Flower's RTS tab, and Flower's memory over time.

- pages: with many runs in the ledger, all within 24 hours, and many waiting tasks, each
  page and its API call is requested repeatedly, slightly slower than a browser would;
  median and slowest response, and the first one after the start, in which Flower reports
  that it is still counting;
- memory: resident size of the Flower process while an hour's traffic (each page requested
  every five seconds) is compressed into five minutes.

Servers are embedded and private; time is wall time.

    python benchmarks/flower_tab.py [--stored 1000000] [--waiting 100000] [--memory-s 300]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from heading import note, print_heading
from isolation import isolated, noop_environment, run_script
from ledger import DAY_S, Stored, enlarge

from rts.testing import MongoServer, RedisServer, wait_until
from rts.testing.processes import OwnedProcess

PAGES = ("overview", "types", "workers", "queues", "misses")
PATHS = tuple(
    path
    for page in PAGES
    for path in ("/rts" if page == "overview" else f"/rts/{page}", f"/api/rts/{page}")
)
#: Seconds between two rounds of timed requests.
PAUSE_S = 2.0
#: Publishes tasks in deadline order, which no worker takes.
PUBLISH = """
import sys, time
from noop_app import app
with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
    for i in range(int(sys.argv[1])):
        due = {"sla_deadline": time.time() + i % 3600}
        app.send_task(f"shop.tasks.task_{i % 20}", producer=producer, headers=due)
"""


def request(base: str, path: str) -> tuple[float, int]:
    """Return the seconds that a response took, and its size in bytes."""
    begin = time.perf_counter()
    with urllib.request.urlopen(base + path, timeout=60) as response:
        size = len(response.read())
    return time.perf_counter() - begin, size


def counting(base: str) -> list[str]:
    """Return the pages that are still being counted."""
    found = []
    for page in PAGES:
        with urllib.request.urlopen(f"{base}/api/rts/{page}", timeout=60) as answer:
            if json.load(answer)["counting"]:
                found.append(page)
    return found


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stored", type=int, default=1_000_000, help="runs in the ledger")
    parser.add_argument("--waiting", type=int, default=100_000, help="tasks in the queue")
    parser.add_argument("--rounds", type=int, default=15, help="of requests")
    parser.add_argument("--memory-s", type=float, default=300.0, help="0: skip")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        mongo = stack.enter_context(MongoServer())
        stack.enter_context(isolated())
        enlarge(mongo.url)
        note(f"storing {arguments.stored} runs")
        ledger = Stored(mongo.url, rounds=1)
        ledger.fill(arguments.stored, DAY_S, 0.0, seed=3)
        ledger.ledger.close()
        note(f"publishing {arguments.waiting} tasks")
        settings = {"rts_mongo_url": mongo.url, "rts_scheduler": "edf"}
        env = noop_environment(server.url, settings)
        run_script(PUBLISH, env, arguments.waiting)
        base, process = start(stack, env)
        results = pages(base, arguments.rounds)
        if arguments.memory_s:
            results["memory"] = memory(base, process, arguments.memory_s)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        show(results, arguments)


def start(stack: ExitStack, env: dict[str, str]) -> tuple[str, psutil.Process]:
    """Start Flower; return its address and its process."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**env, "FLOWER_UNAUTHENTICATED_API": "true"}
    command = [sys.executable, "-m", "celery", "-A", "noop_app", "flower", f"--port={port}"]
    process = OwnedProcess(command, folder / "log", env=env, cwd=folder)
    stack.callback(process.stop)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, 60)
    return f"http://127.0.0.1:{port}", psutil.Process(process.pid)


def pages(base: str, rounds: int) -> dict[str, Any]:
    """Time the pages; return the figures by path."""
    note("first responses")
    first = {path: request(base, path)[0] for path in PATHS}
    begin = time.perf_counter()
    wait_until(lambda: not counting(base), 600, interval=1.0)
    counted_s = time.perf_counter() - begin
    note(f"counted after {counted_s:.0f} s; {rounds} rounds")
    times: dict[str, list[float]] = {path: [] for path in PATHS}
    sizes: dict[str, int] = {}
    for _ in range(rounds):
        for path in PATHS:
            seconds, sizes[path] = request(base, path)
            times[path].append(seconds)
        time.sleep(PAUSE_S)
    return {
        "counted_s": counted_s,
        "pages": {
            path: {
                "first_s": first[path],
                "median_s": statistics.median(found),
                "slowest_s": max(found),
                "bytes": sizes[path],
            }
            for path, found in times.items()
        },
    }


def memory(base: str, process: psutil.Process, seconds: float) -> dict[str, Any]:
    """Send the requests of an hour within *seconds*; return sizes of the process in MB."""
    rounds = 3600 / 5
    note(f"{rounds:.0f} requests to each of {len(PAGES)} pages in {seconds:.0f} s")
    begin, done, sizes = time.monotonic(), 0, []
    while time.monotonic() - begin < seconds:
        for path in PATHS[::2]:
            request(base, path)
        done += 1
        sizes.append(process.memory_info().rss)
        ahead = begin + done * seconds / rounds - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    fifth = max(1, len(sizes) // 5)
    return {
        "looks": done,
        "after_a_fifth_mb": statistics.median(sizes[fifth : 2 * fifth]) / 1e6,
        "at_the_end_mb": statistics.median(sizes[-fifth:]) / 1e6,
    }


def show(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the tables."""
    print_heading(
        ("flower", "tornado", "pymongo"),
        workload=f"{arguments.stored:,} runs within 24 h, {arguments.waiting:,} tasks that "
        f"wait in deadline order; one viewer, {arguments.rounds} rounds",
        caveats=f"one machine for all; counted for {results['counted_s']:.0f} s after the "
        "first look",
    )
    print(f"{'':<22}{'first':>10}{'median':>10}{'slowest':>10}{'kB':>8}")
    for path, r in results["pages"].items():
        cells = "".join(
            f"{r[key] * 1000:>7.0f} ms" for key in ("first_s", "median_s", "slowest_s")
        )
        print(f"{path:<22}{cells}{r['bytes'] / 1000:>8.0f}")
    if "memory" in results:
        m = results["memory"]
        print(
            f"\nmemory     {m['after_a_fifth_mb']:.1f} MB after a fifth of {m['looks']} looks "
            f"at each page, {m['at_the_end_mb']:.1f} MB at the end"
        )


if __name__ == "__main__":
    main()
