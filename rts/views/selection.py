"""The rows that matter most of a table that is too long to show."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def foremost(rows: Sequence[T], most: int, rank: Callable[[T], Any]) -> list[T]:
    """Return the *most* rows of greatest *rank*, in the order of *rows*; of equals the first.

    >>> foremost([1, 3, 0, 3, 2], 3, lambda row: row)
    [3, 3, 2]
    """
    greatest = heapq.nlargest(most, range(len(rows)), key=lambda i: rank(rows[i]))
    return [rows[i] for i in sorted(greatest)]
