"""The deadline formula.

With arrival r, learned runtime τ, SLA multiplier k and the floor
``rts_min_slack``::

    d = r + max(k·τ, τ + floor)

k·τ is the relative deadline of a soft real-time task whose service time is
estimated by τ (total work content, TWK, in Conway, Maxwell & Miller, *Theory of
Scheduling*, 1967). The floor keeps tiny tasks honest: no fleet can promise to
start a task within a millisecond.
"""

from __future__ import annotations

#: Allowed range of the SLA multiplier k, both ends included.
MIN_MULTIPLIER, MAX_MULTIPLIER = 1.5, 2.5

#: Range of a learned k (``rts_deadline_policy`` "quantile"), both ends included.
MIN_LEARNED, MAX_LEARNED = 1.0, 50.0

#: Absolute deadlines lie in (0, MAX_INSTANT]: what a datetime can hold.
MAX_INSTANT = 253402300799.0  # 9999-12-31T23:59:59Z


def deadline(arrival: float, tau: float, k: float, floor: float) -> float:
    """Return the absolute deadline in epoch seconds.

    >>> deadline(100.0, 5.0, 2.0, 1.0)
    110.0
    >>> deadline(100.0, 0.01, 2.0, 1.0)
    101.01
    """
    return arrival + max(k * tau, tau + floor)
