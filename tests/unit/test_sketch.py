"""The quantile sketch against sorted samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.tau.sketch import ACCURACY, LARGEST_BUCKET, Sketch

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


@given(VALUES, VALUES)
def test_merging_is_the_sketch_of_all(a: list[float], b: list[float]) -> None:
    merged = sketch_of(a)
    merged.merge(sketch_of(b))
    whole = sketch_of(a + b)
    assert (merged.zeros, merged.buckets) == (whole.zeros, whole.buckets)
    assert merged.count == len(a) + len(b)


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
