"""Verdicts by class, packed by column so that those of many intervals load quickly.

A month of a few hundred classes is about ten thousand rows. As documents of their own they take
seconds to read; here each column is one binary value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: Key, verdicts, those on time, and misses by cause.
Row = tuple[str, int, int, Mapping[str, int]]


def pack(rows: Iterable[Row]) -> dict[str, Any]:
    """Return *rows* as one document; numbers are 64-bit little-endian integers."""
    rows = list(rows)
    causes: dict[str, list[int]] = {}
    for index, (_, _, _, misses) in enumerate(rows):
        for cause, n in misses.items():
            causes.setdefault(cause, []).extend((index, n))
    return {
        "keys": [key for key, *_ in rows],
        "valid": _packed([valid for _, valid, _, _ in rows]),
        "on_time": _packed([on_time for _, _, on_time, _ in rows]),
        "misses": [[cause, _packed(pairs)] for cause, pairs in causes.items()],
    }


def unpack(document: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of a packed document.

    >>> list(unpack(pack([("a", 3, 2, {"late": 1}), ("b", 1, 1, {})])))
    [('a', 3, 2, {'late': 1}), ('b', 1, 1, {})]
    """
    keys = document["keys"]
    misses: list[dict[str, int]] = [{} for _ in keys]
    for cause, packed in document["misses"]:
        flat = _unpacked(packed)
        for index, n in zip(flat[::2], flat[1::2], strict=True):
            misses[index][cause] = n
    columns = _unpacked(document["valid"]), _unpacked(document["on_time"])
    return zip(keys, *columns, misses, strict=True)


def _packed(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _unpacked(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // 8}q", packed)
