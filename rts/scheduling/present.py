"""A queue and its workers at one moment, as simulations begin with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rts.errors import CommandError
from rts.headers import instant
from rts.ledger.recent import Recent
from rts.link.link import Link
from rts.records import Execution, OpenTask
from rts.scheduling.draws import Work
from rts.scheduling.fleet import Fleet, read_fleet
from rts.scheduling.messages import Message, id_of
from rts.scheduling.peek import Broker, Look
from rts.scheduling.places import place_of
from rts.scheduling.play import Snapshot
from rts.scheduling.rule import Rule
from rts.settings import Settings
from rts.simulation.orders import HOPE
from rts.tasktypes import UNTYPED
from rts.validation import finite

#: Seconds for which a message has waited at least whose age is not known.
AGE_S = 1.0

#: Returns the tau in seconds for a task type and name.
TauOf = Callable[[str, str], float]


class Present:
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

    def keys(self, queue: str) -> set[str]:
        """Return the routing keys by which messages come into *queue*."""
        known = dict.get(self._app.amqp.queues, queue)
        return {queue, *([] if known is None else [known.routing_key])}

    def snapshot(
        self, queue: str, look: Look, sent: Iterable[OpenTask] = ()
    ) -> tuple[Snapshot, list[object]]:
        """Return a queue as simulations begin with it, and the ids of what is held.

        *sent*: what this process has published within the last NOTED_S seconds, the
        latest last: what is nowhere else has begun.
        """
        fleet = read_fleet(self._link, self._settings, queue, self.keys(queue))
        if not fleet.slots:
            raise CommandError(
                f"no worker with rts takes tasks from the queue {queue}: start one, or name "
                "the queue of the task"
            )
        running = {
            run.task_id: (work_of(run), run.started_at or fleet.now) for run in fleet.running
        }
        held = self._held(queue, look, running, fleet)
        waiting = [self.work(message, fleet.now) for message in look.messages]
        if len(look.messages) == look.total:
            known = {*running, *held, *map(id_of, look.messages)}
            begun = _begun(fleet, [task for task in sent if task.task_id not in known])
            running.update(begun[-max(1, fleet.slots - len(running)) :])
        own = [work for key, work in held.values() if key in self.keys(queue)]
        lately, span_s = _lately(fleet, [*waiting, *own])
        busy_since = self._busy_since(waiting, fleet.now)
        share = fleet.share(busy_since) or self._even_share(queue, fleet)
        snapshot = Snapshot(
            now=fleet.now,
            slots=fleet.slots,
            waiting=waiting,
            held=[work for _, work in held.values()],
            running=list(running.values()),
            ratios=fleet.ratios,
            ended=ended_of(fleet),
            lately=lately if self._settings.scheduler == "edf" else (),
            span_s=span_s,
            share=share,
            held_share=1.0 if fleet.neighbours - {queue} else share,
            turns=look.turns,
            beside={key for each in fleet.neighbours - {queue} for key in self.keys(each)},
        )
        return snapshot, list(held)

    def _held(
        self,
        queue: str,
        look: Look,
        running: dict[str, tuple[Work, float]],
        fleet: Fleet,
    ) -> dict[object, tuple[str, Work]]:
        """Return what the workers of *queue* have taken and not started, with its routing
        key: what they hold of their other queues is ahead of it just as well.

        A task that is acknowledged late is among it while it runs. Of those that are
        not noted yet as running the first ones are taken to be.
        """
        neighbours = fleet.neighbours - fleet.elsewhere
        keys = {key for each in {queue, *neighbours} for key in self.keys(each)}
        held: dict[object, tuple[str, Work]] = {}
        for key, message in look.held:
            task_id = id_of(message)
            if key not in keys or task_id in running:
                continue
            work = self.work(message, fleet.now)
            late = self._late(message) and work.ready <= fleet.now
            if late and len(running) < fleet.slots:
                running[str(task_id)] = (work, fleet.now)
            else:
                held[task_id] = key, work
        return held

    def _late(self, message: Message) -> bool:
        headers = message.get("headers") or {}
        task = self._app.tasks.get(str(headers.get("task")))
        default = self._app.conf.task_acks_late
        return bool(getattr(task, "acks_late", default))

    def _even_share(self, queue: str, fleet: Fleet) -> float:
        """Return the share that is left where other queues of the workers hold work too:
        they are asked in turn.
        """
        others = sorted(fleet.neighbours - {queue})
        busy = sum(count > 0 for count in self._broker.waiting(others)) if others else 0
        return 1 / (1 + busy)

    def _busy_since(self, waiting: Iterable[Work], now: float) -> float:
        """Return since when there was work for every slot: demoted work may not take all."""
        if self._settings.scheduler == "edf":
            waiting = [work for work in waiting if now <= work.deadline - HOPE * work.tau]
        return min((max(work.arrival, work.ready) for work in waiting), default=now)

    def work(self, message: Message, now: float) -> Work:
        """Return a message as a simulation needs it."""
        headers = message.get("headers")
        headers = headers if isinstance(headers, dict) else {}
        task_type = headers.get("task_type")
        if not isinstance(task_type, str) or task_type not in self._settings.task_types:
            task_type = UNTYPED
        eta = instant(headers.get("eta")) or 0.0
        place = place_of(message, self._rule.horizon("*"), 0.0)
        name = str(headers.get("task"))
        tau = finite(headers.get("rts_tau"))
        if tau is None or tau <= 0:  # of a producer without rts: when it came is not known
            tau = self._tau_of(UNTYPED, name)
            return Work(task_type, min(place.arrival, now - AGE_S), tau, place.score, eta, name)
        return Work(task_type, place.arrival, tau, place.score, eta, name)


def ended_of(fleet: Fleet) -> list[tuple[Work, float]]:
    """Return the last runs with their runtimes in seconds."""
    return [(work_of(run), max(0.0, run.runtime_s)) for run in fleet.recent]


def _begun(fleet: Fleet, missing: list[OpenTask]) -> list[tuple[str, tuple[Work, float]]]:
    """Return tasks that were published a moment ago, neither wait nor have ended, and are
    not noted yet as running, with the instants at which they have started, about.
    """
    ended = {run.task_id for run in fleet.recent}
    return [
        (task.task_id, (work_of(task), max(task.arrival, fleet.now - task.tau / 2)))
        for task in missing
        if task.task_id not in ended and task.arrival <= fleet.now
    ]


def _lately(fleet: Fleet, present: list[Work]) -> tuple[list[Work], float]:
    """Return what has arrived of late, and within how many seconds.

    What has arrived since the first end that is remembered waits, is held, runs, or is
    remembered itself.
    """
    since = min((run.completed_at for run in fleet.recent), default=fleet.now)
    arrived = {run.task_id: work_of(run) for run in fleet.recent}
    arrived.update((run.task_id, work_of(run)) for run in fleet.own_running)
    works = [*arrived.values(), *present]
    return [w for w in works if since < w.arrival <= fleet.now], fleet.now - since


def work_of(task: Execution | Recent | OpenTask, ready: float = 0.0) -> Work:
    """Return a task as a simulation needs it; *ready*: see :class:`Work`."""
    return Work(task.task_type, task.arrival, task.tau, task.deadline, ready, task.name)
