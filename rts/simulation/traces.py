"""Workloads: read from a CSV file, or synthetic."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rts.deadlines import MAX_INSTANT
from rts.health import shown
from rts.settings import Settings
from rts.tasktypes import DEFAULT_TASK_TYPES, TYPE_NAME, UNTYPED, TaskType

#: How the last run of a job ends.
SUCCESS, FAILURE, KILLED = "success", "failure", "killed"

COLUMNS = ("arrival_s", "name", "runtime_s")
#: Seconds in a trace lie in [0, MAX_S]: epoch seconds do, milliseconds since 1970 do not.
MAX_S = MAX_INSTANT
#: Standard deviation of the logarithm of synthetic service times.
SIGMA = 0.3


class Again(NamedTuple):
    """A further run of a task: a retry, or a redelivery after a run that was killed."""

    #: Seconds from the end of the previous run until this one may start.
    pause_s: float
    #: Service time, seconds.
    runtime_s: float
    #: Whether its message waits in the queue meanwhile, as that of a retry does.
    queued: bool = False


class Origin(NamedTuple):
    """The task that has published another one while it ran, as in a chain."""

    #: Its ``Job.key``.
    key: str
    #: Seconds from the start of its last run until the published task arrives.
    lag_s: float
    #: Whether the published task has its deadline.
    shares_deadline: bool


class Job(NamedTuple):
    """One task of a workload."""

    #: Seconds since the start of the workload.
    arrival_s: float
    name: str
    #: Service time of its first run, seconds.
    runtime_s: float
    task_type: str = UNTYPED
    #: The tau that its deadline was computed with; ``None``: the one learned by then.
    tau: float | None = None
    #: Relative deadline in seconds; ``None``: by the formula.
    span_s: float | None = None
    #: How its last run ended: ``SUCCESS``, ``FAILURE`` (an exception, also a completion), or
    #: ``KILLED``, always a miss.
    end: str = SUCCESS
    #: The runs after the first.
    later: tuple[Again, ...] = ()
    #: If it has replaced itself: seconds from its arrival to the replacement's. Name, type
    #: and tau are then the replacement's; a deadline by the formula counts from its arrival.
    lead_s: float = 0.0
    #: From its message's priority: brokers with priorities deliver the least first.
    rank: int = 0
    #: Identifies it to the tasks that it has published; '' where there are none.
    key: str = ""
    #: If its publisher is a job before this one, that decides the arrival.
    origin: Origin | None = None
    #: Seconds before its arrival at which it was published, if it has an eta.
    notice_s: float = 0.0
    #: Number of its queue.
    queue: int = 0


def read_trace(path: str | Path) -> list[Job]:
    """Read a CSV file with the columns arrival_s, name, runtime_s and, optionally,
    task_type; return its jobs ordered by arrival.

    Raises:
        ValueError: there are no jobs, a column is missing or duplicated, a line has more
            values than the header, a name is empty, or a value is not a number of seconds
            from 0 to MAX_S; the message names the line.
        OSError: the file cannot be read.
    """
    jobs: list[Job] = []
    rows: csv.DictReader[str]
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            columns = list(rows.fieldnames or ())
            missing = [column for column in COLUMNS if column not in columns]
            if missing:
                raise ValueError(f"{path}: no column {', '.join(missing)} in the header")
            for column in (*COLUMNS, "task_type"):
                if columns.count(column) > 1:
                    raise ValueError(f"{path}: more than one column {column} in the header")
            for row in rows:
                jobs.append(_job(row, f"{path}, line {rows.line_num}"))
        except csv.Error as exc:
            raise ValueError(f"{path}, line {rows.reader.line_num}: {exc}") from exc
        except UnicodeDecodeError as exc:
            raise ValueError(f"{path}: not valid UTF-8 ({exc.reason})") from exc
    if not jobs:
        raise ValueError(f"{path}: contains no jobs")
    return sorted(jobs, key=lambda job: job.arrival_s)


def with_types(settings: Settings, jobs: Iterable[Job]) -> Settings:
    """Return *settings* extended by the unknown types of *jobs*.

    Each starts with the first tau of ``mixed``. Types with an invalid name, and those
    beyond ``rts_max_types``, count as ``mixed``.
    """
    types = dict(settings.task_types)
    for kind in dict.fromkeys(job.task_type for job in jobs):
        if kind not in types and len(types) < settings.max_types and TYPE_NAME.fullmatch(kind):
            types[kind] = TaskType(kind, types[UNTYPED].tau)
    return replace(settings, task_types=types)


def six_types(n: int, *, seed: int) -> list[Job]:
    """Return *n* jobs of the six default types, uniformly distributed.

    Poisson arrivals at one per second (see :func:`at_load`); lognormal service times whose
    mean is the type's first tau (see ``SIGMA``).
    """
    rng = random.Random(seed)
    types = list(DEFAULT_TASK_TYPES.values())
    at, jobs = 0.0, []
    for _ in range(n):
        at += rng.expovariate(1.0)
        kind = rng.choice(types)
        runtime_s = kind.tau * rng.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
        jobs.append(Job(at, f"example.{kind.name}", runtime_s, kind.name))
    return jobs


def offered_load(jobs: Sequence[Job], slots: int, speed: float = 1.0) -> float | None:
    """Return ρ = Σ service times / (slots · time from first to last arrival).

    ``None`` if all jobs arrive at once.
    """
    if not jobs:
        return None
    span_s = (jobs[-1].arrival_s - jobs[0].arrival_s) / speed
    work_s = sum(job.runtime_s + sum(run.runtime_s for run in job.later) for job in jobs)
    return work_s / (slots * span_s) if span_s > 0 else None


def enough_slots(jobs: Sequence[Job], speed: float = 1.0) -> int:
    """Return the fewest slots at which the offered load is below 1, but no more than there
    are jobs; 1 if all arrive at once.
    """
    rho = offered_load(jobs, 1, speed)
    return 1 if rho is None else int(min(rho, len(jobs) - 1)) + 1


def at_load(jobs: Sequence[Job], slots: int, rho: float) -> list[Job]:
    """Return *jobs* with their arrivals rescaled to the offered load *rho*, above 0.

    Raises:
        ValueError: all jobs arrive at once, no job takes any time, or *rho* or *slots* is
            not above 0.
    """
    if not (rho > 0 and slots > 0):
        raise ValueError(f"rho = {rho}, slots = {slots}: both must be above 0")
    load = offered_load(jobs, slots)
    if load is None:
        raise ValueError("all jobs arrive at once: there is no rate to change")
    if not load > 0:
        raise ValueError("no job takes any time: there is no load to reach")
    first, factor = jobs[0].arrival_s, load / rho
    return [job._replace(arrival_s=(job.arrival_s - first) * factor) for job in jobs]


def write_trace(path: str | Path, jobs: Iterable[Job]) -> None:
    """Write *jobs* to a file for :func:`read_trace`: arrival, name, runtime and type.

    The runtime is that of the first run; of a task that has replaced itself, of the last one,
    whose name it has.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, "task_type"))
        for job in jobs:
            run = job.later[-1] if job.lead_s else job
            writer.writerow((job.arrival_s, job.name, run.runtime_s, job.task_type))


def _job(row: dict[str | None, str], where: str) -> Job:
    """Return the job of a line, in which missing values are ``None``, and so is the key of
    those beyond the header.
    """
    if None in row:
        raise ValueError(f"{where}: more values than the header")
    if not row["name"]:
        raise ValueError(f"{where}: no name")
    arrival_s, runtime_s = (_seconds(row[c], c, where) for c in ("arrival_s", "runtime_s"))
    return Job(arrival_s, row["name"], runtime_s, row.get("task_type") or UNTYPED)


def _seconds(text: str | None, column: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_S:
        allowed = f"from 0 to {MAX_S:.0f}"
        told = f"{column} = {shown(text)} is not a number of seconds {allowed}"
        raise ValueError(f"{where}: {told}")
    return value
