"""Counters and warnings of one process."""

from __future__ import annotations

from rts import health
from tests.forked import forks_beside_threads, holds_in_child


@forks_beside_threads
def test_a_forked_child_counts_from_zero() -> None:
    health.count("refused_plan")
    assert holds_in_child(lambda: health.take_counts() == {})
    assert health.take_counts() == {"refused_plan": 1}
