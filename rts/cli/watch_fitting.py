"""Leaving out rows of ``rts watch`` where the terminal is too low for a large fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rts.cli.watch_data import WINDOWS, Snapshot
from rts.views.plurals import counted
from rts.views.selection import foremost

#: What :func:`tables` returns, one of each.
_NAMES = ("objective", "type", "queue", "worker")


def fitted(snapshot: Snapshot, rows: int) -> tuple[Snapshot, str]:
    """Return *snapshot* with about *rows* rows in all tables together, and a line that says
    what is left out. Those in most trouble stay, in their usual order.
    """
    whole = tables(snapshot)
    limits = shares([len(table) for table in whole], rows)
    left_out = [
        counted(len(table) - limit, name)
        for name, table, limit in zip(_NAMES, whole, limits, strict=True)
        if len(table) > limit
    ]
    objectives, types, queues, workers = limits
    vitals = snapshot.redis.vitals
    kept = set(foremost(snapshot.type_names, types, lambda name: _misses(snapshot, name)))
    return replace(
        snapshot,
        standings=foremost(
            snapshot.standings, objectives, lambda s: (bool(s.burning), -s.budget_left_ratio)
        ),
        types={
            window: {name: row for name, row in found.items() if name in kept}
            for window, found in snapshot.types.items()
        },
        queues=foremost(snapshot.queues, queues, lambda queue: queue.waiting),
        redis=replace(
            snapshot.redis,
            vitals=replace(
                vitals,
                workers=foremost(
                    vitals.workers,
                    workers,
                    lambda w: (w.is_silent(vitals.now), w.load.get("load", 0.0)),
                ),
            ),
        ),
    ), f"Not shown, in less trouble: {', '.join(left_out)}"


def tables(snapshot: Snapshot) -> tuple[Sequence[object], ...]:
    """Return what has a row each: objectives, types, queues and workers."""
    workers = snapshot.redis.vitals.workers
    return snapshot.standings, snapshot.type_names, snapshot.queues, workers


def shares(sizes: Sequence[int], room: int) -> list[int]:
    """Return how many rows each table gets of *room*: small ones all, the others alike.

    >>> shares([500, 6, 400, 300], 30)
    [8, 6, 8, 8]
    """
    limits = [0] * len(sizes)
    for done, table in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        share = (room - sum(limits)) // (len(sizes) - done)
        limits[table] = min(sizes[table], max(1, share))
    return limits


def _misses(snapshot: Snapshot, name: str) -> list[int]:
    rows = (snapshot.types.get(window, {}).get(name) for window in WINDOWS)
    return [0 if row is None else row.missed for row in rows]
