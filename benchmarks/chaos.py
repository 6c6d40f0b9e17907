"""Kill workers and cut connections at random moments, and count lost tasks.

Workers process tasks in deadline order from a Redis. Meanwhile they are killed (SIGKILL to
the whole worker, its main process alone, or a pool child), and all connections to Redis
are cut (CLIENT KILL): those of the workers, their pools and their companions. The moments
are random shares of the work done, so that the fleet is busy at all of them. Each task
writes a line to a journal on disk when it starts and when it ends, which counts; the
ledger is compared with it.

With late acknowledgement every task must end, and nothing may be left in the queue or
unacknowledged. With early acknowledgement only tasks that ran on a killed worker may be
lost. Either way each task gets a verdict in the ledger. Exits with 1 if that does not hold.

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
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pymongo
import redis
from heading import print_heading
from isolation import environment, isolated
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from rts.testing import MongoServer, RedisServer, WorkerProcess, wait_until

HERE = Path(__file__).parent
QUEUE = "celery"
#: Sorted sets of the waiting and of the unacknowledged messages.
SETS = (f"{QUEUE}\x06\x16edf", f"{QUEUE}\x06\x16edf:demoted", "unacked_index")
#: Messages of dead workers are restored within seconds.
OPTIONS = {
    "visibility_timeout": 5,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


class Chaos:
    """A fleet of workers on private servers, and the faults injected into it."""

    def __init__(self, arguments: argparse.Namespace, server: str, mongo: str) -> None:
        self.arguments = arguments
        self.random = random.Random(arguments.seed)
        handle, self.journal = tempfile.mkstemp(prefix="rts-chaos-")
        os.close(handle)
        # The cuts affect this client, too.
        self.client = redis.Redis.from_url(server, retry=Retry(ExponentialBackoff(), 5))
        self.ledger = pymongo.MongoClient(mongo).get_default_database()
        self.env = environment(
            CHAOS_BROKER=server,
            CHAOS_MONGO=mongo,
            CHAOS_JOURNAL=self.journal,
            CHAOS_ACKS="early" if arguments.early else "late",
            CHAOS_OPTIONS=json.dumps(OPTIONS),
        )
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
        #: Injected faults by kind.
        self.happened = {"worker": 0, "main process": 0, "child": 0, "cut": 0}

    def publish(self) -> dict[str, int]:
        """Publish the tasks; return their numbers by id."""
        os.environ.update(self.env)
        sys.path.insert(0, str(HERE))
        from chaos_app import app, work

        ids = {}
        with app.producer_pool.acquire(block=True) as producer:
            for number in range(self.arguments.tasks):
                # Some are hopeless from the start, some become so.
                deadline = time.time() + self.random.uniform(-10, 600)
                result = work.apply_async(
                    (number, self.arguments.seconds),
                    headers={"sla_deadline": deadline},
                    producer=producer,
                )
                ids[result.id] = number
        app.pool.force_close_all()
        return ids

    def journaled(self, event: str) -> set[int]:
        """Return the numbers of the tasks with this *event* ("begin" or "end")."""
        lines = Path(self.journal).read_text().splitlines()
        return {int(line.split()[1]) for line in lines if line.split()[0] == event}

    def runs(self) -> int:
        """Return how many runs have started."""
        return Path(self.journal).read_text().count("begin ")

    def waiting(self) -> int:
        """Return how many messages are waiting or unacknowledged."""
        with self.client.pipeline() as pipe:
            for name in SETS:
                pipe.zcard(name)
            pipe.hlen("unacked").llen(QUEUE)
            return int(sum(pipe.execute()))

    def run(self) -> None:
        """Run the fleet and inject the faults until no message is left."""
        arguments = self.arguments
        faults = ["kill"] * arguments.kills + ["cut"] * arguments.cuts
        self.random.shuffle(faults)
        moments = sorted(self.random.uniform(0.0, 0.97) for _ in faults)
        with ThreadPoolExecutor(len(self.workers)) as starters:
            starting: list[Future[Any]] = [starters.submit(w.start) for w in self.workers]
            starting[0].result()
            for moment, fault in zip(moments, faults, strict=True):
                wait_until(
                    lambda moment=moment: (
                        len(self.journaled("end")) >= moment * arguments.tasks
                    ),
                    300,
                    interval=0.02,
                    message=f"{moment:.0%} of the tasks have ended",
                )
                time.sleep(self.random.uniform(0, 0.05))
                if fault == "cut":
                    for kind in ("normal", "pubsub"):
                        self.client.client_kill_filter(_type=kind, skipme=True)
                    self.happened["cut"] += 1
                    continue
                wait(starting, return_when=FIRST_COMPLETED)
                n = self.random.choice([n for n, done in enumerate(starting) if done.done()])
                starting[n].result()
                if self.kill(self.workers[n]):
                    starting[n] = starters.submit(self.workers[n].start)
            for done in starting:
                done.result()
        wait_until(lambda: self.waiting() == 0, 300, interval=0.2, message="nothing waits")

    def kill(self, worker: WorkerProcess) -> bool:
        """Kill a worker or one of its processes; return whether it has to be restarted."""
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
        """Wait for the verdict on each task; return their number by state."""
        tasks, judged = self.ledger.tasks, {"sla_success": {"$ne": None}}
        try:
            wait_until(lambda: tasks.count_documents(judged) >= len(ids), 60, interval=0.5)
        except TimeoutError:
            pass  # reported as "without_verdict"
        try:
            # The verdicts of killed runs are provisional: wait for the ends of their next
            # runs. A run that was killed as it ended has no end in the ledger.
            succeeded, ended = {"state": "SUCCESS"}, len(self.journaled("end"))
            wait_until(lambda: tasks.count_documents(succeeded) >= ended, 30, interval=0.5)
        except TimeoutError:
            pass
        found = tasks.find(judged, {"state": 1})
        return Counter(task["state"] for task in found if task["_id"] in ids)

    def close(self) -> None:
        """Stop everything."""
        for worker in self.workers:
            worker.stop()
        os.unlink(self.journal)
        self.client.close()
        self.ledger.client.close()


def chaos(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run it once and return the figures."""
    with isolated(), RedisServer() as server, MongoServer() as mongo:
        fleet = Chaos(arguments, server.url, mongo.url)
        try:
            ids = fleet.publish()
            started = time.monotonic()
            fleet.run()
            elapsed_s = time.monotonic() - started
            states = fleet.verdicts(ids)
            begun, ended = fleet.journaled("begin"), fleet.journaled("end")
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


def problems(found: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """Return descriptions of the violated guarantees."""
    wrong = []
    if found["left"]:
        wrong.append(f"{found['left']} messages are left")
    if found["without_verdict"]:
        wrong.append(f"{found['without_verdict']} tasks have no verdict")
    # Celery acknowledges early when a pool child accepts the task, just before it starts.
    gone = found["gone_while_running"] + found["gone_before"]
    if gone > (arguments.kills * arguments.concurrency if arguments.early else 0):
        wrong.append(f"{gone} tasks did not end")
    return wrong


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.01, help="duration of a task")
    parser.add_argument("--early", action="store_true", help="acknowledge before the run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = chaos(arguments)
    wrong = problems(found, arguments)
    if arguments.json:
        print(json.dumps({**found, "wrong": wrong}, indent=2))
    else:
        faults = ", ".join(f"{what} {n}" for what, n in found["happened"].items())
        print_heading(
            ("celery", "kombu", "redis"),
            workload=f"{found['tasks']} tasks of {arguments.seconds} s, acknowledged "
            f"{'early' if arguments.early else 'late'}; "
            f"{arguments.workers} workers of {arguments.concurrency} slots; "
            f"seed {arguments.seed}",
            faults=f"{faults}; in {found['elapsed_s']:.0f} s",
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
