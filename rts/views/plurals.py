"""Numbers with their nouns, for what the commands and Flower say."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "task"), counted(0, "task")
    ('1 task', '0 tasks')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
