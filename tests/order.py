"""Messages in deadline order, and connections that have that order."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from celery import Celery
from kombu import Connection

from rts.rule import Rule
from rts.scheduling.transport import Transport
from rts.testing import wait_until

NAME = "order"
#: What the name of a queue's sorted set ends in.
EDF = "\x06\x16edf"
#: Offsets of deadlines that no test misses, and of ones that have long passed.
FAR, PAST = 1e6, -1e6


def connect(url: str, rule: Rule | None = None, **options: Any) -> Connection:
    """Return a connection in deadline order."""
    option = (rule or Rule()).as_option()
    return Connection(url, transport=Transport, transport_options={"rts": option, **options})


class Message(NamedTuple):
    """A message in the model."""

    deadline: float
    arrival: float
    tau: float
    tag: str


def envelope(message: Message, queue: str = NAME, priority: int = 0) -> dict[str, Any]:
    """Return the raw message as kombu has it."""
    return {
        "body": "e30=",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "task": "t",
            "id": message.tag,
            "rts_deadline": message.deadline,
            "rts_arrival": message.arrival,
            "rts_tau": message.tau,
        },
        "properties": {
            "delivery_tag": message.tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
            "priority": priority,
        },
    }


def put(channel: Any, tag: str, offset: float = FAR, queue: str = NAME) -> None:
    """Publish a message that is due *offset* seconds from now."""
    now = time.time()
    channel._put(queue, envelope(Message(now + offset, now, 1.0, tag), queue))


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    """Have Redis be out of memory for a while."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def publish_shuffled(app: Celery, **options: Any) -> dict[int, Any]:
    """Publish six tasks in an order that is not that of their deadlines; by offset."""
    now = time.time()
    return {
        offset: app.send_task(
            "tests.apps.basic.ok", (0.02,), headers={"sla_deadline": now + offset}, **options
        )
        for offset in random.sample(range(1000, 2000), 6)
    }


def in_order(results: Mapping[int, Any]) -> list[str]:
    """Return the task ids in the order of their deadlines."""
    return [results[offset].id for offset in sorted(results)]


def ran(ledger: Any, ids: Sequence[str]) -> list[str]:
    """Wait for the runs of these tasks; return their ids in the order in which they began."""
    mine = {"task_id": {"$in": ids}}
    wait_until(lambda: ledger.assignments.count_documents(mine) >= len(ids))
    return [run["task_id"] for run in ledger.assignments.find(mine).sort("started_at")]
