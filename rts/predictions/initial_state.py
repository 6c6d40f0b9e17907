"""The initial state of simulations, put together from the broker's queues and the fleet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from rts.deadlines import share_of_slots
from rts.errors import CommandError
from rts.ledger.recent import Recent
from rts.link.link import Link
from rts.predictions.fleet import MAX_RELATED, NOTED_S, Fleet, read_fleet, read_ratios
from rts.predictions.messages import WorkReader, id_of
from rts.predictions.open_queue import EMPTY, Found, QueueSample
from rts.predictions.queue_parts import SAMPLE
from rts.predictions.queue_reader import QueueReader
from rts.predictions.snapshot import Snapshot
from rts.predictions.taken_tasks import TakenTasks
from rts.predictions.work import Work, work_of
from rts.records import Execution, OpenTask
from rts.scheduling.discovery import routing_keys
from rts.scheduling.encoding import Message, headers_of
from rts.settings import Settings
from rts.simulation.orders import Order, order_in_use, order_of
from rts.simulation.queues import OrderMaker
from rts.tau.cache import POOL

#: kombu's default ``queue_order_strategy``.
IN_TURN = "round_robin"


class Picture(NamedTuple):
    """A snapshot, with what identifies its tasks and queues."""

    snapshot: Snapshot
    #: Position of the task in question among the waiting ones; ``None``: without one.
    position: int | None
    #: Ids of the held tasks.
    held: list[str]
    #: Numbers of the queues by the routing keys of their messages.
    numbers: Mapping[str, int]


class InitialState:
    """Builds snapshots from the broker's queues and the fleet. Raises
    :class:`rts.errors.StoreUnavailable` if Redis or the broker is unavailable.
    """

    def __init__(
        self, app: Any, settings: Settings, link: Link, broker: QueueReader, reader: WorkReader
    ) -> None:
        self._app = app
        self._settings = settings
        self._link = link
        self._broker = broker
        self._reader = reader

    def fleet(self, queue: str, max_related: int = 0) -> Fleet:
        """Return the fleet of *queue*, with *max_related* related queues at most: a task that
        runs already needs none.
        """
        keys_of = partial(routing_keys, self._app)
        return read_fleet(self._link, self._settings, queue, keys_of, max_related)

    def picture(
        self,
        queue: str,
        published: Iterable[OpenTask],
        priority: int = 0,
        found: Found | None = None,
    ) -> Picture:
        """Return the state of *queue* for a task that would be published now, with this
        *priority*, or for one that was *found* in it.

        *published*: tasks that this process has published within the last NOTED_S seconds,
        in that order. One that does not wait, is not held and not known to run must have
        started. Raises :class:`CommandError` if no worker consumes the queue.
        """
        broker = self._broker
        unacknowledged = broker.unacknowledged()
        with broker.open(queue) as opened:
            if found is not None:
                sample = opened.sample_of(found)
            else:
                sample = opened.sample(opened.part_of(priority))
        fleet = self.fleet(queue, MAX_RELATED)
        if not fleet.slots:
            raise CommandError(
                f"no worker with rts takes tasks from the queue {queue}: start one, or name "
                "the queue of the task"
            )
        samples = [sample, *self._related(fleet, sample)]
        taken = TakenTasks(fleet)
        taken.add_unacknowledged(unacknowledged, self._reader, self._is_acked_late)
        if all(len(each.messages) == each.total for each in samples):
            wait = {id_of(message) for each in samples for message in each.messages}
            taken.add_published(task for task in published if task.task_id not in wait)
        each = [*fleet.worker_slots.values()]
        share = share_of_slots(self._settings.hopeless_slots, each)
        settings = replace(self._settings, hopeless_slots=share)
        order = partial(order_of, order_in_use(settings), settings)
        snapshot = self.with_ratios(self._snapshot(fleet, samples, taken, order))
        return Picture(snapshot, sample.position, list(taken.held), fleet.numbers)

    def with_ratios(self, snapshot: Snapshot, *works: Work) -> Snapshot:
        """Return *snapshot* with the learned ratios of the types of its tasks, and *works*."""
        running = [run.work for run in snapshot.running]
        there = [*works, *snapshot.waiting, *snapshot.held, *running, *snapshot.recent_arrivals]
        types = {work.task_type for work in there} & self._settings.task_types.keys()
        missing = sorted({*types, POOL} - snapshot.ratios.keys())
        if not missing:
            return snapshot
        read = read_ratios(self._link, self._settings, missing)
        return replace(snapshot, ratios={**snapshot.ratios, **read})

    def _related(self, fleet: Fleet, sample: QueueSample) -> list[QueueSample]:
        """Return samples of the related queues, down to the same part as *sample*."""
        others = fleet.queues[1:]
        sizes = self._broker.waiting(others) if others else []
        most = SAMPLE // max(1, sum(size > 0 for size in sizes))
        found = []
        for queue, size in zip(others, sizes, strict=True):
            if size:
                with self._broker.open(queue) as opened:
                    found.append(opened.sample(sample.part, most=most))
            else:
                found.append(EMPTY)
        return found

    def _snapshot(
        self, fleet: Fleet, samples: Sequence[QueueSample], taken: TakenTasks, order: OrderMaker
    ) -> Snapshot:
        waiting = [
            self._reader.work(message, fleet.now, number, queue)._replace(weight=weight)
            for number, (queue, each) in enumerate(zip(fleet.queues, samples, strict=True))
            for message, weight in zip(each.messages, each.weights, strict=True)
        ]
        held = list(taken.held.values())
        recent, span_s, unseen_s = recent_arrivals(fleet, [*waiting, *held])
        return Snapshot(
            now=fleet.now,
            slots=fleet.slots,
            waiting=waiting,
            held=held,
            held_by=taken.held_by,
            running=list(taken.running.values()),
            ended=fleet.ended,
            recent_arrivals=recent,
            span_s=span_s,
            unseen_s=unseen_s,
            groups=fleet.groups,
            in_turn=self._in_turn(),
            share=fleet.share(busy_since(waiting, fleet.now, order())) or 1.0,
            turns=[each.turns for each in samples],
            order=order,
        )

    def _in_turn(self) -> bool:
        options = self._app.conf.broker_transport_options or {}
        return bool(options.get("queue_order_strategy", IN_TURN) == IN_TURN)

    def _is_acked_late(self, message: Message) -> bool:
        task = self._app.tasks.get(str(headers_of(message).get("task")))
        default = self._app.conf.task_acks_late
        return bool(getattr(task, "acks_late", default))


def busy_since(waiting: Sequence[Work], now: float, order: Order) -> float:
    """Return since when work has waited for every slot.

    Demoted tasks do not show that: they may have to wait beside a free one.
    """
    waits = [work for work in waiting if not order.is_demoted(work.waiting(0), now)]
    return min((max(work.arrival, work.ready) for work in waits), default=now)


def recent_arrivals(fleet: Fleet, present: list[Work]) -> tuple[list[Work], float, float]:
    """Return recent arrivals, and ``span_s`` and ``unseen_s`` of :class:`Snapshot`.

    From some instant on, all ends are known. Whatever has arrived since then is waiting, held,
    running, or among the recent runs; but a run that has just begun is not known yet. So the
    last NOTED_S seconds count only if more than usual has arrived in them, as in a burst:
    fewer may be no silence.
    """
    ends = [run.completed_at for run in fleet.recent]
    since = max(fleet.known_since, min(ends, default=fleet.now))
    runs: list[Recent | Execution] = [*fleet.recent, *fleet.own_running]
    arrived = {}
    for run in runs:
        number = fleet.numbers.get(run.queue or "", 0)
        arrived[run.task_id] = work_of(run, queue=number)
    works = [w for w in (*arrived.values(), *present) if since < w.arrival <= fleet.now]
    until = fleet.now - NOTED_S
    early = [work for work in works if work.arrival <= until]
    before = sum(work.weight for work in early)
    latest = sum(work.weight for work in works) - before
    if latest * (until - since) > before * NOTED_S:
        return works, fleet.now - since, 0.0
    return early, max(0.0, until - since), NOTED_S
