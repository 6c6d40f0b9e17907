"""What is counted of runs and verdicts, and what they are grouped by."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Key of runs or tasks that have none.
UNKNOWN = "unknown"
#: Cause of a miss by a task that completed, but too late.
LATE = "late"

#: What a report groups by, and the field of a record that holds its key.
FIELDS = {"type": "task_type", "name": "name", "worker": "worker", "queue": "queue"}

#: Groups verdicts only, by type, name and queue at once, as objectives need them.
CLASSES = "classes"
#: The fields of a class, in the order of its key.
CLASS = ("task_type", "name", "queue")


@dataclass
class Tally:
    """The counts of one key. Tallies of disjoint windows can be added."""

    runs: int = 0
    #: Sum of the runtimes of successful runs, and of |runtime − tau| of those.
    success_runtime_s: float = 0.0
    success_error_s: float = 0.0
    verdicts: int = 0
    on_time: int = 0
    #: On time and SUCCESS.
    good: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    runtime: Counter[int] = field(default_factory=Counter)
    queueing_delay: Counter[int] = field(default_factory=Counter)
    lateness: Counter[int] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Add what *other* counted."""
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("misses", *BUCKETS):
            getattr(self, name).update(getattr(other, name))


#: The fields of a tally: plain sums, and counts by bucket.
NUMBERS = ("runs", "success_runtime_s", "success_error_s", "verdicts", "on_time", "good")
BUCKETS = ("runtime", "queueing_delay", "lateness")

#: By key.
Tallies = dict[str, Tally]


def class_of(key: str) -> tuple[str, str, str | None]:
    """Return type, name and queue of a key of ``CLASSES``."""
    task_type, name, queue = json.loads(key)
    return task_type or UNKNOWN, name or UNKNOWN, queue


def total_of(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies of disjoint keys."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def most_frequent_first(misses: Mapping[str, int]) -> dict[str, int]:
    """Return misses by cause, sorted.

    >>> most_frequent_first({"killed": 1, "expired": 1, "late": 3})
    {'late': 3, 'expired': 1, 'killed': 1}
    """
    return dict(sorted(misses.items(), key=lambda item: (-item[1], str(item[0]))))


def add_all(total: Tallies, more: Mapping[str, Tally]) -> None:
    """Add *more*, of another window, to *total*."""
    for key, counted in more.items():
        total.setdefault(key, Tally()).add(counted)
