"""Reading the queues of a broker on Redis, in either order, without consuming."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rts.errors import CommandError
from rts.predictions.messages import Held, read
from rts.predictions.open_queue import Found, OpenQueue
from rts.predictions.queue_parts import parts_of, search_order
from rts.predictions.shared_connection import SharedConnection
from rts.predictions.survey import survey
from rts.scheduling.encoding import message_of
from rts.scheduling.scripts import ScriptByHash
from rts.settings import Settings

#: Messages to search for a task, at most.
SEARCHED = 1_000_000
#: Unacknowledged messages to read, at most: those taken last.
HELD = 1000

FIND_TASK = ScriptByHash("find_task")


class Unacknowledged(NamedTuple):
    """The messages of all queues that workers have taken and not acknowledged."""

    #: Those taken last, in the order in which they were taken.
    held: list[Held]
    #: Seconds after which a message is redelivered.
    redelivery_s: float


class QueueReader:
    """Reads queues over one kombu connection. Safe with threads.

    Each question raises :class:`CommandError` if the broker is not Redis, and
    :class:`rts.errors.StoreUnavailable` if it is unavailable.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._ordered = settings.scheduler == "edf"
        self._shared = SharedConnection(app, settings)

    def close(self) -> None:
        """Close the connection, as soon as no thread reads any more."""
        self._shared.close()

    @contextmanager
    def open(self, queue: str) -> Iterator[OpenQueue]:
        """Open a queue for reading."""
        with self._shared.channel() as channel:
            yield OpenQueue(channel, queue, ordered=self._ordered)

    def find(
        self, task_id: str, queues: Iterable[str], arrival: float | None = None
    ) -> Found | None:
        """Return where a task waits in one of *queues*; ``None``: in none. In long lists the
        search starts near *arrival*, if known. Raises :class:`CommandError` if more than
        SEARCHED messages wait.
        """
        with self._shared.channel() as channel:
            places = [
                (queue, number, part)
                for queue in queues
                for number, part in enumerate(parts_of(channel, queue, ordered=self._ordered))
            ]
            found = survey(channel, [part for _, _, part in places])
            ids = {json.dumps(task_id, ensure_ascii=escaped) for escaped in (True, False)}
            left = SEARCHED
            measured = zip(places, found.sizes, found.mean_bytes, strict=True)
            for (queue, number, part), size, mean_bytes in measured:
                for page in search_order(channel, part, size, mean_bytes, arrival):
                    if left <= 0:
                        raise CommandError(
                            f"{task_id} is not among the first {SEARCHED:,} waiting "
                            "messages; name its queue, if there are several"
                        )
                    left -= len(page)
                    asked = [page.start, page.stop - 1, *ids]
                    if there := FIND_TASK.run(channel.plain, [part.key], asked):
                        rank, text = there
                        return Found(queue, number, int(rank), message_of(text))
        return None

    def unacknowledged(self) -> Unacknowledged:
        """Return the unacknowledged messages of all queues."""
        with self._shared.channel() as channel:
            # The latest ones, as messages held for an eta may have been taken long ago.
            found = survey(channel, unacked=HELD, which="latest")
            _, held = read(channel, taken=found.affordable_taken()[::-1])
            return Unacknowledged(held, float(channel.visibility_timeout))

    def waiting(self, queues: Sequence[str]) -> list[int]:
        """Return the number of messages that wait in each of *queues*."""
        with self._shared.channel() as channel:
            parts = [parts_of(channel, queue, ordered=self._ordered) for queue in queues]
            flat = [part for of_queue in parts for part in of_queue]
            sizes = iter(survey(channel, flat).sizes)
            return [sum(next(sizes) for _ in of_queue) for of_queue in parts]
