"""The fleet's clock."""

from __future__ import annotations

import time

import pytest

from rts.clock import FleetClock


def test_time_that_a_task_freezes_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)  # as freezegun does
    assert FleetClock().now() >= before


@pytest.mark.parametrize(("behind", "offset"), [(0.002, 0.0), (0.0049, 0.0), (0.02, 0.02)])
def test_a_server_that_stalls_does_not_move_it(behind: float, offset: float) -> None:
    clock = FleetClock()
    clock.measured(sent_at=100.0, server_at=100.0 + behind, received_at=100.0)
    assert clock.offset_s == pytest.approx(offset)
    clock.measured(sent_at=101.0, server_at=105.5 + behind, received_at=105.5)  # at the end
    assert clock.offset_s == pytest.approx(offset)
    clock.measured(sent_at=106.0, server_at=166.0, received_at=110.0)  # one was set
    assert clock.offset_s == pytest.approx(58.0)
    assert clock.now() - time.time() == pytest.approx(58.0, abs=30)
    clock.measured(sent_at=111.0, server_at=113.5, received_at=115.0)  # it may be right again
    assert clock.offset_s == 0.0
