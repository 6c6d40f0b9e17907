"""The parts of a queue in Redis, and what to read of long ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rts.scheduling.encoding import headers_of, message_of
from rts.scheduling.layout import message_keys
from rts.scheduling.scripts import BYTES
from rts.validation import finite

#: Size of the sample of a queue, in messages.
SAMPLE = 500
#: Pages that a part is sampled in, evenly spread.
PAGES = 100
#: Least share of a sample for the messages ahead of the one in question.
AHEAD_SHARE = 0.75
#: Messages that one call of the search examines, at most.
SEARCH_PAGE = 500


class Part(NamedTuple):
    """One of the keys that a queue's messages wait in."""

    key: str
    #: Whether it is a sorted set; else it is a list, consumed from its right end.
    ordered: bool


class Page(NamedTuple):
    """Consecutive messages that are read together."""

    #: Number of the part.
    part: int
    ranks: range
    #: How many messages each of them stands for, itself included.
    weight: float


def parts_of(channel: Any, queue: str, *, ordered: bool) -> list[Part]:
    """Return a queue's parts in the order in which they are consumed. *channel*: kombu's;
    *ordered*: whether workers take from the queue in deadline order.
    """
    hopeful, demoted, *lists = message_keys(channel, queue)
    sets = [Part(hopeful, True), Part(demoted, True)] if ordered else []
    return [*sets, *(Part(key, False) for key in lists)]


def affordable(most: int, mean_bytes: float) -> int:
    """Return how many messages of this mean size to read, at most *most*, at least one."""
    return max(1, min(most, int(BYTES / max(1.0, mean_bytes))))


def sampled(
    sizes: Sequence[int], part: int, rank: int, most: int, *, ordered: bool
) -> list[Page]:
    """Return the pages to read of parts of these *sizes*, about *most* messages: of those up to
    this *rank* in a *part*, that one included, and in deadline order (*ordered*) of those
    behind it, which may overtake it.

    They are evenly spread over each part, with its last message. Those ahead get at least
    AHEAD_SHARE of them, if they need that many.
    """
    whole = [(number, range(size)) for number, size in enumerate(sizes)]
    size = sizes[part]
    itself = range(rank, min(size, rank + 1))
    ahead = [*whole[:part], (part, range(min(size, rank))), (part, itself)]
    # Once it is hopeless, hopeful and earlier demoted messages overtake it; those in the plain
    # lists will be adopted.
    behind = [(part, range(rank + 1, size)), *whole[part + 1 :]] if ordered else []
    room = max(int(AHEAD_SHARE * most), most - _size(behind))
    found: list[Page] = []
    for strata, share_of in ((ahead, room), (behind, most - min(room, _size(ahead)))):
        share = min(1.0, share_of / max(1, _size(strata)))
        for number, ranks in strata:
            pages = _spread(ranks, share) if ranks else []
            weight = len(ranks) / max(1, sum(map(len, pages)))
            found += [Page(number, page, weight) for page in pages]
    return found


def _size(strata: Sequence[tuple[int, range]]) -> int:
    return sum(len(ranks) for _, ranks in strata)


def _spread(ranks: range, share: float) -> list[range]:
    if share == 1.0:
        return [ranks]
    size = len(ranks)
    pages = max(1, min(PAGES, int(size * share)))
    each = max(1, int(size * share / pages))
    starts = [size * page // pages for page in range(pages)]
    found = [ranks[start : min(start + each, size - 1)] for start in starts]
    return [*(page for page in found if page), ranks[-1:]]


def search_order(
    channel: Any, part: Part, size: int, mean_bytes: float, arrival: float | None
) -> list[range]:
    """Return the pages to search a part of this *size* in; of a long list those first whose
    messages arrived at about *arrival*, if known.
    """
    length = affordable(SEARCH_PAGE, mean_bytes)
    pages = [range(first, first + length) for first in range(0, size, length)]
    if arrival is not None and size > 2 * SEARCH_PAGE and not part.ordered:
        rank = _rank_of(channel, part, size, arrival)
        pages.sort(key=lambda page: abs(page.start + length / 2 - rank))
    return pages


def _rank_of(channel: Any, part: Part, size: int, arrival: float) -> int:
    """Return the approximate rank in a list of what has arrived at *arrival*, by bisection:
    lists are ordered by arrival, except for requeued messages.
    """
    low, high = 0, size
    while high - low > SEARCH_PAGE // 2:
        middle = (low + high) // 2
        text: Any = channel.plain.lindex(part.key, -1 - middle)
        there = finite(headers_of(message_of(text or b"")).get("rts_arrival"))
        if there is None:
            break
        low, high = (middle, high) if there <= arrival else (low, middle)
    return (low + high) // 2
