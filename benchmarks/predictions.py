"""Accuracy of predictions with real workers under load.

    python benchmarks/predictions.py [--scheduler fifo|edf|both] [--rho R] [--slots N]
        [--queues N] [--workers N] [--prefetch N] [--etas] [--burst]

Publishes the six types (or a trace) at the load ρ, sped up; each task sleeps. Meanwhile
rts.predict_new is called just before some tasks are published, and rts.predict for the last
published task and for a random waiting one. The predictions are then compared with the
ledger. Servers and workers are real, embedded and private.

With --queues the worker consumes several queues, each with types of its own. With --workers
several share the slots, and with --prefetch each prefetches so many tasks per slot
(worker_prefetch_multiplier). With --etas a fifth of the tasks have an eta, up to eight mean
runtimes ahead. With --burst the second half is published at once after the first has ended.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pymongo
import redis
from celery import Celery
from heading import print_heading
from isolation import isolated
from replay_trace import workload

import rts
from rts.settings import Settings
from rts.simulation.traces import Job
from rts.testing import MongoServer, RedisServer, WorkerProcess, wait_until
from rts.testing.replay import APP, environment, sped_up

#: Share of the tasks before the first prediction, or before the burst: taus are learned from
#: them.
WARM_UP, BEFORE_BURST = 0.2, 0.5
#: Every n-th task is predicted before it is published.
ASKED_ONE_OF = 4
#: With --etas: every n-th task has one, at most so many mean runtimes ahead.
ETA_ONE_OF, MOST_AHEAD = 5, 8.0
#: Seconds between two rounds of predictions.
EVERY_S = 0.15
#: Tasks to try per round to find one that still waits.
TRIES = 5
#: Shorter waits count as none and have no relative error, seconds.
LEAST_WAIT_S = 0.2
#: Tolerance for instants from two processes, seconds.
CLOCK_S = 0.02


class Asked(NamedTuple):
    """A prediction that was asked for."""

    #: ``new``: before its publication; ``published``: just after; ``waiting``: later.
    kind: str
    task_id: str
    at: float
    answer: rts.Prediction
    cost_s: float


class Run:
    """Jobs that are published for the workers of *queues*, while others ask about them."""

    def __init__(
        self,
        jobs: list[Job],
        arguments: argparse.Namespace,
        app: Celery,
        ledger: Any,
        queues: list[str],
    ) -> None:
        self._jobs = jobs
        self._arguments = arguments
        self._app = app
        self._ledger = ledger
        types = sorted({job.task_type for job in jobs})
        self._queue_of = {kind: queues[n % len(queues)] for n, kind in enumerate(types)}
        #: Number of the first job that is asked about, or that the burst begins with.
        self._first = int((BEFORE_BURST if arguments.burst else WARM_UP) * len(jobs))
        #: Mean runtime of a job, seconds; and how long the slots take for all of them.
        self._mean_s = sum(job.runtime_s for job in jobs) / len(jobs) / arguments.speedup
        self._work_s = self._mean_s * len(jobs) / arguments.slots
        #: Ids of the tasks published so far.
        self._ids: list[str] = []
        self._over = threading.Event()
        self.asked: list[Asked] = []

    def run(self) -> dict[str, dict[str, Any]]:
        """Publish and ask until all tasks have ended; return those of the ledger by id."""
        asking = threading.Thread(target=self._keep_asking)
        asking.start()
        try:
            self._publish()
            if self._arguments.burst:
                for task_id in self._ids[self._first :: ASKED_ONE_OF]:
                    self._question("published", task_id)
                self._wait_for(len(self._jobs))
        finally:
            self._over.set()
            asking.join()
        self._wait_for(len(self._jobs))
        return {task["_id"]: task for task in self._ledger.tasks.find({})}

    def _publish(self) -> None:
        burst = self._arguments.burst
        begun = time.time() + 0.5
        for number, job in enumerate(self._jobs):
            if burst and number == self._first:
                self._wait_for(self._first)
            pause_s = begun + job.arrival_s / self._arguments.speedup - time.time()
            if pause_s > 0 and not (burst and number >= self._first):
                time.sleep(pause_s)
            self._publish_one(number, job)

    def _publish_one(self, number: int, job: Job) -> None:
        """Publish a job; before that, predict some."""
        headers, queue = {"task_type": job.task_type}, self._queue_of[job.task_type]
        eta = None
        if self._arguments.etas and number % ETA_ONE_OF == 0:
            ahead_s = random.random() * MOST_AHEAD * self._mean_s
            eta = datetime.now(timezone.utc) + timedelta(seconds=ahead_s)
        answer, before = None, time.time()
        if number > self._first and number % ASKED_ONE_OF == 0:
            due = headers if eta is None else {**headers, "eta": eta.isoformat()}
            answer = rts.predict_new(job.name, headers=due, queue=queue, app=self._app)
        cost_s = time.time() - before
        runtime_s = job.runtime_s / self._arguments.speedup
        task = self._app.send_task(
            job.name, (runtime_s,), headers=headers, queue=queue, eta=eta
        )
        self._ids.append(task.id)
        if answer is not None:
            self.asked.append(Asked("new", task.id, before, answer, cost_s))

    def _keep_asking(self) -> None:
        while not self._over.wait(EVERY_S):
            if len(self._ids) > self._first:
                if not self._arguments.burst:
                    self._question("published", self._ids[-1])
                for task_id in random.sample(self._ids, min(TRIES, len(self._ids))):
                    if self._question("waiting", task_id):
                        break

    def _question(self, kind: str, task_id: str) -> bool:
        """Predict a task; return whether it still waits."""
        before = time.time()
        answer = rts.predict(task_id, app=self._app)
        if answer is None:
            return False
        self.asked.append(Asked(kind, task_id, before, answer, time.time() - before))
        return answer.start > before

    def _wait_for(self, tasks: int) -> None:
        ended = {"completed_at": {"$ne": None}}
        wait_until(
            lambda: self._ledger.tasks.count_documents(ended) >= tasks,
            120 + 2 * self._work_s,
            interval=0.25,
        )


def ask(
    jobs: list[Job], scheduler: str | None, arguments: argparse.Namespace
) -> tuple[list[Asked], dict[str, dict[str, Any]]]:
    """Run *jobs*; return the predictions, and the ledger's tasks by id."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        mongo = stack.enter_context(MongoServer())
        stack.enter_context(isolated())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        conf = {**sped_up(Settings(), arguments.speedup), "rts_scheduler": scheduler}
        conf.update(rts_redis_url=server.url, rts_mongo_url=mongo.url)
        spec = {"broker": server.url, "conf": conf, "names": sorted({job.name for job in jobs})}
        env = environment(spec, Path(folder, "spec.json"))
        app = Celery("predictions", broker=server.url, set_as_current=False)
        app.conf.update(task_ignore_result=True, **conf)
        rts.install(app)
        more = [f"queue-{n}" for n in range(2, arguments.queues + 1)]
        queues = [app.conf.task_default_queue, *more]
        prefetch = ("--prefetch-multiplier", str(arguments.prefetch))
        for number in range(arguments.workers):
            worker = WorkerProcess(
                APP,
                concurrency=arguments.slots // arguments.workers,
                hostname=f"worker-{number}@test",
                queues=queues,
                arguments=("--without-mingle", *prefetch),
                env=env,
                loglevel="WARNING",
            )
            stack.enter_context(worker)
        state = stack.enter_context(redis.Redis.from_url(server.url))
        wait_until(
            lambda: state.hlen(Settings().keys.workers) == arguments.workers,
            message="the heartbeat of each worker, without which nothing is predicted",
        )
        client: Any = stack.enter_context(pymongo.MongoClient(mongo.url, tz_aware=True))
        run = Run(jobs, arguments, app, client.get_default_database(), queues)
        truth = run.run()
        rts.uninstall(app)
        app.close()
        return run.asked, truth


def judge(asked: list[Asked], truth: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracy of predictions, for tasks that had not started."""
    errors_s, waits_s, of_wait, of_rest = [], [], [], []
    starts, finishes, on_time, met = [], [], [], []
    for question in asked:
        task, found = truth[question.task_id], question.answer
        arrival, start, finish = (
            task[key].timestamp() for key in ("arrival", "started_at", "completed_at")
        )
        if start < question.at:
            continue
        error_s, wait_s = abs(found.start - start), start - arrival
        errors_s.append(error_s)
        waits_s.append(wait_s)
        if wait_s >= LEAST_WAIT_S:
            of_wait.append(error_s / wait_s)
            of_rest.append(error_s / max(1e-3, start - question.at))
        starts.append(found.start_low - CLOCK_S <= start <= found.start_high + CLOCK_S)
        finishes.append(found.finish_low - CLOCK_S <= finish <= found.finish_high + CLOCK_S)
        on_time.append(found.on_time)
        met.append(bool(task["sla_success"]))
    return {
        "asked": len(starts),
        "waited": len(of_wait),
        "error_s": statistics.median(errors_s) if errors_s else None,
        "mean_wait_s": statistics.mean(waits_s) if waits_s else None,
        "error_of_wait": statistics.median(of_wait) if of_wait else None,
        "error_of_rest": statistics.median(of_rest) if of_rest else None,
        "start_within": statistics.mean(starts) if starts else None,
        "finish_within": statistics.mean(finishes) if finishes else None,
        "on_time": statistics.mean(on_time) if on_time else None,
        "met": statistics.mean(met) if met else None,
    }


def main() -> None:
    """Run, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheduler", choices=("fifo", "edf", "both"), default="both")
    parser.add_argument("--rho", type=float, default=1.1)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--speedup", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="which share the slots")
    parser.add_argument("--prefetch", type=int, default=1, help="tasks ahead, a slot")
    parser.add_argument("--etas", action="store_true", help="a fifth of the tasks has one")
    parser.add_argument("--trace", default="six", metavar="FILE")
    parser.add_argument(
        "--burst", action="store_true", help="publish the second half at once, after the first"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    jobs = workload(arguments)
    orders = ("fifo", "edf") if arguments.scheduler == "both" else (arguments.scheduler,)
    figures: dict[str, dict[str, Any]] = {}
    for order in orders:
        scheduler = "edf" if order == "edf" else None
        asked, truth = ask(jobs, scheduler, arguments)
        figures[order] = {
            kind: judge([a for a in asked if a.kind == kind], truth)
            for kind in ("new", "published", "waiting")
        }
        figures[order]["all"] = judge(asked, truth)
        figures[order]["cost_s"] = statistics.median(a.cost_s for a in asked)
    if arguments.json:
        print(json.dumps({**vars(arguments), "figures": figures}, indent=2))
    else:
        show(figures, jobs, arguments)


def show(
    figures: dict[str, dict[str, Any]], jobs: list[Job], arguments: argparse.Namespace
) -> None:
    """Print the table."""
    mean_s = sum(job.runtime_s for job in jobs) / len(jobs) / arguments.speedup
    print_heading(
        ("celery", "kombu", "redis"),
        workload=f"{arguments.trace}, {len(jobs)} tasks, rho {arguments.rho}"
        f"{', the second half at once' if arguments.burst else ''}, "
        f"{f'{arguments.queues} queues, ' if arguments.queues > 1 else ''}"
        f"{'a fifth with an eta, ' if arguments.etas else ''}"
        f"{arguments.slots} slots, "
        f"{f'{arguments.workers} workers, ' if arguments.workers > 1 else ''}"
        f"{f'{arguments.prefetch} ahead a slot, ' if arguments.prefetch != 1 else ''}"
        f"prefork, speed-up {arguments.speedup:g}, seed {arguments.seed}",
        caveats=f"tasks sleep, {mean_s:.2f} s on average; one run; questions overlap",
    )
    head = f"{'order':<7}{'asked':<11}{'n':>5}{'wait, s':>9}{'error, s':>10}{'% of wait':>11}"
    print(f"{head}{'% of rest':>11}{'start in, %':>13}{'finish in, %':>14}", end="")
    print(f"{'on time, %':>12}{'met, %':>8}")
    for order, kinds in figures.items():
        for kind in ("new", "published", "waiting", "all"):
            row = kinds[kind]
            seconds = ("mean_wait_s", "error_s")
            shares = ("error_of_wait", "error_of_rest", "start_within", "finish_within")
            cells = ["-" if row[key] is None else f"{row[key]:.1f}" for key in seconds]
            cells += [
                "-" if row[key] is None else f"{100 * row[key]:.0f}"
                for key in (*shares, "on_time", "met")
            ]
            widths = (9, 10, 11, 11, 13, 14, 12, 8)
            text = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
            print(f"{order:<7}{kind:<11}{row['asked']:>5}{text}")
        print(f"{order:<7}a question took {1000 * kinds['cost_s']:.0f} ms (median)")


if __name__ == "__main__":
    main()
