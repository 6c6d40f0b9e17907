"""The stored format of tallies: small, and cheap to read.

A month of a few hundred classes is about ten thousand tallies of few numbers each. As documents
of their own they take seconds to read, so tallies by ``CLASSES`` are stored by column, each of
which is one binary value.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from rts.views.tally import BUCKETS, CLASSES, NUMBERS, Tallies, Tally

#: Key, verdicts, those on time, and misses by cause.
Row = tuple[str, int, int, Mapping[str, int]]


def pack(tallies: Tallies, by: str) -> Any:
    """Return tallies that are grouped by *by* as they are stored."""
    if by == CLASSES:
        return _columns(tallies)
    return [
        {
            "key": key,
            "numbers": [getattr(t, name) for name in NUMBERS],
            "misses": [list(item) for item in t.misses.items()],
            "buckets": [
                _packed("i", list(chain(*getattr(t, name).items()))) for name in BUCKETS
            ],
        }
        for key, t in tallies.items()
    ]


def unpack(packed: Any, by: str, key: str | None = None) -> Tallies:
    """Return the tallies that were packed; only that of *key*, if given (not of CLASSES)."""
    if by == CLASSES:
        return {
            key: Tally(verdicts=verdicts, on_time=on_time, misses=Counter(misses))
            for key, verdicts, on_time, misses in unpack_rows(packed)
        }
    tallies: Tallies = {}
    for p in packed:
        if key is not None and p["key"] != key:
            continue
        counted = tallies[p["key"]] = Tally(misses=Counter(dict(p["misses"])))
        for name, value in zip(NUMBERS, p["numbers"], strict=True):
            setattr(counted, name, value)
        for name, part in zip(BUCKETS, p["buckets"], strict=True):
            setattr(counted, name, Counter(dict(_pairs("i", part))))
    return tallies


def unpack_rows(columns: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what tallies that are grouped by ``CLASSES`` hold, without making them.

    >>> late = Tally(verdicts=3, on_time=2, misses=Counter(late=1))
    >>> packed = pack({"a": late, "b": Tally(verdicts=1, on_time=1)}, CLASSES)
    >>> list(unpack_rows(packed))
    [('a', 3, 2, {'late': 1}), ('b', 1, 1, {})]
    """
    misses: list[dict[str, int]] = [{} for _ in columns["keys"]]
    for cause, packed in columns["misses"]:
        for index, n in _pairs("q", packed):
            misses[index][cause] = n
    verdicts, on_time = (_unpacked("q", columns[name]) for name in ("valid", "on_time"))
    return zip(columns["keys"], verdicts, on_time, misses, strict=True)


def _columns(tallies: Tallies) -> dict[str, Any]:
    misses: dict[str, list[int]] = {}
    for index, tally in enumerate(tallies.values()):
        for cause, n in tally.misses.items():
            misses.setdefault(cause, []).extend((index, n))
    return {
        "keys": list(tallies),
        "valid": _packed("q", [t.verdicts for t in tallies.values()]),
        "on_time": _packed("q", [t.on_time for t in tallies.values()]),
        "misses": [[cause, _packed("q", pairs)] for cause, pairs in misses.items()],
    }


def _packed(form: str, numbers: Sequence[int]) -> bytes:
    """Return *numbers* as little-endian integers; *form*: i (32 bits) or q (64)."""
    return struct.pack(f"<{len(numbers)}{form}", *numbers)


def _unpacked(form: str, packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // struct.calcsize(form)}{form}", packed)


def _pairs(form: str, packed: bytes) -> Iterator[tuple[int, int]]:
    flat = _unpacked(form, packed)
    return zip(flat[::2], flat[1::2], strict=True)
