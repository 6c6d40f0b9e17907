"""Takes the pictures of Flower's RTS tab in docs/images, from a real run of the example app.

    .venv/bin/python docs/make_screenshots.py [--seconds 340]

A worker with two slots gets tasks of the six types. Two types are to miss: "mixed" comes
in bursts that the slots cannot serve at once, and one in four of "cpu-heavy" has twenty
times the work of the others, which no tau can tell. Needs a Chromium on PATH.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from rts.testing import MongoServer, RedisServer, WorkerProcess, wait_until
from rts.testing.processes import OwnedProcess

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
SLOTS = 2
#: Seconds until the first burst: until the taus are learned. Tasks of a burst.
WARM_UP_S, BURST = 100.0, 10

#: Name of the picture, path, theme, width and height in pixels (0: the whole page).
PICTURES = (
    ("flower-overview.png", "/rts?since=4m", "light", 1120, 1130),
    ("flower-overview-dark.png", "/rts?since=4m", "dark", 1120, 1130),
    ("flower-types.png", "/rts/types?since=4m&type=cpu-heavy", "light", 1160, 0),
    ("flower-workers.png", "/rts/workers?since=4m", "light", 1160, 0),
    ("flower-task.png", "", "light", 1160, 0),
)

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def publish(seconds: float) -> None:
    """Publish for so many seconds, with a burst every forty once the taus are learned."""
    from workers.numeric import classify, train
    from workers.text import compress, fingerprint, index, survey

    rng = random.Random(1)
    steady = (
        lambda: fingerprint.apply_async(kwargs={"files": 30}, ignore_result=True),
        lambda: index.apply_async(kwargs={"files": 20}, ignore_result=True),
        lambda: classify.apply_async(kwargs={"rounds": 10}, ignore_result=True),
        lambda: train.apply_async(kwargs={"epochs": 5}, ignore_result=True),
        lambda: survey.apply_async(kwargs={"files": 15}, ignore_result=True),
        lambda: compress.apply_async(
            kwargs={"files": 60 if rng.random() < 1 / 4 else 3}, ignore_result=True
        ),
    )
    end, burst_at = time.monotonic() + seconds, time.monotonic() + WARM_UP_S
    while time.monotonic() < end:
        time.sleep(rng.expovariate(1.2))
        rng.choice(steady)()
        if time.monotonic() >= burst_at:
            burst_at += 40
            for _ in range(BURST):
                survey.apply_async(kwargs={"files": 15}, ignore_result=True)


@contextmanager
def flower() -> Iterator[str]:
    """Run Flower; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "flower"]
        command += [f"--port={port}", "--address=127.0.0.1", f"--db={folder}/db"]
        process = OwnedProcess(command, Path(folder, "log"), cwd=ROOT)
        try:
            wait_until(lambda: _listens(port), 60)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def take(base: str, task_id: str) -> None:
    """Take all pictures."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        for name, address, theme, width, height in PICTURES:
            context = browser.new_context(
                color_scheme=theme, viewport={"width": width, "height": height or 900}
            )
            page = context.new_page()
            for _ in range(3):  # what takes a while to count is there the next time
                page.goto(base + (address or f"/rts/task/{task_id}"))
                page.wait_for_timeout(1500)
            page.screenshot(path=IMAGES / name, full_page=not height)
            print(f"docs/images/{name}: {(IMAGES / name).stat().st_size // 1024} kB")
        browser.close()


def main() -> None:
    """Run the app, then take the pictures while it still runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=340.0)
    parser.add_argument("--publish", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        publish(arguments.seconds)
        return
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        mongo = stack.enter_context(MongoServer())
        os.environ.update(
            CELERY_BROKER_URL=redis.url,
            CELERY_RESULT_BACKEND=redis.url,
            RTS_MONGO_URL=mongo.url,
            PYTHONPATH=str(ROOT),
            OPENBLAS_NUM_THREADS="1",
        )
        stack.enter_context(
            WorkerProcess("workers.app", concurrency=SLOTS, cwd=ROOT, loglevel="WARNING")
        )
        base = stack.enter_context(flower())
        command = [sys.executable, __file__, "--publish", "--seconds", str(arguments.seconds)]
        publisher = subprocess.Popen(command, cwd=ROOT)
        stack.callback(publisher.kill)
        time.sleep(max(0.0, arguments.seconds - 50))
        take(base, _missed(mongo.url))


def _missed(mongo_url: str) -> str:
    """Return the id of a task that ran too long."""
    import pymongo

    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo_url)
    with client:
        tasks = client.get_default_database().tasks
        missed = {"sla_success": False, "lateness_s": {"$gt": 0}}
        longest = [("runtime_s", -1)]
        task = tasks.find_one({**missed, "task_type": "cpu-heavy"}, sort=longest)
        task = task or tasks.find_one(missed)
    return str(task["_id"]) if task else "none"


if __name__ == "__main__":
    main()
