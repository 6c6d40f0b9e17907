"""Waiting for what other processes do: poll with a deadline, never a bare sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | None],
    timeout: float = 30.0,
    interval: float = 0.05,
    message: str = "",
) -> T:
    """Return the first true value of *condition*, polled every *interval* seconds.

    Raises:
        TimeoutError: it was not true within *timeout* seconds; *message* and the
            last value say what was missing.
    """
    give_up_at = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= give_up_at:
            raise TimeoutError(
                f"not within {timeout:g} s: {message or condition} (last {value!r})"
            )
        time.sleep(interval)
