"""Replies of Redis as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def replies_as_text(replies: Sequence[Any]) -> dict[str, str]:
    """Return a reply to HGETALL as a dict of texts."""
    texts = [reply.decode("utf-8", "replace") for reply in replies]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def as_instant(reply: Sequence[bytes]) -> float:
    """Return a reply to TIME in epoch seconds.

    >>> as_instant([b"1893456000", b"250000"])
    1893456000.25
    """
    seconds, micros = reply
    return int(seconds) + int(micros) / 1e6


def as_counts(reply: Sequence[bytes]) -> dict[str, int]:
    """Return the whole numbers, at least 0, in a reply to HGETALL, by field."""
    found = {}
    for field, text in sorted(replies_as_text(reply).items()):
        try:
            number = int(text)
        except ValueError:
            continue  # not written by rts
        if number >= 0:
            found[field] = number
    return found
