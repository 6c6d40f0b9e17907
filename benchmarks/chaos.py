"""Kill workers and cut connections at random moments, and count what is lost.

Tasks wait in deadline order on a Redis; workers take them, and are killed (SIGKILL:
the whole worker, its main process alone, or a pool child) as the work goes on; all
connections to Redis are cut (CLIENT KILL), those of the workers, of their companions
and of their pools. The moments are random shares of the work done, so that all of
them fall on a busy fleet. Each task writes a line to a journal on disk when it begins
and when it ends, which is what is believed; the ledger is asked besides.

With late acknowledgement every task must have ended, and nothing may be left in the
queue or unacknowledged. With early acknowledgement what ran when its worker was
killed is gone, and nothing else; each task has a verdict in the ledger. The status is
1 where that does not hold.

    python benchmarks/chaos.py [--tasks 10000] [--kills 50] [--cuts 20] [--early]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymongo
import redis
from heading import print_heading
from own_spool import own_spool
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from rts.testing import MongoServer, RedisServer, WorkerProcess, wait_until

HERE = Path(__file__).parent
QUEUE = "celery"
#: What waits: in the order, and what is claimed and not acknowledged.
SETS = (f"{QUEUE}\x06\x16edf", f"{QUEUE}\x06\x16edf:demoted", "unacked_index")
#: Seconds after which what a dead worker had claimed goes back, and between looks.
OPTIONS = {
    "visibility_timeout": 5,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


class Chaos:
    """A fleet of workers on private servers, and what befalls it."""

    def __init__(self, arguments: argparse.Namespace, server: str, mongo: str) -> None:
        self.arguments = arguments
        self.random = random.Random(arguments.seed)
        handle, self.journal = tempfile.mkstemp(prefix="rts-chaos-")
        os.close(handle)
        # The cuts hit this client too.
        self.client = redis.Redis.from_url(server, retry=Retry(ExponentialBackoff(), 5))
        self.ledger = pymongo.MongoClient(mongo).get_default_database()
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "CHAOS_BROKER": server,
            "CHAOS_MONGO": mongo,
            "CHAOS_JOURNAL": self.journal,
            "CHAOS_ACKS": "early" if arguments.early else "late",
            "CHAOS_ORDER": "" if arguments.order == "fifo" else "edf",
            "CHAOS_OPTIONS": json.dumps(OPTIONS),
        }
        self.workers = [
            WorkerProcess(
                "chaos_app",
                hostname=f"chaos{n}@%h",
                concurrency=arguments.concurrency,
                cwd=HERE,
                env=self.env,
                arguments=("--without-gossip", "--without-mingle"),
            )
            for n in range(arguments.workers)
        ]
        self.happened = {"worker": 0, "main process": 0, "child": 0, "cut": 0}

    def publish(self) -> dict[str, int]:
        """Publish the tasks; returns their numbers by id."""
        os.environ.update(self.env)
        sys.path.insert(0, str(HERE))
        from chaos_app import app, work

        ids = {}
        with app.producer_pool.acquire(block=True) as producer:
            for number in range(self.arguments.tasks):
                # Some are hopeless from the beginning, some become so.
                deadline = time.time() + self.random.uniform(-10, 600)
                result = work.apply_async(
                    (number, self.arguments.seconds),
                    headers={"sla_deadline": deadline},
                    producer=producer,
                )
                ids[result.id] = number
        app.pool.force_close_all()
        return ids

    def said(self, word: str) -> set[int]:
        """Return the numbers of the tasks that began, or ended."""
        lines = Path(self.journal).read_text().splitlines()
        return {int(line.split()[1]) for line in lines if line.split()[0] == word}

    def runs(self) -> int:
        """Return how many runs began."""
        return Path(self.journal).read_text().count("begin ")

    def waiting(self) -> int:
        """Return how many messages wait or are not acknowledged."""
        with self.client.pipeline() as pipe:
            for name in SETS:
                pipe.zcard(name)
            pipe.hlen("unacked").llen(QUEUE)
            return int(sum(pipe.execute()))

    def run(self) -> None:
        """Let the fleet work, with all that befalls it, until nothing waits."""
        arguments = self.arguments
        befalls = ["kill"] * arguments.kills + ["cut"] * arguments.cuts
        self.random.shuffle(befalls)
        moments = sorted(self.random.uniform(0.0, 0.97) for _ in befalls)
        with ThreadPoolExecutor(len(self.workers)) as starters:
            starting: list[Future[Any]] = [starters.submit(w.start) for w in self.workers]
            starting[0].result()
            for moment, what in zip(moments, befalls, strict=True):
                wait_until(
                    lambda moment=moment: len(self.said("end")) >= moment * arguments.tasks,
                    300,
                    interval=0.02,
                    message=f"{moment:.0%} of the tasks have ended",
                )
                time.sleep(self.random.uniform(0, 0.05))
                if what == "cut":
                    for kind in ("normal", "pubsub"):
                        self.client.client_kill_filter(_type=kind, skipme=True)
                    self.happened["cut"] += 1
                    continue
                ready = [n for n, done in enumerate(starting) if done.done()]
                while not ready:
                    time.sleep(0.02)
                    ready = [n for n, done in enumerate(starting) if done.done()]
                n = self.random.choice(ready)
                starting[n].result()
                if self.kill(self.workers[n]):
                    starting[n] = starters.submit(self.workers[n].start)
            for done in starting:
                done.result()
        wait_until(lambda: self.waiting() == 0, 300, interval=0.2, message="nothing waits")

    def kill(self, worker: WorkerProcess) -> bool:
        """Kill a worker, or a part of it; return whether it must be started again."""
        which = self.random.choices(("worker", "main process", "child"), (5, 3, 2))[0]
        if which == "child":
            children = worker.children()
            if children:
                self.happened["child"] += 1
                self.random.choice(children).send_signal(signal.SIGKILL)
                return False
            which = "worker"
        self.happened[which] += 1
        worker.kill(group=which == "worker")
        return True

    def verdicts(self, ids: dict[str, int]) -> dict[str, int]:
        """Wait for a verdict on each task; return how many there are of each state."""
        tasks, judged = self.ledger.tasks, {"sla_success": {"$ne": None}}
        try:
            wait_until(lambda: tasks.count_documents(judged) >= len(ids), 60, interval=0.5)
        except TimeoutError:
            pass  # the count says so
        try:
            # What killed runs leave is provisional: the ends of the next ones are on their
            # way. One that was killed as it ended has none.
            succeeded, ended = {"state": "SUCCESS"}, len(self.said("end"))
            wait_until(lambda: tasks.count_documents(succeeded) >= ended, 30, interval=0.5)
        except TimeoutError:
            pass
        states: dict[str, int] = {}
        for task in tasks.find(judged, {"state": 1}):
            if task["_id"] in ids:
                states[task["state"]] = states.get(task["state"], 0) + 1
        return states

    def close(self) -> None:
        """Stop everything."""
        for worker in self.workers:
            worker.stop()
        os.unlink(self.journal)
        self.client.close()
        self.ledger.client.close()


def chaos(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run it once; return what came of it."""
    with own_spool(), RedisServer() as server, MongoServer() as mongo:
        fleet = Chaos(arguments, server.url, mongo.url)
        try:
            ids = fleet.publish()
            started = time.monotonic()
            fleet.run()
            elapsed_s = time.monotonic() - started
            states = fleet.verdicts(ids)
            begun, ended = fleet.said("begin"), fleet.said("end")
            everything = set(ids.values())
            return {
                "tasks": len(ids),
                "happened": fleet.happened,
                "elapsed_s": elapsed_s,
                "runs": fleet.runs(),
                "ended": len(ended),
                "gone_while_running": len(begun - ended),
                "gone_before": len(everything - begun),
                "left": fleet.waiting(),
                "verdicts": states,
                "without_verdict": len(ids) - sum(states.values()),
            }
        finally:
            fleet.close()


def lost(found: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """Return what must not be."""
    wrong = []
    if found["left"]:
        wrong.append(f"{found['left']} messages are left")
    if found["without_verdict"]:
        wrong.append(f"{found['without_verdict']} tasks have no verdict")
    # A pool child takes a task on, which is when Celery acknowledges early, a moment
    # before it begins.
    gone = found["gone_while_running"] + found["gone_before"]
    if gone > (arguments.kills * arguments.concurrency if arguments.early else 0):
        wrong.append(f"{gone} tasks did not end")
    return wrong


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.01, help="that a task sleeps")
    parser.add_argument("--early", action="store_true", help="acknowledge before the run")
    parser.add_argument("--order", choices=("edf", "fifo"), default="edf")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = chaos(arguments)
    wrong = lost(found, arguments)
    if arguments.json:
        print(json.dumps({**found, "wrong": wrong}, indent=2))
    else:
        befell = ", ".join(f"{what} {n}" for what, n in found["happened"].items())
        print_heading(
            ("celery", "kombu", "redis"),
            workload=f"{found['tasks']} tasks of {arguments.seconds} s, acknowledged "
            f"{'early' if arguments.early else 'late'}, order {arguments.order}; "
            f"{arguments.workers} workers of {arguments.concurrency} slots; "
            f"seed {arguments.seed}",
            befell=f"{befell}; in {found['elapsed_s']:.0f} s",
        )
        for what in ("runs", "ended", "gone_while_running", "gone_before", "left"):
            print(f"{what.replace('_', ' '):<22}{found[what]:>8}")
        states = ", ".join(f"{state} {n}" for state, n in sorted(found["verdicts"].items()))
        print(f"{'verdicts':<22}{states}")
        print(f"{'without verdict':<22}{found['without_verdict']:>8}")
    for problem in wrong:
        print(f"Problem: {problem}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
