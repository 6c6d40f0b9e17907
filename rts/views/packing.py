"""The stored format of tallies: small, and cheap to read.

``CLASSES`` has many tallies of few numbers each: see :mod:`rts.views.columns`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rts.views import columns
from rts.views.tally import BUCKETS, CLASSES, NUMBERS, Tallies, Tally


def pack(tallies: Tallies, by: str) -> Any:
    """Return tallies that are grouped by *by* as they are stored."""
    if by == CLASSES:
        return columns.pack(
            (key, t.verdicts, t.on_time, t.misses) for key, t in tallies.items()
        )
    return [
        {
            "key": key,
            "numbers": [getattr(t, name) for name in NUMBERS],
            "misses": [list(item) for item in t.misses.items()],
            "buckets": [_pack_buckets(getattr(t, name)) for name in BUCKETS],
        }
        for key, t in tallies.items()
    ]


def unpack(packed: Any, by: str, key: str | None = None) -> Tallies:
    """Return the tallies that were packed; only that of *key*, if given (not of CLASSES)."""
    if by == CLASSES:
        return {
            key: Tally(verdicts=valid, on_time=good, misses=Counter(misses))
            for key, valid, good, misses in columns.unpack(packed)
        }
    tallies: Tallies = {}
    for p in packed:
        if key is not None and p["key"] != key:
            continue
        counted = tallies[p["key"]] = Tally(misses=Counter(dict(p["misses"])))
        for name, value in zip(NUMBERS, p["numbers"], strict=True):
            setattr(counted, name, value)
        for name, part in zip(BUCKETS, p["buckets"], strict=True):
            setattr(counted, name, _unpack_buckets(part))
    return tallies


def _pack_buckets(buckets: Mapping[int, int]) -> bytes:
    """Return bucket numbers and counts as pairs of 32-bit little-endian integers."""
    flat = [n for item in buckets.items() for n in item]
    return struct.pack(f"<{len(flat)}i", *flat)


def _unpack_buckets(packed: bytes) -> Counter[int]:
    flat = struct.unpack(f"<{len(packed) // 4}i", packed)
    return Counter(dict(zip(flat[::2], flat[1::2], strict=True)))
