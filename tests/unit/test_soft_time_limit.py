"""A soft time limit that strikes within a hook, sent again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_postrun
from celery.utils.dispatch import Signal

from rts.lifecycle import soft_time_limit
from rts.lifecycle.soft_time_limit import LOOK_S, hook_in_task_failed
from rts.testing import wait_until


@pytest.fixture(autouse=True)
def soft_limit() -> Iterator[None]:
    """Handle the signal as a pool child does."""

    def struck(*_: Any) -> None:
        raise SoftTimeLimitExceeded()

    before = signal.signal(signal.SIGUSR1, struck)
    yield
    task_postrun.send(None)
    signal.signal(signal.SIGUSR1, before)


def interrupted(**_: Any) -> None:
    """Be a hook in which the limit strikes, and which takes long to return."""
    hook_in_task_failed("publish", SoftTimeLimitExceeded())
    time.sleep(5 * LOOK_S)


def test_it_strikes_the_task_and_not_the_hook_that_is_slow_to_return() -> None:
    published = Signal(name="published")
    published.connect(interrupted)
    ((_, answer),) = published.send(None)
    assert answer is None  # else Celery has swallowed the limit
    with pytest.raises(SoftTimeLimitExceeded):
        time.sleep(30)


def test_it_is_not_sent_again_once_the_task_has_ended() -> None:
    def ending(**_: Any) -> None:
        interrupted()
        task_postrun.send(None)

    published = Signal(name="published")
    published.connect(ending, weak=False)
    ((_, answer),) = published.send(None)
    assert answer is None
    time.sleep(5 * LOOK_S)


def test_it_is_not_sent_again_if_the_task_ends_during_the_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking, over = threading.Event(), threading.Event()

    def slow_look(thread: int) -> bool:
        looking.set()
        over.wait()
        return False

    monkeypatch.setattr(soft_time_limit, "_is_in_receiver", slow_look)
    before = threading.active_count()
    hook_in_task_failed("publish", SoftTimeLimitExceeded())
    looking.wait()
    task_postrun.send(None)
    over.set()
    wait_until(lambda: threading.active_count() == before)
