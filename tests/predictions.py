"""Apps that ask for predictions, and workers that are busy."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery
from kombu import Exchange, Queue

import rts
from rts.installation import parts_of
from rts.testing import wait_until
from tests.conftest import Stage
from tests.order import EDF

OK = "tests.apps.basic.ok"
#: Options of a task of the type "slow".
SLOW: dict[str, Any] = {"headers": {"task_type": "slow"}}

#: The ``rts_timeout`` of apps that ask while the machine is busy, seconds.
PATIENCE_S = 10.0


def topic_queue(stage: Stage) -> Queue:
    """Return a queue whose routing key differs from its name."""
    name = f"{stage.conf['task_default_queue']}-bound"
    topic = Exchange(f"{name}-x", type="topic")  # a direct one is passed over by Celery
    return Queue(name, topic, routing_key=f"{name}-key")


def busy(stage: Stage, app: Celery, seconds: float, slots: int, **options: Any) -> list[str]:
    """Fill the slots of the stage's workers; return the ids of the running tasks."""
    ids = [app.send_task(OK, (seconds,), **options).id for _ in range(slots)]
    client = redis.Redis.from_url(stage.redis_url)
    wait_until(lambda: client.hlen(f"{stage.prefix}running") >= slots, message="they run")
    client.close()
    return ids


def served(app: Celery, **options: Any) -> rts.Prediction:
    """Return the prediction for a new task, once a worker consumes its queue."""

    def told() -> rts.Prediction | None:
        try:
            return rts.predict_new(OK, app=app, **options)
        except rts.CommandError:
            return None  # its first heartbeat is to come

    return wait_until(told, message="a worker beats")


def backlog_s(app: Celery, queue: str) -> float:
    """Return how much work a route takes to wait in *queue*."""
    found: float = parts_of(app).predictor.risks._pressures.read([queue])[queue].backlog_s
    return found


def waiting(client: redis.Redis, queue: str) -> int:
    """Return how many messages no worker has taken from *queue*."""
    return int(client.llen(queue)) + int(client.zcard(f"{queue}{EDF}"))
