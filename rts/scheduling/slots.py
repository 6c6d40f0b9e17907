"""A worker's slots: how many are free, and how many demoted tasks hold."""

from __future__ import annotations

from typing import Any

from celery.worker import state

from rts.deadlines import demoted_slots
from rts.forks import copied
from rts.scheduling.channel import DeadlineOrder
from rts.scheduling.poller import MAX_POLL_S
from rts.scheduling.worker_capacity import slots_of

#: Seconds between wake-ups of the event loop while the worker has no task.
IDLE_S = 0.05


class Slots:
    """The slots of a running Celery worker."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        #: Ids of the demoted tasks that hold a slot, some of which may have ended.
        self._demoted: set[object] = set()
        #: The timer of :meth:`keep_waking`.
        self._timer: Any = None

    @property
    def count(self) -> int:
        """Tasks that may run at a time; with autoscaling the maximum."""
        return slots_of(self._consumer.controller)

    def free(self) -> bool:
        """Return whether a task could start now."""
        if not self._consumer.pool.active:
            return False  # a cold shutdown has stopped it, from within the event loop
        # Requests that have not ended; those that wait for an eta are not among them.
        reserved, count = state.reserved_requests, self.count
        if len(reserved) >= count:
            return False
        # Celery < 5.7 drops running requests from the reserved ones at a reconnect. By the sets
        # of references within: this is asked several times per task, and a worker with a
        # thousand greenlets would spend more time here than on the tasks.
        running = state.active_requests.data - reserved.data
        return len(reserved) + sum(self._awaits(reference()) for reference in running) < count

    def _awaits(self, request: Any) -> bool:
        """Return whether the pool will report the end of *request*; ``None`` is one that is
        gone.

        Celery < 5.6.3's prefork pool drops its pending results at a reconnect; their requests
        stay active for ever.
        """
        if not getattr(self._consumer.pool, "uses_semaphore", False):
            return request is not None
        result = getattr(request, "_apply_result", None)  # a weak reference
        return result is not None and result() is not None

    def may_take_demoted(self, share: float) -> bool:
        """Return whether another demoted task may run; they may hold *share* of the slots."""
        if not self._demoted:
            return True
        requests = copied(state.reserved_requests) + copied(state.active_requests)
        self._demoted &= {request.id for request in requests}
        return len(self._demoted) < demoted_slots(share, self.count)

    def claimed_demoted(self, task_id: object) -> None:
        """Record that a demoted task was claimed."""
        self._demoted.add(task_id)

    def keep_waking(self, hub: Any) -> None:
        """Wake the event loop of *hub* periodically, less often while no task runs."""
        if self._timer is not None:
            self._timer.cancel()  # of the previous connection, which Celery < 5.7 clears
        busy = state.reserved_requests or state.active_requests
        self._timer = hub.call_later(MAX_POLL_S if busy else IDLE_S, self.keep_waking, hub)


def limit_to_slots(consumer: Any, slots: Slots | None) -> Slots | None:
    """Make the channel of a Celery *consumer* claim only as many tasks as it has free slots.

    Returns the slots; pass them again as *slots* at the next connection, since tasks keep
    running while a connection breaks. ``None`` if the channel is not in deadline order.
    """
    channel = consumer.task_consumer.channel
    if not isinstance(channel, DeadlineOrder):
        return None
    channel.slots = slots = slots or Slots(consumer)
    hub = getattr(consumer, "hub", None)
    if hub is not None and not getattr(consumer.pool, "uses_semaphore", False):
        # The end of a task in a thread wakes no event loop, unlike that in a pool process.
        slots.keep_waking(hub)
    return slots
