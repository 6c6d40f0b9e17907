"""The deadline formula, and the rules of the deadline order.

With arrival r, learned runtime τ, SLA multiplier k and the floor
``rts_min_slack``::

    d = r + max(k·τ, τ + floor)

k·τ is the relative deadline of a soft real-time task whose service time is
estimated by τ (total work content, TWK, in Conway, Maxwell & Miller, *Theory of
Scheduling*, 1967). The floor keeps tiny tasks honest: no fleet can promise to
start a task within a millisecond.

The rules, which transport and simulator share (``docs/edf.md`` has all of them): with τ
and d as published, a task is hopeless at t > d − HOPE·τ; waiting tasks are ordered by
d + w·τ, with the weight w of :mod:`rts.rule`.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Allowed range of the SLA multiplier k, both ends included.
MIN_MULTIPLIER, MAX_MULTIPLIER = 1.5, 2.5

#: Range of a learned k (``rts_deadline_policy`` "quantile"), both ends included.
MIN_LEARNED, MAX_LEARNED = 1.0, 50.0

#: Absolute deadlines lie in (0, MAX_INSTANT]: what a datetime can hold.
MAX_INSTANT = 253402300799.0  # 9999-12-31T23:59:59Z
#: A tau is below this many seconds, some 30 years; a message that carries another one is not
#: believed.
MAX_TAU = 1e9

#: A task is hopeless once less than this share of its tau is left until its deadline.
#: Runtimes vary, so some that are slightly short of time still make it.
HOPE = 0.9

#: Default share of a worker's slots that demoted tasks may hold.
HOPELESS_SLOTS = 0.75

#: Default share of claims that serve the demoted task that has waited longest.
LATE_SHARE = 0.05

#: Default relative deadline of a message without one, seconds.
HORIZON_S = 20.0


def deadline(arrival: float, tau: float, k: float, floor: float) -> float:
    """Return the absolute deadline in epoch seconds.

    >>> deadline(100.0, 5.0, 2.0, 1.0)
    110.0
    >>> deadline(100.0, 0.01, 2.0, 1.0)
    101.01
    """
    return arrival + max(k * tau, tau + floor)


def hopeful_until(deadline: float, tau: float) -> float:
    """Return the latest instant at which a task is not hopeless.

    >>> hopeful_until(110.0, 5.0)
    105.5
    """
    return deadline - HOPE * tau


def demoted_slots(share: float, slots: int) -> int:
    """Return how many of *slots* demoted tasks may hold: whole ones, and at least one.

    >>> demoted_slots(0.75, 16), demoted_slots(0.75, 2), demoted_slots(0.75, 1)
    (12, 1, 1)

    A product that is short of a whole number only by rounding counts as that number:

    >>> int(0.29 * 100), demoted_slots(0.29, 100)
    (28, 29)
    """
    return max(1, int(share * slots + 1e-9))


def share_of_slots(share: float, workers: Sequence[int]) -> float:
    """Return the share of all slots that results if each worker applies *share* to its own.

    Each rounds to whole slots, at least one.

    >>> share_of_slots(0.75, [16]), share_of_slots(0.75, [2, 2])
    (0.75, 0.5)
    """
    held = sum(demoted_slots(share, slots) for slots in workers)
    return min(1.0, held / sum(workers)) if workers else share
