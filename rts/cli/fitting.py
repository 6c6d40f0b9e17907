"""Leaving out rows of ``rts watch`` where a window is too low for all of a large fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rts.cli.watch_data import WINDOWS, Snapshot
from rts.views.plurals import counted
from rts.views.selection import foremost
from rts.views.status import WorkerState


def fitted(snapshot: Snapshot, rows: int) -> tuple[Snapshot, str]:
    """Return *snapshot* with about *rows* rows in all tables together, and a line that says
    what is left out. Those in most trouble stay, in their usual order.
    """
    sizes = [len(table) for table in tables(snapshot)]
    limits = shares(sizes, rows)
    left_out = [size - limit for size, limit in zip(sizes, limits, strict=True)]
    names = ("objective", "type", "queue", "worker")
    told = [counted(n, name) for n, name in zip(left_out, names, strict=True) if n]
    types = set(foremost(_types(snapshot), limits[1], lambda key: _misses(snapshot, key)))
    workers = foremost(snapshot.redis.workers, limits[3], _strain)
    return replace(
        snapshot,
        standings=foremost(
            snapshot.standings, limits[0], lambda s: (bool(s.burning), -s.budget_left_ratio)
        ),
        types={
            window: {key: row for key, row in found.items() if key in types}
            for window, found in snapshot.types.items()
        },
        queues=foremost(snapshot.queues, limits[2], lambda queue: queue.waiting),
        redis=replace(snapshot.redis, workers=tuple(workers)),
    ), f"Not shown, in less trouble: {', '.join(told)}"


def tables(snapshot: Snapshot) -> tuple[Sequence[object], ...]:
    """Return what has a row each: objectives, types, queues and workers."""
    return snapshot.standings, _types(snapshot), snapshot.queues, snapshot.redis.workers


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


def _types(snapshot: Snapshot) -> list[str]:
    return sorted({key for found in snapshot.types.values() for key in found})


def _misses(snapshot: Snapshot, key: str) -> list[int]:
    rows = (snapshot.types.get(window, {}).get(key) for window in WINDOWS)
    return [0 if row is None else sum(row.misses.values()) for row in rows]


def _strain(worker: WorkerState) -> tuple[bool, float]:
    return worker.silent, float(worker.load.get("load", 0.0))
