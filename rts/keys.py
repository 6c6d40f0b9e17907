"""Every key of rts in Redis and every collection in MongoDB, in one place.

Only ``tau`` and ``outbox`` are public; the rest may change between versions. (For the keys
of the deadline order, next to each queue of the broker, see :mod:`rts.scheduling.layout`.)
"""

from __future__ import annotations

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


class Keys:
    """The keys of one installation; *prefix* is ``rts_key_prefix``."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        #: Hash: ``type`` or ``type/task.name`` to its tau in seconds, as text.
        self.tau = prefix + "tau"
        #: Hash: the same fields to the number of runs learned.
        self.count = prefix + "count"
        #: Hash: the same fields to the EMA of |actual − tau| in seconds.
        self.deviation = prefix + "deviation"
        #: Prefix of one hash per field: log bucket to number of runs.
        self.sketch = prefix + "sketch:"
        #: Prefix of one hash per type, and ``*`` for all: log bucket of runtime over the tau
        #: that the deadline was computed with, to number of runs; ``n``: their sum. Old runs
        #: lose weight (see ``finish.lua``).
        self.ratio = prefix + "ratio:"
        #: Prefix of one list per queue: its last runs, latest first.
        self.recent = prefix + "recent:"
        #: Stream of finished executions on their way to the ledger.
        self.outbox = prefix + "outbox"
        #: String that expires: the drain that took new entries of the outbox last.
        self.taking = prefix + "taking"
        #: String that expires: the drain that last looked for entries of dead drains.
        self.takeover = prefix + "takeover"
        #: Hash: ``task_id|retries|instance|pid`` to the note of a run in flight.
        self.running = prefix + "running"
        #: Hash: worker instance to its heartbeat, as JSON.
        self.workers = prefix + "workers"
        #: Hash: counter name to its value, over all processes.
        self.counters = prefix + "counters"
        #: String: absent in a new or wiped Redis, which is then restored.
        self.generation = prefix + "generation"
        #: Prefix of one string per writer: the number of its last record that was applied.
        self.seq = prefix + "seq:"
        #: Lease, as a string that expires: a snapshot of the taus was made recently.
        self.snapshot = prefix + "snapshot"
        #: Lease, as a string that expires: past hours were rolled up recently.
        self.sums = prefix + "sums"
        #: Lease of the one drain that looks for lost runs: a string that expires.
        self.janitor = prefix + "janitor"
        #: Sorted set: ids of tasks that were published and have not ended, by deadline.
        self.open = prefix + "open"
        #: Hash: id of an open or overdue task to its queue and the rest of its note.
        self.open_info = prefix + "open:info"
        #: Hash: ``open`` or ``overdue``, and a queue, to its number of such tasks.
        self.open_counts = prefix + "open:counts"
        #: Sorted set: ids of overdue tasks, by the instant of that verdict.
        self.overdue = prefix + "overdue"
        #: Sorted set: ids of tasks that ended a moment ago, by instant.
        self.closed = prefix + "closed"
        #: Sorted set, by instant: ids of tasks and runs whose verdict did not come from their
        #: own end, so that this end is not counted again.
        self.judged = prefix + "judged"
        #: Capped stream of events: a notice of an overdue task in the field ``e``, or of a
        #: burning objective in ``n`` (:mod:`rts.notices`).
        self.events = prefix + "events"
        #: Hash: metric and labels to value; see ``count.lua``.
        self.metrics = prefix + "metrics"
        #: Lease of the one companion that looks for overdue tasks: a string that expires.
        self.overdue_lease = prefix + "sweep"
        #: Hash: key of a firing alert to what it started with.
        self.alerts = prefix + "alerts"
        #: Lease of the one companion that decides on alerts and sends them: a string that
        #: expires.
        self.alerting = prefix + "alerting"
        #: String that expires: a worker has receivers of ``slo_burning``.
        self.listening = prefix + "listening"
        #: The keys that close an open task when it ends, in the order of remove_open.lua.
        self.closing = [self.open, self.overdue, self.open_info, self.open_counts, self.closed]
        #: The keys that counting for the metrics needs, in the order of count.lua: that hash,
        #: and the sets of known label values.
        labels = ("types", "names", "queues")
        self.counting = [self.metrics, *(f"{self.metrics}:{of}" for of in labels)]

    def webhook(self, name: str) -> str:
        """List of the messages waiting for one webhook."""
        return f"{self.prefix}webhook:{name}"
