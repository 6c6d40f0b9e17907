"""The fleet's clock."""

from __future__ import annotations

import time

import pytest

from rts.clock import FleetClock


def test_time_that_a_task_freezes_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)  # as freezegun does
    assert FleetClock().now() >= before
