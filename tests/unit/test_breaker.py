"""The circuit breaker, with a clock that passes when it is told to."""

from __future__ import annotations

from rts.link.breaker import Breaker
from tests.clock import Clock


def test_a_failure_opens_it_for_a_period_and_then_one_may_try() -> None:
    clock = Clock(0.0)
    breaker = Breaker(5.0, clock)
    assert breaker.allows()
    assert breaker.failed(), "it was closed"
    assert not breaker.failed(), "it was open"
    clock.at = 4.9
    assert not breaker.allows()
    clock.at = 5.0
    assert breaker.allows()
    assert not breaker.allows(), "one at a time"
    clock.at = 10.0
    assert breaker.allows(), "the one that tried never came back"


def test_a_success_closes_it() -> None:
    clock = Clock(0.0)
    breaker = Breaker(5.0, clock)
    assert not breaker.succeeded(), "it was closed"
    breaker.failed()
    clock.at = 5.0
    assert breaker.allows()
    assert breaker.succeeded()
    assert breaker.allows()
