"""Deadlines as message priorities: for brokers without the deadline order, or in its place.

A coarse approximation of the deadline order: a few levels, and the level is fixed when
the task is published.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable
from typing import Any

from rts import health
from rts.clock import FleetClock
from rts.records import Plan
from rts.scheduling.activation import TRANSPORTS, WITHOUT_PRIORITIES, transport_of
from rts.settings import Settings

#: The highest of the levels in use unless configured otherwise; the lowest is 0.
HIGHEST = 9
#: kombu's transports for RabbitMQ.
_RABBITMQ = ("amqp", "amqps", "pyamqp", "librabbitmq")

#: Returns the priority of a message from its plan, its own priority and whether it is a retry.
Prioritise = Callable[[Plan, "int | None", bool], int]


def prioritiser(app: Any, settings: Settings, clock: FleetClock) -> Prioritise | None:
    """Return the function that gives the messages of *app* their priority; ``None`` unless
    ``rts_scheduler`` is "priority".
    """
    if settings.scheduler != "priority":
        return None
    alias = _transport(app)
    inverted = alias in TRANSPORTS
    if alias in _RABBITMQ and not any(map(_has_priorities, app.amqp.queues.values())):
        health.warn_once(
            "order",
            "rts: rts_scheduler = 'priority' changes no order in queues without "
            "x-max-priority: set task_queue_max_priority = 10, and delete or rename existing "
            "queues, which RabbitMQ does not change",
        )
    highest = HIGHEST if inverted else app.conf.task_queue_max_priority or HIGHEST
    # A task that is given no other priority has this one: nobody chose it for this task.
    default = app.conf.task_default_priority

    def prioritise(plan: Plan, priority: int | None, retry: bool) -> int:
        if priority is not None and (retry or priority != default):
            return priority
        laxity_s = plan.deadline - clock.now() - plan.tau
        return level(laxity_s, inverted=inverted, highest=highest)

    return prioritise


def ranking(app: Any) -> Callable[[int], int]:
    """Return a function that ranks message priorities: the broker of *app* delivers messages
    of the least rank first.
    """
    alias = _transport(app)
    if alias in TRANSPORTS:
        from kombu.transport.redis import PRIORITY_STEPS

        options = app.conf.broker_transport_options or {}
        steps = options.get("priority_steps") or PRIORITY_STEPS
        return lambda priority: bisect(steps, priority)
    if alias in WITHOUT_PRIORITIES or (
        alias in _RABBITMQ and not any(map(_has_priorities, app.amqp.queues.values()))
    ):
        return lambda priority: 0
    return lambda priority: -priority


def _transport(app: Any) -> str:
    url = app.conf.broker_write_url or app.conf.broker_url or ""
    return transport_of(url if isinstance(url, str) else url[0])


def _has_priorities(queue: Any) -> bool:
    """Return whether *queue*, RabbitMQ's, has message priorities: quorum queues have two."""
    arguments = queue.queue_arguments or {}
    return bool(
        queue.max_priority
        or "x-max-priority" in arguments
        or arguments.get("x-queue-type") == "quorum"
    )


def level(laxity_s: float, *, inverted: bool, highest: int = HIGHEST) -> int:
    """Return the message priority of a task with this laxity.

    The most urgent level covers a laxity up to one second, each next one twice the laxity
    of the one before. A hopeless task gets the least urgent level.

    Args:
        laxity_s: deadline − now − tau, seconds.
        inverted: whether 0 is the most urgent level, as on Redis, instead of the least.
        highest: the broker's highest level, 1 to 255 (RabbitMQ's ``x-max-priority``).

    >>> [level(s, inverted=True) for s in (0, 3, 60, 1e6, -1)]
    [0, 2, 6, 9, 9]
    >>> [level(s, inverted=False) for s in (0, 3, 60, 1e6, -1)]
    [9, 7, 3, 0, 0]
    """
    doublings = highest if laxity_s < 0 else math.ceil(math.log2(max(1.0, laxity_s)))
    steps = min(highest, doublings)
    return steps if inverted else highest - steps
