"""Deadlines as message priorities, for brokers without that order, or in its place.

A coarse approximation of the deadline order: a few levels, and the level is fixed when
the task is published.
"""

from __future__ import annotations

import math

#: The highest of the levels in use unless configured otherwise; the lowest is 0.
HIGHEST = 9


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
