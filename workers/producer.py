"""Publishes example load: ``python -m workers.producer --rate 2 --count 100``."""

from __future__ import annotations

import argparse
import math
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from workers.numeric import classify, train
from workers.text import compress, fingerprint, index, survey

#: Each publishes one task, typed by header, by the task's settings or by resources, and
#: passes its arguments to ``apply_async``.
MIX: tuple[Callable[..., AsyncResult], ...] = (
    lambda **more: fingerprint.apply_async(headers={"task_type": "cpu-light"}, **more),
    lambda **more: compress.apply_async(headers={"task_type": "cpu-heavy"}, **more),
    lambda **more: index.apply_async(headers={"task_type": "memory-heavy"}, **more),
    lambda **more: classify.apply_async(headers={"task_type": "gpu-inference"}, **more),
    lambda **more: train.apply_async(headers={"task_type": "gpu-training"}, **more),
    lambda **more: survey.apply_async(headers={"task_type": "mixed"}, **more),
    lambda **more: survey.apply_async(headers={"req_cpu": 8}, **more),
    lambda **more: index.apply_async(headers={"req_memory": 16}, **more),
    lambda **more: classify.apply_async(headers={"req_gpu": 1}, countdown=5, **more),
    lambda **more: train.apply_async(**more),
)


def main() -> None:
    """Publish tasks at random (Poisson arrivals) until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=2.0, help="tasks per second, on average")
    parser.add_argument("--count", type=int, default=0, help="tasks in all; 0: without end")
    parser.add_argument("--alive", type=Path, help="a file to touch after each publish")
    arguments = parser.parse_args()
    if not 0 < arguments.rate < math.inf or arguments.count < 0:
        parser.error("--rate must be above 0 and --count at least 0")

    stopped = False

    def stop(*_: Any) -> None:
        """Stop: by an exception, since a flag is not checked while waiting for a broker that
        does not answer; and by a flag, since an exception raised in a destructor is lost.
        """
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    published = 0
    try:
        while not stopped and (not arguments.count or published < arguments.count):
            time.sleep(random.expovariate(arguments.rate))
            try:
                # Nobody reads the results, so nothing should wait for them either.
                random.choice(MIX)(ignore_result=True)
            except OperationalError as exc:
                print(f"not published: {exc}", flush=True)
                continue
            published += 1
            if arguments.alive is not None:
                arguments.alive.touch()
    except KeyboardInterrupt:
        pass
    print(f"published {published} tasks", flush=True)


if __name__ == "__main__":
    main()
