"""The slots of a worker: how many tasks it runs at a time, and what holds them."""

from __future__ import annotations

from typing import Any

from celery.worker import state

from rts.scheduling.transport import DeadlineOrder


class Slots:
    """What the transport asks before each claim. See :class:`rts.scheduling.rule.SlotGauge`."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        #: Ids of the demoted tasks that hold a slot.
        self._demoted: set[object] = set()

    @property
    def count(self) -> int:
        """Tasks that may run at a time; with autoscaling the most there may be."""
        most = getattr(self._consumer.controller, "max_concurrency", None)
        return int(most or self._consumer.pool.num_processes or 1)

    def free(self) -> bool:
        """See :class:`rts.scheduling.rule.SlotGauge`."""
        # Celery: what is taken up and has not ended. Held back with an eta does not count.
        return len(state.reserved_requests) < self.count

    def demoted_may(self, share: float) -> bool:
        """See :class:`rts.scheduling.rule.SlotGauge`."""
        if not self._demoted:
            return True
        self._demoted &= {request.id for request in list(state.reserved_requests)}
        return len(self._demoted) < max(1, int(share * self.count))

    def claimed_demoted(self, task_id: object) -> None:
        """See :class:`rts.scheduling.rule.SlotGauge`."""
        self._demoted.add(task_id)


def show_slots(consumer: Any) -> None:
    """Have the channel of *consumer*, Celery's, take nothing past the free slots."""
    channel = consumer.task_consumer.channel
    if isinstance(channel, DeadlineOrder):
        channel.slots = Slots(consumer)
