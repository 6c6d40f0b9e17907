"""A queue and its workers at one moment, as simulations begin with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rts.deadlines import hopeful_until
from rts.errors import CommandError
from rts.headers import instant
from rts.ledger.received import mark_of
from rts.ledger.recent import Recent
from rts.link.link import Link
from rts.predictions.fleet import Fleet, read_fleet
from rts.predictions.messages import SAMPLE, Message, id_of
from rts.predictions.queue_reader import EMPTY, Broker, Look
from rts.predictions.sampling import Work
from rts.predictions.snapshot import Running, Snapshot
from rts.records import Execution, OpenTask
from rts.scheduling.places import NEVER, place_of
from rts.scheduling.rule import Rule
from rts.settings import Settings
from rts.tasktypes import UNTYPED
from rts.validation import finite

#: Seconds after which a worker has told that it has received a message.
TOLD_S = 5.0
#: Seconds for which a message has waited at least whose age is not known.
AGE_S = 1.0

#: The strategy of kombu's by which a worker asks its queues in turn, unless told otherwise.
IN_TURN = "round_robin"

#: Returns the tau in seconds for a task type and name.
TauOf = Callable[[str, str], float]


class Picture(NamedTuple):
    """A queue, the queues beside it and their workers at one moment."""

    snapshot: Snapshot
    #: Ids of what is held.
    held: list[str]
    #: Numbers of the queues, by the routing keys of their messages.
    numbers: Mapping[str, int]
    #: Slots of each worker.
    workers: Sequence[int]


class InitialState:
    """Puts together what the broker's queue and the workers tell."""

    def __init__(
        self, app: Any, settings: Settings, link: Link, broker: Broker, tau_of: TauOf
    ) -> None:
        self._app = app
        self._settings = settings
        self._link = link
        self._broker = broker
        self._tau_of = tau_of
        self._rule = Rule.of(settings)

    def fleet(self, queue: str) -> Fleet:
        """Return the workers of *queue* alone: what runs waits for no other queue.

        Raises:
            StoreUnavailable: Redis is away.
        """
        return read_fleet(self._link, self._settings, queue, self.keys, most_beside=0)

    def keys(self, queue: str) -> set[str]:
        """Return the routing keys by which messages come into *queue*."""
        known = dict.get(self._app.amqp.queues, queue)
        return {queue, *([] if known is None else [known.routing_key])}

    def picture(self, queue: str, look: Look, sent: Iterable[OpenTask] = ()) -> Picture:
        """Return what is to be known of *queue*, of which *look* tells what waits.

        *sent*: what this process has published within the last NOTED_S seconds, the
        latest last: what is nowhere else has begun.

        Raises:
            CommandError: no worker takes from the queue.
            StoreUnavailable: Redis, or the broker, is away.
        """
        fleet = read_fleet(self._link, self._settings, queue, self.keys)
        if not fleet.slots:
            raise CommandError(
                f"no worker with rts takes tasks from the queue {queue}: start one, or name "
                "the queue of the task"
            )
        now = fleet.now
        looks = [look, *self._beside(fleet, look)]
        running = {
            run.task_id: Running(work_of(run), run.started_at or now, _crew_of(run, fleet))
            for run in fleet.running
        }
        free = [crew.slots for crew in fleet.crews]
        for run in running.values():
            free[run.crew] -= 1
        held, held_by = self._held(look, running, free, fleet)
        waiting = [
            self.work(message, now, number, fleet.queues[number])._replace(weight=weight)
            for number, each in enumerate(looks)
            for message, weight in zip(each.messages, each.weights, strict=True)
        ]
        if all(len(each.messages) == each.total for each in looks):
            known = {*running, *held, *(id_of(m) for each in looks for m in each.messages)}
            missing = [t for t in sent if t.task_id not in known and t.queue in fleet.numbers]
            begun = _begun(fleet, missing, free)
            running.update(begun[-max(1, fleet.slots - len(running)) :])
        lately, span_s = _lately(fleet, [*waiting, *held.values()])
        snapshot = Snapshot(
            now=now,
            slots=fleet.slots,
            waiting=waiting,
            held=list(held.values()),
            held_by=held_by,
            running=list(running.values()),
            ratios=fleet.ratios,
            ended=ended_of(fleet),
            lately=lately,
            span_s=span_s,
            crews=fleet.crews,
            in_turn=self._in_turn(),
            share=fleet.share(self._busy_since(waiting, now)) or 1.0,
            turns=[each.turns for each in looks],
        )
        return Picture(snapshot, list(held), fleet.numbers, fleet.workers)

    def _beside(self, fleet: Fleet, look: Look) -> list[Look]:
        """Return what waits in the other queues, as far as it is served like *look*."""
        others = fleet.queues[1:]
        sizes = self._broker.waiting(others) if others else []
        most = SAMPLE // max(1, sum(size > 0 for size in sizes))
        return [
            # What is held of all queues is in *look* already.
            self._broker.look(queue, level=look.level, most=most, held=1) if size else EMPTY
            for queue, size in zip(others, sizes, strict=True)
        ]

    def _in_turn(self) -> bool:
        options = self._app.conf.broker_transport_options or {}
        return bool(options.get("queue_order_strategy", IN_TURN) == IN_TURN)

    def _held(
        self, look: Look, running: dict[str, Running], free: list[int], fleet: Fleet
    ) -> tuple[dict[str, Work], list[int | None]]:
        """Return what the workers have taken and not started, by id, and the numbers of the
        crews that have, if these have told: what they hold of other queues is ahead just
        as well.

        What is nobody's any more is ready when it will be delivered again. A task that is
        acknowledged late is among it while it runs. Of those that are
        not noted yet as running the first ones are taken to be, as far as slots are *free*.
        """
        held: dict[str, Work] = {}
        held_by: list[int | None] = []
        etas = 0
        for key, message, taken_at in look.held:
            task_id = id_of(message)
            number = fleet.numbers.get(key)
            if number is None or task_id is None or task_id in running:
                continue
            work = self.work(message, fleet.now, number, fleet.queues[number])
            etas += work.ready > 0
            mark = mark_of(task_id)
            told_at = max(taken_at, work.ready) + TOLD_S
            if mark not in fleet.receivers and told_at < fleet.now and fleet.tell_all(etas):
                # Whoever has it is gone.
                held[task_id] = work._replace(ready=taken_at + look.redelivery_s)
                held_by.append(None)
                continue
            taker = fleet.receivers.get(mark)
            takers = _takers(number, fleet, taker)
            if self._late(message) and work.ready <= fleet.now:
                idle = next((n for n in takers if free[n] > 0), None)
                if idle is not None:
                    free[idle] -= 1
                    running[task_id] = Running(work, fleet.now, idle)
                    continue
            held[task_id] = work
            held_by.append(taker)
        return held, held_by

    def _late(self, message: Message) -> bool:
        headers = message.get("headers") or {}
        task = self._app.tasks.get(str(headers.get("task")))
        default = self._app.conf.task_acks_late
        return bool(getattr(task, "acks_late", default))

    def _busy_since(self, waiting: Iterable[Work], now: float) -> float:
        """Return since when there was work for every slot: demoted work may not take all."""
        if self._settings.scheduler == "edf":
            waiting = [w for w in waiting if now <= hopeful_until(w.deadline, w.tau)]
        return min((max(work.arrival, work.ready) for work in waiting), default=now)

    def work(self, message: Message, now: float, number: int = 0, queue: str = "*") -> Work:
        """Return a message as a simulation needs it, of *queue*, which has this *number*."""
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
        if tau is None or tau <= 0:  # of a producer without rts: when it came is not known
            tau = self._tau_of(UNTYPED, name)
            arrival = min(place.arrival, now - AGE_S)
        else:
            arrival = place.arrival
        return Work(task_type, arrival, tau, place.score, eta, name, number, due=due)


def ended_of(fleet: Fleet) -> list[tuple[Work, float]]:
    """Return the last runs with their runtimes in seconds."""
    return [(work_of(run), max(0.0, run.runtime_s)) for run in fleet.recent]


def _begun(
    fleet: Fleet, missing: list[OpenTask], free: Sequence[int]
) -> list[tuple[str, Running]]:
    """Return tasks that were published a moment ago, neither wait nor have ended, and are
    not noted yet as running, with the instants at which they have started, about. Crews
    have so many slots *free* of what is.
    """
    ended = {run.task_id for run in fleet.recent}
    left = [*free]
    found = []
    for task in missing:
        if task.task_id in ended or task.arrival > fleet.now:
            continue
        taker = fleet.receivers.get(mark_of(task.task_id))
        takers = _takers(fleet.numbers[task.queue or ""], fleet, taker)
        crew = max(takers, key=left.__getitem__, default=None)
        if crew is None:
            continue
        left[crew] -= 1
        since = max(task.arrival, fleet.now - task.tau / 2)
        found.append((task.task_id, Running(work_of(task), since, crew)))
    return found


def _takers(queue: int, fleet: Fleet, told: int | None = None) -> list[int]:
    """Return the numbers of the crews that may have taken from the queue of this number:
    the one that has *told* so, or all that take from it.
    """
    if told is not None:
        return [told]
    return [n for n, crew in enumerate(fleet.crews) if queue in crew.queues]


def _crew_of(run: Execution, fleet: Fleet) -> int:
    if run.instance in fleet.crew_of:
        return fleet.crew_of[run.instance]
    # Its worker has gone, or has never told of itself: as if another had it.
    return next(iter(_takers(fleet.numbers.get(run.queue or "", 0), fleet)), 0)


def _lately(fleet: Fleet, present: list[Work]) -> tuple[list[Work], float]:
    """Return what has arrived of late, and within how many seconds.

    What has arrived since the first end from which on all are remembered waits, is held,
    runs, or is remembered itself.
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


def work_of(task: Execution | Recent | OpenTask, ready: float = 0.0, queue: int = 0) -> Work:
    """Return a task as a simulation needs it; *ready*, *queue*: see :class:`Work`."""
    return Work(
        *(task.task_type, task.arrival, task.tau, task.deadline, ready, task.name, queue)
    )
