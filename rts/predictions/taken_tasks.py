"""The tasks that workers have taken from their queues, and which worker has each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rts.predictions.fleet import Fleet
from rts.predictions.messages import Held, WorkReader, id_of
from rts.predictions.queue_reader import Unacknowledged
from rts.predictions.snapshot import Running
from rts.predictions.work import Work, work_of
from rts.records import Execution, OpenTask
from rts.scheduling.encoding import Message
from rts.unfinished.received import mark_of

#: Seconds after which a worker has reported that it has received a message.
REPORTED_S = 5.0


class TakenTasks:
    """The tasks that run on a fleet, and those that its workers hold and have not started.

    Redis shows a run about a second after its start. Until then it is inferred from what was
    taken, or published, and is nowhere else.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        #: By task id.
        self.running: dict[str, Running] = {}
        #: By task id, of all related queues.
        self.held: dict[str, Work] = {}
        #: Numbers of the groups that hold these; ``None``: unknown.
        self.held_by: list[int | None] = []
        for run in fleet.running:
            started = run.started_at or fleet.now
            self.running[run.task_id] = Running(work_of(run), started, _group_of(run, fleet))
        #: Free slots by group; negative where more tasks run than fit.
        self._free = [group.slots for group in fleet.groups]
        for running in self.running.values():
            self._free[running.group] -= 1

    def add_unacknowledged(
        self,
        unacknowledged: Unacknowledged,
        reader: WorkReader,
        is_acked_late: Callable[[Message], bool],
    ) -> None:
        """Add the tasks in messages that are not acknowledged and not known to run.

        A task that no worker holds any more is ready once it is redelivered. Tasks that are
        acknowledged late are unacknowledged while they run, so the first of these run, as far
        as slots are free.
        """
        fleet, etas = self._fleet, 0
        for each in unacknowledged.held:
            task_id = id_of(each.message)
            queue = fleet.numbers.get(each.routing_key)
            # An app may publish an id again before its task has started.
            if queue is None or task_id is None or self._knows(task_id):
                continue
            work = reader.work(each.message, fleet.now, queue, fleet.queues[queue])
            etas += work.ready > 0
            if self._is_orphaned(each, work, task_id) and fleet.marks_complete(etas):
                again_at = each.taken_at + unacknowledged.redelivery_s
                self._hold(task_id, work._replace(ready=again_at), None)
                continue
            idle = None
            if work.ready <= fleet.now and is_acked_late(each.message):
                takers = self._takers(task_id, queue)
                idle = next((group for group in takers if self._free[group] > 0), None)
            if idle is None:
                self._hold(task_id, work, fleet.receivers.get(mark_of(task_id)))
            else:
                self._run(task_id, work, fleet.now, idle)

    def add_published(self, published: Iterable[OpenTask]) -> None:
        """Add those *published* that have arrived in these queues, and are not known to be
        anywhere else, or to have ended: they must have started.

        *published*: tasks of the last NOTED_S seconds that do not wait, in order.
        """
        fleet = self._fleet
        gone = {run.task_id for run in fleet.recent}
        started = [
            (task, queue)
            for task in published
            if (queue := fleet.numbers.get(task.queue or "")) is not None
            and task.arrival <= fleet.now
            and task.task_id not in gone
            and not self._knows(task.task_id)
        ]
        for task, queue in started[-max(1, fleet.slots - len(self.running)) :]:
            group = max(self._takers(task.task_id, queue), key=self._free.__getitem__)
            since = max(task.arrival, fleet.now - task.tau / 2)
            self._run(task.task_id, work_of(task), since, group)

    def _knows(self, task_id: str) -> bool:
        return task_id in self.running or task_id in self.held

    def _run(self, task_id: str, work: Work, started: float, group: int) -> None:
        self.running[task_id] = Running(work, started, group)
        self._free[group] -= 1

    def _hold(self, task_id: str, work: Work, group: int | None) -> None:
        self.held[task_id] = work
        self.held_by.append(group)

    def _is_orphaned(self, held: Held, work: Work, task_id: str) -> bool:
        """Return whether no worker has reported a message although it was taken, and has been
        ready, for long enough.
        """
        reported_at = max(held.taken_at, work.ready) + REPORTED_S
        return mark_of(task_id) not in self._fleet.receivers and reported_at < self._fleet.now

    def _takers(self, task_id: str, queue: int) -> list[int]:
        """Return the groups that may have taken a task of *queue*: the one that has received
        it, if known, else all that consume the queue.
        """
        receiver = self._fleet.receivers.get(mark_of(task_id))
        return self._fleet.consumers(queue) if receiver is None else [receiver]


def _group_of(run: Execution, fleet: Fleet) -> int:
    """Return the group that *run* holds a slot of: if its worker is gone, or has no rts, the
    first one that consumes its queue.
    """
    if run.instance in fleet.group_of:
        return fleet.group_of[run.instance]
    return next(iter(fleet.consumers(fleet.numbers.get(run.queue or "", 0))), 0)
