"""Counters and warnings of one process."""

from __future__ import annotations

from rts import health
from tests.clock import Clock
from tests.forked import forks_beside_threads, holds_in_child


@forks_beside_threads
def test_a_forked_child_counts_from_zero() -> None:
    health.count("refused_plan")
    assert holds_in_child(lambda: health.take_counts() == {})
    assert health.take_counts() == {"refused_plan": 1}


def test_what_all_connections_meet_is_told_once_and_an_outage_besides_a_refusal() -> None:
    clock = Clock()
    outages = health.Outages(clock)
    assert outages.tell("WRONGTYPE")
    assert not outages.tell(), "so soon after"
    clock.at += health.MIN_LOG_GAP_S
    assert not outages.tell("WRONGTYPE")
    assert outages.tell()
    assert outages.tell_end()
    assert not outages.tell_end()
