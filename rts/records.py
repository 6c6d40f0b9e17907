"""The records that travel from a task to the ledger.

One frozen record is passed along instead of many arguments. All instants are
seconds since the Unix epoch (UTC) by the clock of the Redis server; all
durations are seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from rts.fields import brief, priority_of, queue_of

#: States of a run whose worker vanished, of one whose task has replaced itself (IGNORED to
#: Celery), and of one that had its message queued again (REJECTED to Celery); all other states
#: are Celery's.
LOST, REPLACED, REQUEUED = "LOST", "REPLACED", "REQUEUED"

#: Celery's state of a task that raised ``Ignore``; it may go on under its id.
IGNORED = "IGNORED"

#: States after which the same task id lives on.
NOT_FINAL = frozenset({"RETRY", REPLACED, REQUEUED})

#: Cause of a miss that is known before the task has ended, if it ever does.
OVERDUE = "overdue"
#: Cause of a miss by a task that the deadline order did not run, as it was hopeless.
DROPPED = "dropped"
#: Causes of ends that another process wrote because the run could not. Its own end, or that of
#: another run of the task, may still arrive. The same holds for the state LOST. (A tuple, since
#: in a record that others wrote the cause may be unhashable.)
PROVISIONAL_CAUSES = ("lost", "killed", "time_limit", "terminated")

#: Seconds from a task's deadline until it is found overdue: its end may need as long from the
#: worker's disk to Redis.
OVERDUE_AFTER_S = 1.0
#: States of an overdue task: not started yet, or still running.
PENDING, STARTED = "PENDING", "STARTED"


#: Makes a record from a tuple of all its fields, for the paths of every task: without the
#: function call of a ``NamedTuple``'s own ``__new__``.
of_fields = tuple.__new__


class Plan(NamedTuple):
    """What was decided for one task when it was published: type, tau and deadline.

    ``deadline = arrival + max(k·tau, tau + floor)`` unless the publisher gave
    an ``sla_deadline`` of its own.
    """

    task_type: str
    #: ``explicit`` (header), ``task`` (task settings) or ``inferred``.
    type_source: str
    #: The tau that the deadline was computed with, seconds.
    tau: float
    #: The SLA multiplier.
    k: float
    #: Earliest runnable instant: max(first publish, eta).
    arrival: float
    #: The instant to finish by.
    deadline: float
    #: ``published``, or ``received`` where the producer does not have rts.
    arrival_source: str = "published"


class OpenTask(NamedTuple):
    """A task that was published, or received from a producer without rts, and has not
    ended. In Redis it is a list of the fields after the id; new ones come last, with a
    default.
    """

    task_id: str
    name: str
    task_type: str
    type_source: str
    tau: float
    k: float
    arrival: float
    deadline: float
    arrival_source: str
    queue: str | None
    retries: int = 0
    parent_id: str | None = None
    root_id: str | None = None


@lru_cache(maxsize=256)
def kind_as_json(name: str, task_type: str, type_source: str, tau: float, k: float) -> str:
    """Return these fields of a task's record as JSON, without brackets. Many tasks share
    them, and finding the shortest digits of a tau takes long.
    """
    return f"{quoted(name)},{quoted(task_type)},{quoted(type_source)},{tau!r},{k!r}"


class Execution(NamedTuple):
    """One run of one task: an attempt, from its start to its end.

    It is written twice: as a note when the run starts (``state`` STARTED, no
    ``completed_at``), and as a whole when it ends. If the run cannot write its own end (its
    process was killed), another process of the worker completes the note.

    In JSON it is a list of its fields in this order; new ones come last, with a
    default, so that versions can be mixed in one fleet.
    """

    #: Identity of the run, globally unique; also ``_id`` in ``assignments``.
    run_id: str
    task_id: str
    name: str
    task_type: str
    type_source: str
    tau: float
    k: float
    arrival: float
    deadline: float
    arrival_source: str
    queue: str | None
    retries: int
    parent_id: str | None
    root_id: str | None
    #: Node name of the worker (``celery@host``).
    worker: str
    #: Identifies that worker's main process, from start to stop.
    instance: str
    pid: int | None
    #: ``None`` if the task never started.
    started_at: float | None = None
    #: Keys load, cpu, memory, gpu, …: fractions of what the worker may use.
    load_at_start: Mapping[str, Any] | None = None
    #: ``None`` while the run is in flight.
    completed_at: float | None = None
    #: Service time by a monotonic clock; ``None`` if it was not measured.
    runtime_s: float | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    #: A Celery state, LOST, REPLACED or REQUEUED.
    state: str = STARTED
    #: Why a run ended without completing: killed, time_limit, terminated, revoked, expired,
    #: dropped (as hopeless), rejected, unknown_task or lost. Or why it is a miss although it
    #: has not ended (no ``completed_at``): overdue. ``None`` if the task ran to its end, with
    #: or without an exception.
    cause: str | None = None
    #: Whether a run was started at all. False: expired, revoked while waiting,
    #: unknown task. Such an end is a verdict in ``tasks`` without an assignment.
    ran: bool = True
    #: The message's priority; 0 where it has none, or the run could not write its own end.
    priority: int = 0
    #: When the retry that the run asked for may start; ``None`` where it asked for none, or
    #: this is unknown.
    again_at: float | None = None
    #: When the message was first published, if it had an eta; ``None`` where it had none, the
    #: producer does not have rts, or the run could not write its own end.
    published_at: float | None = None

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return encode(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Execution:
        """Read what :meth:`to_json` wrote; fields of newer versions are ignored.

        Raises:
            ValueError: the text is not such a record.
        """
        text = text if isinstance(text, str) else text.decode()
        return _decoded(text) if len(text) <= _USUAL_CHARS else _decoded.__wrapped__(text)


#: Number of fields of an Execution that are known when a run starts.
START_FIELDS = Execution._fields.index("load_at_start") + 1


#: Characters of a record that is kept decoded, at most: a stranger's may be of any length.
_USUAL_CHARS = 4096


# Cached, since a companion mostly drains what it has shipped itself half a second before.
@lru_cache(maxsize=2048)
def _decoded(text: str) -> Execution:
    try:
        values, end = _scan(text)
        if end != len(text):  # something follows, such as white space
            values = json.loads(text)
    except RecursionError:
        raise ValueError("not an execution record: nested too deeply") from None
    if not isinstance(values, list):
        raise ValueError("an execution record must be a list")
    try:
        return Execution(*values[: len(Execution._fields)])
    except TypeError as exc:
        raise ValueError(f"not an execution record: {exc}") from exc


#: Returns a record, or a part of one, as JSON. An id may be a UUID, which Celery accepts.
encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=str).encode
_scan = json.JSONDecoder().raw_decode


def read_runs(texts: Iterable[str | bytes]) -> Iterator[Execution]:
    """Yield the runs with these texts, which anybody may have written; without those that are
    no records, or cannot be computed with.
    """
    for text in texts:
        try:
            run = Execution.from_json(text)
        except ValueError:
            continue
        if _is_sound(run):
            yield run


def _is_sound(run: Execution) -> bool:
    """Return whether a record can be computed with: its identifying fields are hashable, its
    instants and its tau finite numbers.
    """
    # Not field by field: a prediction looks at thousands of runs.
    try:
        hash((run.run_id, run.task_id, run.name, run.task_type, run.queue, run.instance))
        # A float from the start, so that no integer is too great for one.
        total = 0.0 + run.arrival + run.deadline + run.tau
        total = total + (run.started_at or 0) + (run.completed_at or 0)
    except (TypeError, OverflowError):
        return False
    return math.isfinite(total)


class Learned(NamedTuple):
    """What one successful run changed: the tau of its type and of its name."""

    tau_before: float
    tau_after: float
    #: ``None`` if the number of taus is at ``rts_max_types``.
    name_tau_before: float | None = None
    name_tau_after: float | None = None


class OutboxEntry(NamedTuple):
    """One entry of the outbox stream, as the drain reads it."""

    #: The stream's entry id.
    entry_id: str
    execution: Execution
    #: Present for successful runs only.
    learned: Learned | None = None


def is_provisional(state: str, cause: str | None) -> bool:
    """Return whether an end was written by another process on behalf of its run."""
    return state == LOST or cause in PROVISIONAL_CAUSES


def sla_success(execution: Execution) -> bool | None:
    """Return the verdict on a run: completed at or before its deadline.

    ``None`` while there is none (it is in flight, or will be retried). A run that
    ended without completing is a miss whatever the time: the promised work was not
    done. So is one that is overdue.
    """
    if execution.cause == OVERDUE:
        return False
    if execution.completed_at is None or execution.state in NOT_FINAL:
        return None
    return execution.cause is None and execution.completed_at <= execution.deadline


def new_execution(
    plan: Plan,
    request: Mapping[str, Any],
    *,
    worker: str,
    instance: str,
    pid: int | None = None,
    started_at: float | None = None,
    load_at_start: Mapping[str, Any] | None = None,
) -> Execution:
    """Return the record of a run of the task that *request* describes; without the *pid* of a
    process that runs it, of a task that never ran.
    """
    task_id, retries = brief(request["id"]), request.get("retries")
    if not isinstance(retries, int):  # a stranger's may be anything
        retries = 0
    delivery_info = request.get("delivery_info") or {}
    # pid and start instant: no process runs two tasks within the same microsecond,
    # and a redelivered task has the same id and number of retries.
    moment = "-" if started_at is None else f"{started_at * 1e6:.0f}"
    return Execution(
        run_id=f"{task_id}:{retries}:{pid or instance}:{moment}",
        task_id=task_id,
        name=brief(request["task"]),
        **plan._asdict(),
        queue=brief(queue_of(delivery_info.get("routing_key"))),
        retries=retries,
        parent_id=brief(request.get("parent_id")),
        root_id=brief(request.get("root_id")),
        worker=worker,
        instance=instance,
        pid=pid,
        started_at=started_at,
        load_at_start=load_at_start,
        ran=pid is not None,
        priority=priority_of(delivery_info.get("priority")),
    )
