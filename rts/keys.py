"""Every key of rts in Redis and every collection in MongoDB, in one place.

Only ``tau`` and ``outbox`` are public; the rest may change between versions. (For the keys
of the deadline order, next to each queue of the broker, see :mod:`rts.scheduling.layout`.)
"""

from __future__ import annotations

from dataclasses import dataclass

#: The consumer group that drains the outbox.
GROUP = "rts"
#: Prefix of the consumer groups of workers that listen to events.
LISTENERS = "workers"

TASKS = "tasks"
ASSIGNMENTS = "assignments"
#: Snapshot of the learned taus, from which a wiped Redis is restored.
TAU_SNAPSHOT = "tau"
#: Outbox entries that could not be read or stored, kept for inspection.
REFUSED = "refused"
#: Sums over whole intervals of time, for the reports.
ROLLUPS = "rollups"


@dataclass(frozen=True)
class Keys:
    """The keys of one installation; *prefix* is ``rts_key_prefix``."""

    prefix: str

    @property
    def tau(self) -> str:
        """Hash: ``type`` or ``type/task.name`` to its tau in seconds, as text."""
        return self.prefix + "tau"

    @property
    def count(self) -> str:
        """Hash: the same fields to the number of runs learned."""
        return self.prefix + "count"

    @property
    def deviation(self) -> str:
        """Hash: the same fields to the EMA of |actual − tau| in seconds."""
        return self.prefix + "deviation"

    @property
    def sketch(self) -> str:
        """Prefix of one hash per field: log bucket to number of runs."""
        return self.prefix + "sketch:"

    @property
    def ratio(self) -> str:
        """Prefix of one hash per type, and ``*`` for all: log bucket of runtime over the
        tau that the deadline was computed with, to number of runs; ``n``: their sum. Old
        runs lose weight (see ``finish.lua``).
        """
        return self.prefix + "ratio:"

    @property
    def recent(self) -> str:
        """Prefix of one list per queue: its last runs, latest first."""
        return self.prefix + "recent:"

    @property
    def outbox(self) -> str:
        """Stream of finished executions on their way to the ledger."""
        return self.prefix + "outbox"

    @property
    def taking(self) -> str:
        """String that expires: the drain that took new entries of the outbox last."""
        return self.prefix + "taking"

    @property
    def takeover(self) -> str:
        """String that expires: the drain that last looked for entries of dead drains."""
        return self.prefix + "takeover"

    @property
    def running(self) -> str:
        """Hash: ``task_id|retries|instance|pid`` to the note of a run in flight."""
        return self.prefix + "running"

    @property
    def workers(self) -> str:
        """Hash: worker instance to its heartbeat, as JSON."""
        return self.prefix + "workers"

    @property
    def counters(self) -> str:
        """Hash: counter name to its value, over all processes."""
        return self.prefix + "counters"

    @property
    def generation(self) -> str:
        """String: absent in a new or wiped Redis, which is then restored."""
        return self.prefix + "generation"

    @property
    def seq(self) -> str:
        """Prefix of one string per writer: the number of its last record that was applied."""
        return self.prefix + "seq:"

    @property
    def snapshot(self) -> str:
        """Lease, as a string that expires: a snapshot of the taus was made recently."""
        return self.prefix + "snapshot"

    @property
    def sums(self) -> str:
        """Lease, as a string that expires: past hours were rolled up recently."""
        return self.prefix + "sums"

    @property
    def janitor(self) -> str:
        """Lease of the one drain that looks for lost runs: a string that expires."""
        return self.prefix + "janitor"

    @property
    def open(self) -> str:
        """Sorted set: ids of tasks that were published and have not ended, by deadline."""
        return self.prefix + "open"

    @property
    def open_info(self) -> str:
        """Hash: id of an open or overdue task to its queue and the rest of its note."""
        return self.prefix + "open:info"

    @property
    def open_counts(self) -> str:
        """Hash: ``open`` or ``overdue``, and a queue, to its number of such tasks."""
        return self.prefix + "open:counts"

    @property
    def overdue(self) -> str:
        """Sorted set: ids of overdue tasks, by the instant of that verdict."""
        return self.prefix + "overdue"

    @property
    def closing(self) -> list[str]:
        """The keys that close an open task when it ends, in the order of remove_open.lua."""
        return [self.open, self.overdue, self.open_info, self.open_counts, self.closed]

    @property
    def closed(self) -> str:
        """Sorted set: ids of tasks that ended before they were noted as open, by instant."""
        return self.prefix + "closed"

    @property
    def ahead(self) -> str:
        """Hash: id of a task that replaces another one to its note, until the note on the
        other one has arrived.
        """
        return self.prefix + "ahead"

    @property
    def judged(self) -> str:
        """Sorted set, by instant: ids of tasks and runs whose verdict did not come from
        their own end, so that they are not counted again.
        """
        return self.prefix + "judged"

    @property
    def events(self) -> str:
        """Capped stream of events about deadlines (:mod:`rts.ledger.events`)."""
        return self.prefix + "events"

    @property
    def metrics(self) -> str:
        """Hash: metric and labels to value; see ``count.lua``."""
        return self.prefix + "metrics"

    @property
    def counting(self) -> list[str]:
        """The keys that counting for the metrics needs, in the order of count.lua: that
        hash, and the sets of known label values.
        """
        return [self.metrics, *(f"{self.metrics}:{of}" for of in ("types", "names", "queues"))]

    @property
    def overdue_lease(self) -> str:
        """Lease of the one companion that looks for overdue tasks: a string that expires."""
        return self.prefix + "sweep"

    @property
    def alerts(self) -> str:
        """Hash: key of a firing alert to what it started with."""
        return self.prefix + "alerts"

    @property
    def alerting(self) -> str:
        """Lease of the one companion that decides on alerts and sends them: a string that
        expires.
        """
        return self.prefix + "alerting"

    @property
    def listening(self) -> str:
        """String that expires: a worker has receivers of ``slo_burning``."""
        return self.prefix + "listening"

    def webhook(self, name: str) -> str:
        """List of the messages waiting for one webhook."""
        return f"{self.prefix}webhook:{name}"


def running_field(task_id: str, retries: int, instance: str, pid: int | None) -> str:
    """Return the field of the ``running`` hash for one run.

    It includes the process id, since a task whose process was killed may be delivered
    again, with the same id and retries, to another process of the same worker.
    """
    return f"{task_id}|{retries}|{instance}|{pid}"
