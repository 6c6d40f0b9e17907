"""A clock that tests move by hand."""

from __future__ import annotations


class Clock:
    """Gives the seconds in ``at``, which pass only when a test says so."""

    def __init__(self, at: float = 100.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at
