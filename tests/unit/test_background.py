"""Querying one server in a background thread, by many callers at once."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rts.views.background import BackgroundQuery


@pytest.fixture
def hurried() -> Iterator[None]:
    """Have threads interrupt each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
def test_callers_during_a_query_wait_for_its_answer() -> None:
    query = BackgroundQuery("a server", lambda: 1, 0.0)

    def answers() -> set[tuple[int | None, str]]:
        found = set()
        for _ in range(2000):
            query.ask()
            found.add(query.answer(time.monotonic() + 60.0))
        return found

    with ThreadPoolExecutor(4) as pool:
        each = [pool.submit(answers) for _ in range(4)]
        assert [found.result() for found in each] == [{(1, "")}] * 4


def test_a_host_name_that_is_none_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    def look_up() -> None:
        socket.getaddrinfo("redis..example", 6379)

    query = BackgroundQuery("a server", look_up)
    query.ask()
    answer, why = query.answer(time.monotonic() + 60.0)
    assert answer is None
    assert "label" in why
    assert not caplog.records
