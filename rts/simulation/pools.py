"""The workers that a recording tells of, and workers like them.

Workers that take from the same queues are a pool.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from rts.simulation.queues import WorkerGroup

#: A number of simultaneous runs counts if it lasted for this share of the busy time: clocks
#: of hosts differ by milliseconds, so that consecutive runs seem to overlap.
HELD_SHARE = 0.001
#: A worker that has run no task of a queue does not take from it if the probability of that,
#: were it to take from it like others, is at most this, divided by the number of workers: so
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


def pools_of(workers: Collection[WorkerRuns], queues: int) -> list[Pool]:
    """Return the *workers* by the *queues* (so many) that they take from.

    One that may be like another one, which has run tasks of more queues, is: it has run too few
    tasks to tell, or none was in the other queues in its time, as it was replaced by then.
    """
    alike: dict[tuple[int, ...], list[WorkerRuns]] = {}
    if queues == 1:
        alike = {(0,): list(workers)} if workers else {}
    else:
        started = [
            array(
                "d", sorted(chain.from_iterable(w.starts[n] for w in workers if n in w.starts))
            )
            for n in range(queues)
        ]
        total = [len(of) for of in started]
        chance = BY_CHANCE / max(1, len(workers))
        meanwhile = {}
        peers: defaultdict[frozenset[int], list[WorkerRuns]] = defaultdict(list)
        for worker in workers:
            first, last = min(worker.all_starts()), max(worker.all_starts())
            meanwhile[worker] = [
                bisect_right(of, last) - bisect_left(of, first) for of in started
            ]
            peers[frozenset(worker.starts)].append(worker)
        apart = {own: _apart(own, peers, meanwhile, chance) for own in peers}
        for worker in sorted(workers, key=lambda w: (len(w.starts), len(w.ends)), reverse=True):
            own = frozenset(worker.starts)
            possible = _possible(worker, meanwhile[worker], chance) - apart[own]
            taken = next(
                (known for known in alike if own <= set(known) <= possible),
                tuple(sorted(_possible(worker, total, chance) - apart[own])),
            )
            alike.setdefault(taken, []).append(worker)
    return [
        Pool(
            taken,
            most_at_a_time(
                chain.from_iterable(worker.all_starts() for worker in of),
                chain.from_iterable(worker.ends for worker in of),
            ),
            [most_at_a_time(worker.all_starts(), worker.ends) for worker in of],
        )
        for taken, of in alike.items()
    ]


def _possible(worker: WorkerRuns, total: Sequence[int], chance: float) -> set[int]:
    """Return the queues that a worker may take from: those that it has run tasks of, and those
    of which it may have run none by chance, with a probability above *chance*. *total*: the
    runs of all workers, by queue.
    """
    known = sum(total[queue] for queue in worker.starts)
    return {
        queue
        for queue, others in enumerate(total)
        if queue in worker.starts or (known / (known + others)) ** len(worker.ends) > chance
    }


def _apart(
    own: frozenset[int],
    peers: Mapping[frozenset[int], Sequence[WorkerRuns]],
    meanwhile: Mapping[WorkerRuns, Sequence[int]],
    chance: float,
) -> set[int]:
    """Return the queues from which workers that have run tasks of the queues *own* alone do not
    take: no worker has run tasks of *own* and of such a queue, and if these took from both, the
    probability of that would be at most *chance*. (All are judged together: each may have run
    too few to tell, such as of a rare queue that has a worker of its own.)

    *peers*: the workers by their queues; *meanwhile*: the runs of all in a worker's time, by
    queue.
    """

    def not_both(worker: WorkerRuns, queue: int) -> float:
        known = sum(meanwhile[worker][number] for number in own)
        share, runs = known / (known + meanwhile[worker][queue]), len(worker.ends)
        return float(share**runs + (1 - share) ** runs)

    return {
        queue
        for queue in range(len(meanwhile[peers[own][0]]))
        if queue not in own
        and math.prod(not_both(worker, queue) for worker in peers[own]) <= chance
        and not any(own | {queue} <= other for other in peers)
    }


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
