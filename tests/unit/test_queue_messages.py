"""What predictions read in messages that anybody may have published."""

from __future__ import annotations

import pytest

from rts.predictions.messages import WorkReader, held_of, id_of
from rts.scheduling.encoding import message_of
from rts.settings import Settings


def test_invalid_messages_are_read_as_empty_ones() -> None:
    for text in (
        b"",
        b"x",
        b"5",
        b"null",
        b"[]",
        b"\xff",
        b"0" * 33 + b"15",
        b'{"a":' * 100_000,
    ):
        assert message_of(text) == {}
    for note in (None, b"", b"5", b"[5, 5, 5]", b"[" * 100_000):
        assert held_of([(note, 5.0)]) == []
    assert held_of([(b'[{"headers": {"id": "x"}}, "", "q"]', 5.0)]) == [
        ("q", {"headers": {"id": "x"}}, 5.0)
    ]
    assert id_of({"headers": {"id": ["x"]}}) is None


@pytest.mark.parametrize("tau", [-1.0, 0.0, 1e9, 1e300, "x"])
def test_a_tau_that_no_worker_believes_counts_for_nothing(tau: object) -> None:
    reader = WorkReader(Settings(), lambda *_: 7.0)
    headers = {"task": "proj.work", "rts_tau": tau, "rts_arrival": 1.0, "rts_deadline": 2.0}
    assert reader.work({"headers": headers}, 100.0).tau == 7.0
