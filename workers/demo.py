"""A demonstration on embedded servers: ``make demo``, ``make demo KEEP=1``.

Starts a real Redis, a real MongoDB and a real prefork worker, publishes tasks of
all six types (and some that go wrong), and shows what rts has learned and recorded.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rts.testing import MongoServer, RedisServer, ServerNotFound, WorkerProcess, wait_until

ROOT = Path(__file__).parent.parent

#: Rounds of the mix; each publishes ten typed tasks.
ROUNDS = 13

#: The overload at the end: tasks, and slots of the worker.
OVERLOAD_TASKS, SLOTS = 500, 16

#: Whether the demo has been interrupted.
_interrupted = False


def interrupt(*_: Any) -> None:
    """Stop the demo. Runs when a signal arrives, wherever the demo is: an exception raised
    inside a destructor is lost, so a flag is set as well. From here on destructors fail
    silently: theirs may be an object whose construction the exception cuts off.
    """
    global _interrupted
    _interrupted = True
    sys.unraisablehook = lambda _: None
    raise KeyboardInterrupt


def check_interrupted() -> None:
    """Raise if the demo has been interrupted.

    Raises:
        KeyboardInterrupt: it has.
    """
    if _interrupted:
        raise KeyboardInterrupt


def say(text: str = "") -> None:
    """Print a line and flush it, for pipes."""
    check_interrupted()
    print(text, flush=True)


def command(*arguments: str) -> str:
    """Return what ``celery -A workers.app rts ARGUMENTS`` prints."""
    finished = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers.app", "rts", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return (finished.stdout + finished.stderr).rstrip()


def publish() -> int:
    """Publish the demo's tasks; return how many there are."""
    from workers.producer import MIX
    from workers.text import fingerprint
    from workers.trouble import broken, flaky, killed

    number = 0
    for round_ in range(ROUNDS):
        for task in MIX:
            task()
        number += len(MIX)
        if round_ == 3:
            for task in (flaky, broken, killed):
                task.delay()
            fingerprint.apply_async(countdown=3, headers={"task_type": "cpu-light"})
            number += 4
    return number


def follow(tasks: int, ledger: Any) -> None:
    """Show progress until every task has a verdict in the ledger."""
    started = time.monotonic()
    live = sys.stdout.isatty()
    shown = -1

    def all_there() -> bool:
        nonlocal shown
        check_interrupted()
        count: int = ledger.tasks.count_documents({"completed_at": {"$ne": None}})
        filled = 40 * count // tasks
        if live or count // 20 != shown // 20 or count >= tasks:
            bar = "█" * filled + "░" * (40 - filled)
            line = f"{bar} {count}/{tasks} verdicts, {time.monotonic() - started:.0f} s"
            print(f"\r{line}" if live else line, end="" if live else "\n", flush=True)
            shown = count
        return count >= tasks

    wait_until(all_there, timeout=600, interval=0.25, message="a verdict for each task")
    if live:
        say()


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description="rts on embedded servers")
    parser.add_argument("--keep", action="store_true", help="leave the servers up at the end")
    keep = parser.parse_args().keep
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        with ExitStack() as stack:
            run(stack, keep)
    except KeyboardInterrupt:
        print("\nstopped; everything that was started is gone", flush=True)
        return 130
    except ServerNotFound as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def run(stack: ExitStack, keep: bool) -> None:
    """Start and show everything. *stack* stops what was started."""
    import pymongo

    redis = stack.enter_context(RedisServer())
    mongo = stack.enter_context(MongoServer())
    os.environ["CELERY_BROKER_URL"] = os.environ["CELERY_RESULT_BACKEND"] = redis.url
    os.environ["RTS_MONGO_URL"] = mongo.url
    os.environ["RTS_SPOOL_DIR"] = spool = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="rts-spool-")
    )
    sys.path.insert(0, str(ROOT))
    say(f"redis-server  {redis.url}   pid {redis.pid}")
    say(f"mongod        {mongo.url}   pid {mongo.pid}")
    worker = stack.enter_context(WorkerProcess("workers.app", concurrency=2, cwd=ROOT))
    say(f"celery worker prefork, 2 processes          pid {worker.pid}")
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo.url, tz_aware=True)
    stack.callback(client.close)
    ledger = client.get_default_database()

    say("\n— tau before: what a new installation assumes —\n")
    say(command("tau"))
    say("\n— publishing: apply_async(headers={'task_type': …}), resources, eta, trouble —\n")
    tasks = publish()
    say(f"published {tasks} tasks")
    follow(tasks, ledger)

    say("\n— tau after: learned from actual runtimes, in Redis —\n")
    say(command("tau"))
    say("\n— the report: deadlines met, from the ledger in MongoDB —\n")
    say(command("report", "--since", "1h"))
    say("\n— one task in the ledger: its process was killed, and still it has a verdict —\n")
    task = ledger.tasks.find_one({"name": "workers.trouble.killed"})
    if task is not None:
        say(command("show", str(task["_id"])))
    overload()
    if keep:
        linger(redis, mongo, spool)


def overload() -> None:
    """Show the same overload twice: in Celery's order, and in deadline order."""
    from rts.simulation.traces import at_load, six_types
    from rts.testing.replay import replay, share

    jobs = at_load(six_types(OVERLOAD_TASKS, seed=1), SLOTS, 1.2)
    say(
        f"\n— overload: {OVERLOAD_TASKS} tasks of the six types, 100 times as fast, need 1.2 "
        f"times what {SLOTS} slots give —\n"
    )
    for name, scheduler in (("stock order (FIFO)", None), ('rts_scheduler = "edf"', "edf")):
        replayed = replay(
            jobs, SLOTS, scheduler, progress=lambda done, total: check_interrupted()
        )
        met = share(replayed)
        say(f"{name:<24}{'█' * round(40 * met):<40} {met:6.1%} of deadlines met")


def linger(redis: RedisServer, mongo: MongoServer, spool: str) -> None:
    """Print how to look around, and wait for Ctrl-C."""
    python = os.path.relpath(sys.executable)
    say("\n— the servers and the worker stay up; look around from another terminal —\n")
    say(f"  export CELERY_BROKER_URL={redis.url} RTS_MONGO_URL={mongo.url}")
    say(f"  export RTS_SPOOL_DIR={spool}")
    say(f"  {python} -m celery -A workers.app rts status")
    say(f"  {python} -m celery -A workers.app rts report --by name")
    say(f"  {python} -m workers.producer --rate 5          # more tasks, until Ctrl-C")
    say(f"  {python} -m celery -A workers.app rts watch")
    say(f"  {python} -m celery -A workers.app flower       # http://localhost:5555/rts")
    say("\nCtrl-C ends them.")
    signal.pause()


if __name__ == "__main__":
    sys.exit(main())
