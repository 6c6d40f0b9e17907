"""Publishes example load: ``python -m workers.producer --rate 2 --count 100``."""

from __future__ import annotations

import argparse
import random
import signal
import threading
from collections.abc import Callable

from celery.result import AsyncResult

from workers.numeric import classify, train
from workers.text import compress, fingerprint, index, survey

#: Each publishes one task. By header, by the task's own settings, by resources.
MIX: tuple[Callable[[], AsyncResult], ...] = (
    lambda: fingerprint.apply_async(headers={"task_type": "cpu-light"}),
    lambda: compress.apply_async(headers={"task_type": "cpu-heavy"}),
    lambda: index.apply_async(headers={"task_type": "memory-heavy"}),
    lambda: classify.apply_async(headers={"task_type": "gpu-inference"}),
    lambda: train.apply_async(headers={"task_type": "gpu-training"}),
    lambda: survey.apply_async(headers={"task_type": "mixed"}),
    lambda: survey.apply_async(headers={"req_cpu": 8}),
    lambda: index.apply_async(headers={"req_memory": 16}),
    lambda: classify.apply_async(headers={"req_gpu": 1}, countdown=5),
    lambda: train.delay(),
)


def main() -> None:
    """Publish at random instants (Poisson arrivals) until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=2.0, help="tasks per second, on average")
    parser.add_argument("--count", type=int, default=0, help="tasks in all; 0: without end")
    arguments = parser.parse_args()
    if arguments.rate <= 0 or arguments.count < 0:
        parser.error("--rate must be above 0 and --count at least 0")

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    published = 0
    while not stop.wait(random.expovariate(arguments.rate)):
        random.choice(MIX)()
        published += 1
        if published == arguments.count:
            break
    print(f"published {published} tasks")


if __name__ == "__main__":
    main()
