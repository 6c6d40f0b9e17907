"""Verdicts by class, packed so that many intervals of them can be read in an instant.

A month of some hundred classes is some ten thousand rows. As documents of their own they
take seconds to read; here each column is one piece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: Key, verdicts, how many were on time, and the others by cause.
Row = tuple[str, int, int, Mapping[str, int]]


def pack(rows: Iterable[Row]) -> dict[str, Any]:
    """Return *rows* as one document; numbers have 64 bit, least byte first."""
    rows = list(rows)
    causes: dict[str, list[int]] = {}
    for place, (_, _, _, misses) in enumerate(rows):
        for cause, n in misses.items():
            causes.setdefault(cause, []).extend((place, n))
    return {
        "keys": [key for key, *_ in rows],
        "valid": _packed([valid for _, valid, _, _ in rows]),
        "on_time": _packed([on_time for _, _, on_time, _ in rows]),
        "misses": [[cause, _packed(pairs)] for cause, pairs in causes.items()],
    }


def unpack(document: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows again.

    >>> list(unpack(pack([("a", 3, 2, {"late": 1}), ("b", 1, 1, {})])))
    [('a', 3, 2, {'late': 1}), ('b', 1, 1, {})]
    """
    keys = document["keys"]
    misses: list[dict[str, int]] = [{} for _ in keys]
    for cause, packed in document["misses"]:
        flat = _unpacked(packed)
        for place, n in zip(flat[::2], flat[1::2], strict=True):
            misses[place][cause] = n
    columns = _unpacked(document["valid"]), _unpacked(document["on_time"])
    return zip(keys, *columns, misses, strict=True)


def _packed(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _unpacked(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // 8}q", packed)
