"""The quantile sketch against sorted samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.tau.sketch import ACCURACY, LARGEST_BUCKET, LOG_BASE, Sketch

VALUES = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=200)


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    for x in values:
        sketch.update(x)
    return sketch


@given(VALUES, st.floats(0, 1))
def test_quantiles_are_as_accurate_as_promised(values: list[float], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert sketch_of(values).quantile(q) == pytest.approx(exact, rel=ACCURACY + 1e-9)


@given(VALUES, st.floats(0.01, 1))
def test_a_bound_shares_its_bucket_with_the_value_of_its_rank(
    values: list[float], q: float
) -> None:
    n = len(values)
    exact = sorted(values)[max(1, math.ceil(min(n, q * (n + 1)))) - 1]
    bound = sketch_of(values).bound(q)
    assert abs(math.log(bound / exact)) <= LOG_BASE + 1e-9


def test_within_a_bucket_bounds_are_interpolated_by_rank() -> None:
    sketch = sketch_of([0.0, *[0.99] * 3])  # 0.99 is in the bucket that ends at 1
    found = [sketch.bound(rank / 5) for rank in range(1, 6)]
    shares = [1 / 3, 2 / 3, 1, 1]  # of the bucket, up to each rank; never beyond the count
    assert found == pytest.approx([0.0, *(math.exp((s - 1) * LOG_BASE) for s in shares)])
    assert Sketch().bound(0.5) is None


def test_no_values_have_no_quantile_and_zeros_have() -> None:
    assert Sketch().quantile(0.5) is None
    assert sketch_of([0.0, 0.0, 1.0]).quantile(0.5) == 0.0


def test_what_is_not_a_count_is_skipped() -> None:
    sketch = Sketch.from_hash(
        {
            "zero": "2",
            "3": "4",
            "-7": "1",
            "-0": "1",
            "0": "1",
            "x": "1",
            "5": "many",
            "8": "9" * 400,
            "6": "-3",
            "7": "0",
            "1.5": "2",
            str(LARGEST_BUCKET + 1): "9",
        }
    )
    assert sketch.zeros == 2
    assert sketch.buckets == {3: 4, -7: 1, 0: 2}
    assert sketch.quantile(1.0) is not None
