"""Percentiles from logarithmic buckets, filled by the server.

Bucket i holds γ^(i−1) < x ≤ γ^i and stands for 2·γ^i/(γ+1), which is at most
``RELATIVE_ERROR`` away from every value in it (DDSketch: Masson, Rim & Lee,
*Proc. VLDB* 12, 2019). Values of at most ``ZERO_S`` count as zero; negative
ones have buckets of their own. MongoDB has no ``$percentile`` before version 7,
and the buckets of several intervals can be added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: A percentile is within 1 % of the value of that rank.
RELATIVE_ERROR = 0.01
#: Seconds that count as zero.
ZERO_S = 1e-6

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
#: Added to i, so that buckets of positive values have positive numbers and 0 is zero.
_SHIFT = 1000


def bucket(value: float) -> int:
    """Return the number of the bucket of *value*, as :func:`expression` does.

    >>> bucket(0.0), bucket(1.0), bucket(-1.0)
    (0, 1000, -1000)
    """
    if abs(value) <= ZERO_S:
        return 0
    number = math.ceil(math.log(abs(value)) / _LOG_GAMMA) + _SHIFT
    return number if value > 0 else -number


def expression(field: str, *, signed: bool = False) -> dict[str, Any]:
    """Return the aggregation expression of the bucket of *field*; null if it has none, or holds
    no number.

    Numbers sort above NaN on the server, which rules that out.
    """
    value = f"${field}"

    def number(of: Any) -> dict[str, Any]:
        return {"$add": [{"$ceil": {"$divide": [{"$ln": of}, _LOG_GAMMA]}}, _SHIFT]}

    negative: Any = None
    if signed:
        mirrored = {"$multiply": [-1, number({"$multiply": [-1, value]})]}
        negative = {"$cond": [{"$gte": [value, -math.inf]}, mirrored, None]}
    positive = {
        "$cond": [
            {"$gt": [value, ZERO_S]},
            number(value),
            {"$cond": [{"$gte": [value, -ZERO_S]}, 0, negative]},
        ]
    }
    return if_number(value, positive)


def if_number(value: str, then: Any) -> dict[str, Any]:
    """Return the expression *then*, or null where *value* is no number: anybody may have
    written a document, and one that cannot be computed with would fail the whole query.
    """
    return {"$cond": [{"$isNumber": value}, then, None]}


def percentile(buckets: Mapping[int, int], q: float) -> float | None:
    """Return the value of rank ⌈q·n⌉, to within the bound; ``None`` without values.

    >>> percentile({}, 0.5)
    >>> round(percentile({bucket(2.0): 99, bucket(50.0): 1}, 0.99), 1)
    2.0
    """
    n = sum(buckets.values())
    if n == 0:
        return None
    rank = max(1, math.ceil(q * n - 1e-9))
    for number in sorted(buckets):
        rank -= buckets[number]
        if rank <= 0:
            break
    return value_of(number)


def value_of(number: int) -> float:
    """Return the value that a bucket stands for."""
    if number == 0:
        return 0.0
    value = 2 * _GAMMA ** (abs(number) - _SHIFT) / (_GAMMA + 1)
    return value if number > 0 else -value
