"""The workers that a recording tells of, and workers like them.

Workers that take from the same queues are a pool.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from rts.simulation.queues import WorkerGroup

#: A number of simultaneous runs counts if it lasted for this share of the busy time: clocks
#: of hosts differ by milliseconds, so that consecutive runs seem to overlap.
HELD_SHARE = 0.001
#: Workers that have run no task of a queue do not take from it if the probability of that, were
#: they to take from it like others, is at most this, divided by the number of workers: so
#: rarely is any of them taken for one of another kind.
BY_CHANCE = 0.01


class Pool(NamedTuple):
    """Workers that take from the same queues."""

    queues: tuple[int, ...]
    #: Slots of all at a time, at least 1.
    slots: int
    #: Slots of each: in sum more, if one has replaced another.
    workers: Sequence[int]


class WorkerRuns:
    """The recorded runs of a worker."""

    def __init__(self) -> None:
        #: By the numbers of their queues.
        self.starts: defaultdict[int, array[float]] = defaultdict(lambda: array("d"))
        self.ends = array("d")

    def add(self, queue: int, started_at: float, completed_at: float) -> None:
        """Add a run of a task from *queue*."""
        self.starts[queue].append(started_at)
        self.ends.append(completed_at)

    def all_starts(self) -> Iterable[float]:
        """Return the starts of all its runs."""
        return chain.from_iterable(self.starts.values())


class _Kind:
    """Workers that take from the same queues."""

    def __init__(self) -> None:
        self.queues: set[int] = set()
        self.workers: list[WorkerRuns] = []
        self.runs = 0

    def add(self, worker: WorkerRuns) -> None:
        """Add one that may take from the same queues."""
        self.queues.update(worker.starts)
        self.workers.append(worker)
        self.runs += len(worker.ends)


def pools_of(workers: Collection[WorkerRuns], queues: int) -> list[Pool]:
    """Return the *workers* by the *queues* (so many) that they take from.

    Workers take from the same queues, all that any of them has run tasks of, unless it is no
    chance that some have run none of theirs: one may have run too few tasks to tell. Or none
    was in the other queues in its time, as it was replaced by then; but that counts only where
    others have run tasks of both. Of a queue of which no worker has run a task, all take.
    """
    if queues == 1:
        return [_pool((0,), workers)] if workers else []
    starts = [
        array("d", sorted(chain.from_iterable(w.starts[n] for w in workers if n in w.starts)))
        for n in range(queues)
    ]
    total = [len(of) for of in starts]
    rare = BY_CHANCE / max(1, len(workers))

    def meanwhile(worker: WorkerRuns) -> list[int]:
        """Return how many runs of each queue have started in the time of *worker*."""
        first, last = min(worker.all_starts()), max(worker.all_starts())
        return [bisect_right(of, last) - bisect_left(of, first) for of in starts]

    def may_share(own: frozenset[int], alike: Collection[WorkerRuns], kind: _Kind) -> bool:
        """Return whether those of *kind* may have run none of a queue in *own*, those of the
        workers *alike*, by chance. All are judged together: each may have run too few to tell.
        """
        both = sum(total[queue] for queue in own | kind.queues)
        if own.isdisjoint(kind.queues):  # then these have run none of theirs either
            share = sum(total[queue] for queue in own) / both
            runs = (len(worker.ends) for worker in chain(alike, kind.workers))
            return math.prod(share**n + (1 - share) ** n for n in runs) > rare
        return all((1 - total[queue] / both) ** kind.runs > rare for queue in own - kind.queues)

    def may_join(worker: WorkerRuns, kind: _Kind) -> bool:
        """Return whether *worker* may have run none of a queue of *kind* by chance."""
        own = worker.starts.keys()
        runs = meanwhile(worker) if own <= kind.queues else total
        both = sum(runs[queue] for queue in own | kind.queues)
        tries = len(worker.ends)
        return all((1 - runs[queue] / both) ** tries > rare for queue in kind.queues - own)

    by_queues: defaultdict[frozenset[int], list[WorkerRuns]] = defaultdict(list)
    for worker in sorted(workers, key=lambda worker: len(worker.ends), reverse=True):
        by_queues[frozenset(worker.starts)].append(worker)
    kinds: list[_Kind] = []
    for own, alike in sorted(by_queues.items(), key=lambda of: len(of[0]), reverse=True):
        possible = [kind for kind in kinds if may_share(own, alike, kind)]
        for worker in alike:
            most_first = sorted(possible, key=lambda kind: len(kind.queues), reverse=True)
            kind = next((kind for kind in most_first if may_join(worker, kind)), None)
            if kind is None:
                kind = _Kind()
                kinds.append(kind)
                possible.append(kind)
            kind.add(worker)
    idle = {queue for queue, of in enumerate(starts) if not of}
    return [_pool(tuple(sorted(kind.queues | idle)), kind.workers) for kind in kinds]


def _pool(queues: tuple[int, ...], workers: Collection[WorkerRuns]) -> Pool:
    starts = chain.from_iterable(worker.all_starts() for worker in workers)
    ends = chain.from_iterable(worker.ends for worker in workers)
    each = [most_at_a_time(worker.all_starts(), worker.ends) for worker in workers]
    return Pool(queues, most_at_a_time(starts, ends), each)


def most_at_a_time(starts: Iterable[float], ends: Iterable[float]) -> int:
    """Return the highest number of simultaneous intervals that lasted long enough
    (``HELD_SHARE``); at least 1.

    >>> most_at_a_time([1e9, 1e9 + 1, 1e9 + 5], [1e9 + 3, 1e9 + 4, 1e9 + 9])
    2
    """
    begins, over = sorted(starts), sorted(ends)
    held_s: defaultdict[int, float] = defaultdict(float)
    since, begun = 0.0, 0
    for ended, end in enumerate(over):
        while begun < len(begins) and begins[begun] < end:
            level = begun - ended
            held_s[level] += begins[begun] - since
            since = begins[begun]
            begun += 1
        level = begun - ended
        held_s[level] += end - since
        since = end
    held_s.pop(0, None)
    left = HELD_SHARE * sum(held_s.values())
    for level in sorted(held_s, reverse=True):
        left -= held_s[level]
        if left < 0:
            return max(1, level)
    return 1


def spread(slots: int, pools: Sequence[Pool], held_per_slot: float = 0.0) -> list[WorkerGroup]:
    """Return workers with *slots* in all: each of the *pools* has its part of them, in workers
    as large as there.

    If there are fewer slots than pools, one worker takes from all queues. *held_per_slot*:
    messages that a worker prefetches per slot besides those that run: Celery's
    ``worker_prefetch_multiplier``, one less with late acknowledgement; may be infinite. In
    deadline order it is 0.

    >>> two = [Pool((0,), 2, [1, 1]), Pool((0, 1), 4, [4])]
    >>> [(worker.slots, worker.queues) for worker in spread(9, two)]
    [(1, (0,)), (1, (0,)), (1, (0,)), (4, (0, 1)), (2, (0, 1))]
    """
    if slots < len(pools) or not pools:
        queues = tuple(sorted({number for pool in pools for number in pool.queues})) or (0,)
        return [WorkerGroup(slots, queues, slots * held_per_slot)]
    most = sum(pool.slots for pool in pools)
    found, left = [], slots
    for rest, pool in zip(range(len(pools) - 1, -1, -1), pools, strict=True):
        part = min(left - rest, max(1, round(left * pool.slots / most)))
        left, most = left - part, most - pool.slots
        found += [
            WorkerGroup(each, pool.queues, each * held_per_slot)
            for each in split(part, pool.workers)
        ]
    return found


def split(slots: int, workers: Sequence[int]) -> list[int]:
    """Split *slots* into workers of the sizes of *workers*: as they are, or their median.

    >>> split(5, [3, 1, 1]), split(7, [2, 2]), split(4, [3, 1, 2]), split(3, [])
    ([3, 1, 1], [2, 2, 2, 1], [2, 2], [3])
    """
    if sum(workers) == slots:
        return list(workers)
    size = sorted(workers)[len(workers) // 2] if workers else slots
    whole, rest = divmod(slots, size)
    return [size] * whole + [rest] * (rest > 0)
