"""Deadlines as message priorities, for brokers that keep ten levels and no more.

A coarse stand-in for the deadline order: the level is decided when a task is
published and does not change while it waits.
"""

from __future__ import annotations

import math

#: The highest level that kombu gives unless told otherwise; the lowest is 0.
HIGHEST = 9


def level(laxity_s: float, *, inverted: bool, highest: int = HIGHEST) -> int:
    """Return the priority of a task whose deadline leaves *laxity_s* beyond its tau.

    Each level stands for twice the laxity of the more urgent one next to it; the most
    urgent is up to a second. A task that is hopeless already gets the least urgent.

    Args:
        laxity_s: deadline − now − tau, seconds.
        inverted: whether 0 is the most urgent, as on Redis; elsewhere it is the least.
        highest: the broker's highest level, 1 to 255 (RabbitMQ's ``x-max-priority``).

    >>> [level(s, inverted=True) for s in (0.5, 3, 60, 1e6, -1)]
    [0, 2, 6, 9, 9]
    >>> [level(s, inverted=False) for s in (0.5, 3, 60, 1e6, -1)]
    [9, 7, 3, 0, 0]
    """
    doublings = highest if laxity_s < 0 else math.ceil(math.log2(max(1.0, laxity_s)))
    steps = min(highest, doublings)
    return steps if inverted else highest - steps
