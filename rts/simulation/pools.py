"""The workers that a recording tells of, and workers like them.

Workers that take from the same queues are a pool.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from rts.simulation.queues import WorkerGroup

#: A number of simultaneous runs counts if it lasted for this share of the busy time: clocks
#: of hosts differ by milliseconds, so that consecutive runs seem to overlap.
HELD_SHARE = 0.001
#: A worker that has run no task of a queue does not take from it if the probability of that,
#: were it to take from it like others, is at most this.
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
        self.starts, self.ends = array("d"), array("d")
        #: How many came from each queue.
        self.of_queue: Counter[int] = Counter()


def pools_of(workers: Iterable[WorkerRuns], queues: int) -> list[Pool]:
    """Return the *workers* by the *queues* (so many) that they take from."""
    total: Counter[int] = Counter()
    for worker in workers:
        total += worker.of_queue
    alike: dict[tuple[int, ...], list[WorkerRuns]] = {}
    for worker in workers:
        taken = _taken_from(worker.of_queue, total, queues) if queues > 1 else (0,)
        alike.setdefault(taken, []).append(worker)
    return [
        Pool(
            taken,
            most_at_a_time(
                chain.from_iterable(worker.starts for worker in of),
                chain.from_iterable(worker.ends for worker in of),
            ),
            [most_at_a_time(worker.starts, worker.ends) for worker in of],
        )
        for taken, of in alike.items()
    ]


def _taken_from(own: Counter[int], total: Counter[int], queues: int) -> tuple[int, ...]:
    """Return the queues that a worker takes from, by the numbers of its *own* runs and the
    *total* of all workers: those that it has run tasks of, and those of which it may have run
    none by chance.
    """
    known = sum(total[queue] for queue in own)
    return tuple(
        queue
        for queue in range(queues)
        if queue in own or (known / (known + total[queue])) ** own.total() > BY_CHANCE
    )


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
