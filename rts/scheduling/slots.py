"""What holds the slots of a worker."""

from __future__ import annotations

from typing import Any

from celery.worker import state

from rts.deadlines import demoted_slots
from rts.scheduling.capacity import slots_of
from rts.scheduling.channel import DeadlineOrder
from rts.scheduling.poller import FULL_S

#: Seconds between looks of a loop while the worker has no task.
IDLE_S = 0.05


class Slots:
    """What the transport asks before each claim. See :class:`rts.scheduling.rule.SlotGauge`."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        #: Ids of the demoted tasks that hold a slot.
        self._demoted: set[object] = set()

    @property
    def count(self) -> int:
        """Tasks that may run at a time; with autoscaling the most there may be."""
        return slots_of(self._consumer.controller)

    def free(self) -> bool:
        """See :class:`rts.scheduling.rule.SlotGauge`."""
        # Celery: what is taken up and has not ended. Held back with an eta does not count.
        held, count = state.reserved_requests, self.count
        if len(held) >= count:
            return False
        # Celery < 5.7 forgets at a reconnect what goes on running.
        running = [each for each in _list(state.active_requests) if each not in held]
        return len(held) + sum(map(_is_awaited, running)) < count

    def demoted_may(self, share: float) -> bool:
        """See :class:`rts.scheduling.rule.SlotGauge`."""
        if not self._demoted:
            return True
        held = _list(state.reserved_requests) + _list(state.active_requests)
        self._demoted &= {request.id for request in held}
        return len(self._demoted) < demoted_slots(share, self.count)

    def claimed_demoted(self, task_id: object) -> None:
        """See :class:`rts.scheduling.rule.SlotGauge`."""
        self._demoted.add(task_id)


def _is_awaited(request: Any) -> bool:
    """Return whether the pool will tell of the end of *request*.

    That of Celery 5.5 drops at a reconnect what it waits for, whose requests are then
    active for ever.
    """
    result = getattr(request, "_apply_result", None)  # a weak reference
    return result is not None and result() is not None


def _list(requests: Any) -> list[Any]:
    """Return what is in a set of Celery's, which other threads change."""
    while True:
        try:
            return list(requests)
        except RuntimeError:  # changed meanwhile
            continue


def _wake_often(hub: Any) -> None:
    """Wake the loop of *hub* again and again, less often while there is nothing to do."""
    busy = state.reserved_requests or state.active_requests
    hub.call_later(FULL_S if busy else IDLE_S, _wake_often, hub)


def show_slots(consumer: Any, slots: Slots | None) -> Slots | None:
    """Have the channel of *consumer*, Celery's, take nothing past the free slots.

    Returns the slots, to be given again (*slots*) at the next connection, since tasks
    go on while a connection breaks; ``None`` where the channel is not in deadline order.
    """
    channel = consumer.task_consumer.channel
    if not isinstance(channel, DeadlineOrder):
        return None
    channel.slots = slots or Slots(consumer)
    hub = getattr(consumer, "hub", None)
    if hub is not None and not getattr(consumer.pool, "uses_semaphore", False):
        # A thread ends without an event that wakes the loop, as a pool process gives. (The
        # timer is cleared with the connection.)
        _wake_often(hub)
    return channel.slots
