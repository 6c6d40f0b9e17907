"""The initial state of simulations, put together from the broker's queue and the fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rts.errors import CommandError
from rts.headers import instant
from rts.ledger.recent import Recent
from rts.link.link import Link
from rts.predictions.fleet import Fleet, read_fleet, read_ratios
from rts.predictions.messages import SAMPLE, id_of
from rts.predictions.queue_reader import EMPTY, QueueReader, QueueSample
from rts.predictions.snapshot import Running, Snapshot
from rts.predictions.work import Work, work_of
from rts.records import Execution, OpenTask
from rts.scheduling.encoding import NEVER, Message, place_of
from rts.scheduling.rule import Rule
from rts.settings import Settings
from rts.simulation.orders import Order, order_in_use, order_of
from rts.tasktypes import UNTYPED
from rts.tau.cache import POOL
from rts.unfinished.received import mark_of
from rts.validation import finite

#: Seconds after which a worker has reported that it has received a message.
REPORTED_S = 5.0
#: Least seconds that a message of unknown age is assumed to have waited.
AGE_S = 1.0

#: kombu's default ``queue_order_strategy``.
IN_TURN = "round_robin"

#: Returns the tau in seconds for a task type and name.
TauOf = Callable[[str, str], float]


class Picture(NamedTuple):
    """A snapshot, with what identifies its tasks, queues and workers."""

    snapshot: Snapshot
    #: Ids of the held tasks.
    held: list[str]
    #: Numbers of the queues by the routing keys of their messages.
    numbers: Mapping[str, int]
    #: Slots of each worker.
    worker_slots: Sequence[int]


class InitialState:
    """Builds snapshots from the broker's queues and the fleet."""

    def __init__(
        self, app: Any, settings: Settings, link: Link, broker: QueueReader, tau_of: TauOf
    ) -> None:
        self._app = app
        self._settings = settings
        self._link = link
        self._broker = broker
        self._tau_of = tau_of
        self._rule = Rule.of(settings)

    def fleet(self, queue: str) -> Fleet:
        """Return the fleet of *queue* without related queues, which suffices for a task that
        runs already.

        Raises:
            StoreUnavailable: Redis is unavailable.
        """
        return read_fleet(self._link, self._settings, queue, self.keys, max_related=0)

    def keys(self, queue: str) -> set[str]:
        """Return the routing keys of messages in *queue*, as far as the app knows them."""
        known = dict.get(self._app.amqp.queues, queue)
        if known is None:
            return {queue}
        # A queue with several bindings has no key of its own.
        bound = [binding.routing_key for binding in known.bindings]
        return {queue, *(bound or [known.routing_key])}

    def picture(
        self, queue: str, sample: QueueSample, published: Iterable[OpenTask]
    ) -> Picture:
        """Return the state of *queue*, given a *sample* of its messages.

        *published*: tasks that this process has published within the last NOTED_S seconds,
        in that order. One that neither waits nor is held or known to run must have started.

        Raises:
            CommandError: no worker consumes the queue.
            StoreUnavailable: Redis or the broker is unavailable.
        """
        fleet = read_fleet(self._link, self._settings, queue, self.keys)
        if not fleet.slots:
            raise CommandError(
                f"no worker with rts takes tasks from the queue {queue}: start one, or name "
                "the queue of the task"
            )
        now = fleet.now
        samples = [sample, *self._related(fleet, sample)]
        running = {
            run.task_id: Running(work_of(run), run.started_at or now, _group_of(run, fleet))
            for run in fleet.running
        }
        free = [group.slots for group in fleet.groups]
        for run in running.values():
            free[run.group] -= 1
        held, held_by = self._held(sample, running, free, fleet)
        waiting = [
            self.work(message, now, number, fleet.queues[number])._replace(weight=weight)
            for number, each in enumerate(samples)
            for message, weight in zip(each.messages, each.weights, strict=True)
        ]
        if all(len(each.messages) == each.total for each in samples):
            known = {*running, *held, *(run.task_id for run in fleet.recent)}
            known |= {id_of(m) or "" for each in samples for m in each.messages}
            missing = [task for task in published if task.task_id not in known]
            started = _just_started(fleet, missing, free)
            running.update(started[-max(1, fleet.slots - len(running)) :])
        recent, span_s = _recent_arrivals(fleet, [*waiting, *held.values()])
        snapshot = Snapshot(
            now=now,
            slots=fleet.slots,
            waiting=waiting,
            held=list(held.values()),
            held_by=held_by,
            running=list(running.values()),
            ended=ended_of(fleet),
            recent_arrivals=recent,
            span_s=span_s,
            groups=fleet.groups,
            in_turn=self._in_turn(),
            share=fleet.share(busy_since(waiting, now, self._order())) or 1.0,
            turns=[each.turns for each in samples],
        )
        snapshot = self.with_ratios(snapshot)
        return Picture(snapshot, list(held), fleet.numbers, fleet.worker_slots)

    def with_ratios(self, snapshot: Snapshot, *works: Work) -> Snapshot:
        """Return *snapshot* with the learned ratios of the types of its tasks, and *works*.

        Raises:
            StoreUnavailable: Redis is away.
        """
        running = [run.work for run in snapshot.running]
        there = [*works, *snapshot.waiting, *snapshot.held, *running, *snapshot.recent_arrivals]
        types = {work.task_type for work in there} & self._settings.task_types.keys()
        missing = sorted({*types, POOL} - snapshot.ratios.keys())
        if not missing:
            return snapshot
        read = read_ratios(self._link, self._settings, missing)
        return replace(snapshot, ratios={**snapshot.ratios, **read})

    def _order(self) -> Order:
        return order_of(order_in_use(self._settings), self._settings)

    def _related(self, fleet: Fleet, sample: QueueSample) -> list[QueueSample]:
        """Return samples of the related queues, down to the same part as *sample*."""
        others = fleet.queues[1:]
        sizes = self._broker.waiting(others) if others else []
        most = SAMPLE // max(1, sum(size > 0 for size in sizes))
        return [
            # The first sample contains the held messages of all queues.
            self._broker.read(queue, level=sample.level, most=most, held=1) if size else EMPTY
            for queue, size in zip(others, sizes, strict=True)
        ]

    def _in_turn(self) -> bool:
        options = self._app.conf.broker_transport_options or {}
        return bool(options.get("queue_order_strategy", IN_TURN) == IN_TURN)

    def _held(
        self, sample: QueueSample, running: dict[str, Running], free: list[int], fleet: Fleet
    ) -> tuple[dict[str, Work], list[int | None]]:
        """Return the tasks that workers hold and have not started, of all related queues, by
        id, and the numbers of the groups that hold them, ``None`` if unknown.

        A task that no worker holds any more is ready once it will be redelivered. Tasks with
        late acknowledgement are unacknowledged while they run: of those that are not known
        to run yet, the first ones are moved to *running*, as far as slots are *free*.
        """
        held: dict[str, Work] = {}
        held_by: list[int | None] = []
        etas = 0
        for key, message, taken_at in sample.held:
            task_id = id_of(message)
            number = fleet.numbers.get(key)
            # An app may publish an id again before its task has started.
            if number is None or task_id is None or task_id in running or task_id in held:
                continue
            work = self.work(message, fleet.now, number, fleet.queues[number])
            etas += work.ready > 0
            mark = mark_of(task_id)
            reported_at = max(taken_at, work.ready) + REPORTED_S
            orphaned = mark not in fleet.receivers and reported_at < fleet.now
            if orphaned and fleet.marks_complete(etas):
                held[task_id] = work._replace(ready=taken_at + sample.redelivery_s)
                held_by.append(None)
                continue
            taker = fleet.receivers.get(mark)
            takers = _takers(number, fleet, taker)
            if self._is_acked_late(message) and work.ready <= fleet.now:
                idle = next((n for n in takers if free[n] > 0), None)
                if idle is not None:
                    free[idle] -= 1
                    running[task_id] = Running(work, fleet.now, idle)
                    continue
            held[task_id] = work
            held_by.append(taker)
        return held, held_by

    def _is_acked_late(self, message: Message) -> bool:
        headers = message.get("headers") or {}
        task = self._app.tasks.get(str(headers.get("task")))
        default = self._app.conf.task_acks_late
        return bool(getattr(task, "acks_late", default))

    def work(self, message: Message, now: float, number: int = 0, queue: str = "*") -> Work:
        """Return the task of a message in *queue*, which has this *number*."""
        headers = message.get("headers")
        headers = headers if isinstance(headers, dict) else {}
        task_type = headers.get("task_type")
        if not isinstance(task_type, str) or task_type not in self._settings.task_types:
            task_type = UNTYPED
        eta = instant(headers.get("eta")) or 0.0
        place = place_of(message, self._rule.horizon(queue), 0.0)
        due = place.latest < NEVER
        name = str(headers.get("task"))
        tau = finite(headers.get("rts_tau"))
        # From a producer without rts, or one whose plan workers refuse: its arrival is unknown.
        if tau is None or not 0 < tau < 1e9:
            tau = self._tau_of(UNTYPED, name)
            arrival = min(place.arrival, now - AGE_S)
        else:
            arrival = place.arrival
        return Work(task_type, arrival, tau, place.score, eta, name, number, due=due)


def busy_since(waiting: Sequence[Work], now: float, order: Order) -> float:
    """Return since when work has waited for every slot.

    Demoted tasks do not show that: they may have to wait beside a free one.
    """
    waits = [work for work in waiting if not order.is_demoted(work.waiting(0), now)]
    return min((max(work.arrival, work.ready) for work in waits), default=now)


def ended_of(fleet: Fleet) -> list[tuple[Work, float]]:
    """Return the recent runs with their runtimes in seconds."""
    return [(work_of(run), max(0.0, run.runtime_s)) for run in fleet.recent]


def _just_started(
    fleet: Fleet, missing: list[OpenTask], free: Sequence[int]
) -> list[tuple[str, Running]]:
    """Return those of *missing* that have arrived as runs, with estimated starts: tasks of
    these queues that were published a moment ago, and neither wait, nor are known to run, nor
    have ended. *free*: free slots by group, not counting these.
    """
    left = [*free]
    found = []
    for task in missing:
        number = fleet.numbers.get(task.queue or "")
        if number is None or task.arrival > fleet.now:
            continue
        takers = _takers(number, fleet, fleet.receivers.get(mark_of(task.task_id)))
        group = max(takers, key=left.__getitem__, default=None)
        if group is None:
            continue
        left[group] -= 1
        since = max(task.arrival, fleet.now - task.tau / 2)
        found.append((task.task_id, Running(work_of(task), since, group)))
    return found


def _takers(queue: int, fleet: Fleet, holder: int | None = None) -> list[int]:
    """Return the groups that may hold a message of *queue*: the *holder*, if known, else
    all that consume it.
    """
    if holder is not None:
        return [holder]
    return [n for n, group in enumerate(fleet.groups) if queue in group.queues]


def _group_of(run: Execution, fleet: Fleet) -> int:
    if run.instance in fleet.group_of:
        return fleet.group_of[run.instance]
    # Its worker is gone, or has no rts: assign it to another one.
    return next(iter(_takers(fleet.numbers.get(run.queue or "", 0), fleet)), 0)


def _recent_arrivals(fleet: Fleet, present: list[Work]) -> tuple[list[Work], float]:
    """Return recent arrivals, and the seconds within which they are complete.

    Everything that has arrived since the first end that is known completely is waiting, held,
    running, or among the recent runs.
    """
    ends = [run.completed_at for run in fleet.recent]
    since = max(fleet.known_since, min(ends, default=fleet.now))
    runs: list[Recent | Execution] = [*fleet.recent, *fleet.own_running]
    arrived = {}
    for run in runs:
        number = fleet.numbers.get(run.queue or "", 0)
        arrived[run.task_id] = work_of(run, queue=number)
    works = [*arrived.values(), *present]
    return [w for w in works if since < w.arrival <= fleet.now], fleet.now - since
