"""Quantiles of runtimes in constant space: a sketch with logarithmic buckets.

Bucket i counts values in (γ^(i−1), γ^i] with γ = (1 + α)/(1 − α); its midpoint has
a relative error of at most α. Sketches of the same α can be merged (DDSketch: Masson,
Rim & Lee, *PVLDB* 12(12), 2019). In Redis, ``finish.lua`` counts the buckets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

#: Relative accuracy α of each quantile.
ACCURACY = 0.02

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
#: ln γ, which ``finish.lua`` divides by.
LOG_BASE = math.log(_GAMMA)
#: Values up to this count as zero: no clock resolves them.
SMALLEST = 1e-9
#: No real runtime falls beyond it, and no float could hold its midpoint.
LARGEST_BUCKET = math.ceil(math.log(1e300) / LOG_BASE)
#: The greatest count that Redis can increment to.
MOST = (1 << 63) - 1
#: The bucket of values up to SMALLEST.
ZERO = "zero"


class Sketch:
    """Counts of non-negative values, from which quantiles are read.

    >>> sketch = Sketch()
    >>> for x in (1.0, 2.0, 3.0, 4.0, 100.0):
    ...     sketch.update(x)
    >>> abs(sketch.quantile(0.5) / 3.0 - 1) <= ACCURACY
    True
    """

    def __init__(self) -> None:
        self.zeros = 0
        self.buckets: dict[int, int] = {}

    @classmethod
    def from_hash(cls, hash_: Mapping[str, str]) -> Sketch:
        """Read the hash that ``finish.lua`` keeps; what is not a count is skipped."""
        sketch = cls()
        for bucket, text in hash_.items():
            try:
                index, count = 0 if bucket == ZERO else int(bucket), int(text)
            except ValueError:
                continue
            if not 0 < count <= MOST or abs(index) > LARGEST_BUCKET:
                continue
            if bucket == ZERO:
                sketch.zeros += count
            else:
                sketch.buckets[index] = sketch.buckets.get(index, 0) + count
        return sketch

    @property
    def count(self) -> int:
        """Number of values."""
        return self.zeros + sum(self.buckets.values())

    def update(self, x: float) -> None:
        """Count the value *x*, at least 0."""
        if x <= SMALLEST:
            self.zeros += 1
            return
        bucket = math.ceil(math.log(x) / LOG_BASE)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def quantile(self, q: float) -> float | None:
        """Return the value of rank ⌊q·(n − 1)⌋, q in [0, 1]; ``None`` without values."""
        count = self.count
        if not count:
            return None
        bucket, _ = self._find(math.floor(q * (count - 1)) + 1)
        return 0.0 if bucket is None else 2 * _GAMMA**bucket / (_GAMMA + 1)

    def bound(self, q: float) -> float | None:
        """Return a value that the next one will not exceed with probability *q*, judging
        by those counted; interpolated within a bucket. ``None`` without values.

        The rank is q·(n + 1): of n values of the same distribution, the next one's rank
        among them is uniform (Vovk, Gammerman & Shafer, *Algorithmic Learning in a
        Random World*, 2005).
        """
        count = self.count
        if not count:
            return None
        bucket, share = self._find(min(count, q * (count + 1)))
        return 0.0 if bucket is None else float(_GAMMA ** (bucket - 1 + share))

    def _find(self, rank: float) -> tuple[int | None, float]:
        """Return the bucket (``None``: of zeros) in which the value of a rank, 1 to the count,
        lies, and the share of the bucket's values up to it.
        """
        below = self.zeros
        if rank <= below:
            return None, 0.0
        for bucket in sorted(self.buckets):
            inside = self.buckets[bucket]
            if rank <= below + inside:
                return bucket, (rank - below) / inside
            below += inside
        raise AssertionError("ranks lie within the count")
