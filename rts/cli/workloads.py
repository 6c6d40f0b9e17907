"""What ``rts replay`` and ``rts plan`` have in common: where the workload comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from statistics import fmean
from typing import Any

import click

from rts.cli.common import Number, instant, ledger_of, progress_bar, window, with_progress
from rts.cli.ledger_runs import MAX_RUNS, count, runs
from rts.cli.probes import fleet_now
from rts.deadlines import MAX_MULTIPLIER, MIN_MULTIPLIER
from rts.errors import CommandError
from rts.scheduling.priority import ranking
from rts.scheduling.worker_capacity import prefetch_per_slot
from rts.settings import Settings
from rts.simulation.orders import FirstComeFirstServed, LeastFirst, order_of
from rts.simulation.pools import Pool, spread
from rts.simulation.recording import recording
from rts.simulation.simulator import Conditions
from rts.simulation.traces import Job, read_trace, with_types
from rts.simulation.workers import Workers
from rts.views.json_values import iso

#: Seconds between two runs of a slot if the recording does not tell: Celery's own overhead.
OVERHEAD_S = 0.01

_OPTIONS = (
    click.option("--since", callback=instant, help="Start of the window.  [default: 24h]"),
    click.option(
        "--until", callback=instant, help="End of the window, exclusive.  [default: now]"
    ),
    click.option("--queue", metavar="NAME", help="Only tasks from this queue."),
    click.option(
        "--trace",
        metavar="FILE.csv",
        type=click.Path(exists=True, dir_okay=False),
        help="A workload from a file instead: arrival_s,name,runtime_s[,task_type].",
    ),
    click.option(
        "--k",
        type=Number(MIN_MULTIPLIER, MAX_MULTIPLIER),
        help="k of all deadlines (arrival + k * tau).  [default: deadlines as recorded]",
    ),
    click.option(
        "--speed",
        type=Number(1e-6, 1e6),
        default=1.0,
        show_default=True,
        help="Speed up arrivals by this factor: 2 is twice the load.",
    ),
    click.option(
        "--overhead",
        type=Number(0, 3600),
        metavar="SECONDS",
        help=f"Time between two runs of a slot.  [default: as recorded, else {OVERHEAD_S}]",
    ),
)


@dataclass(frozen=True)
class WorkloadOptions:
    """The options that choose the workload."""

    since: timedelta | datetime | None
    until: timedelta | datetime | None
    queue: str | None
    trace: str | None
    k: float | None
    speed: float
    overhead: float | None


@dataclass(frozen=True)
class Workload:
    """The tasks to simulate, and the conditions they ran under."""

    jobs: Sequence[Job]
    #: The app's, and the types of the trace.
    settings: Settings
    conditions: Conditions
    #: Where it comes from, in words.
    origin: str
    # Not for a trace:
    #: Whether each job met its deadline.
    met: Sequence[bool] | None = None
    #: Slots that it ran on, and the workers that these belong to.
    slots: int | None = None
    pools: Sequence[Pool] = ()
    #: Messages that a stock worker holds per slot, beside those that run.
    held_per_slot: float = 0.0
    #: Start and end.
    window: tuple[datetime, datetime] | None = None

    def workers_of(self, slots: int, order: str) -> Workers:
        """Return new workers, with *slots* in all, like the recorded ones."""
        if order != "fifo":
            return Workers(spread(slots, self.pools), lambda: order_of(order, self.settings))
        return Workers(
            spread(slots, self.pools, self.held_per_slot),
            (lambda: LeastFirst(lambda task: task.rank))
            if self.prioritised
            else FirstComeFirstServed,
        )

    @cached_property
    def prioritised(self) -> bool:
        """Whether its messages differ in priority."""
        return len({job.rank for job in self.jobs}) > 1

    @property
    def overhead_s(self) -> float:
        """Mean seconds between two runs of a slot where work waits."""
        return fmean(self.conditions.overheads)

    def conditions_json(self) -> dict[str, Any]:
        """Return the conditions for a JSON document."""
        terms = self.conditions
        return {"speed": terms.speed, "k": terms.k, "overhead_s": self.overhead_s}

    @property
    def description(self) -> str:
        """What is simulated and under which assumptions, as lines."""
        terms = self.conditions
        if terms.k is not None:
            deadlines = f"with k = {terms.k:g}"
        elif self.met is None:
            deadlines = f"with k = {self.settings.sla_multiplier:g}, or the type's"
        else:
            deadlines = "as recorded"
        taus = "learned" if self.met is None else "as recorded"
        pace = "" if terms.speed == 1 else f", arrivals {terms.speed:g} times as fast"
        return (
            f"{len(self.jobs):,} tasks {self.origin}{pace}\n"
            f"deadlines {deadlines}, taus {taus}, "
            f"{self.overhead_s * 1e3:.1f} ms between two runs of a slot"
        )


def workload_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options of :class:`WorkloadOptions`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def workload(options: WorkloadOptions, settings: Settings, app: Any) -> Workload:
    """Return the workload, from the ledger of *app* or from a trace.

    Raises:
        UsageError: the options exclude each other, or the trace is invalid.
        CommandError: nothing ran in the window.
        StoreUnavailable: MongoDB is not usable.
    """
    if options.trace is not None:
        return _from_trace(options, settings, options.trace)
    since = timedelta(days=1) if options.since is None else options.since
    asked = window(since, options.until, fleet_now(settings))
    with ledger_of(settings) as database:
        expected = count(database, asked, options.queue)
        if expected > MAX_RUNS:
            click.echo(f"only the last {MAX_RUNS:,} runs of the window are read", err=True)
        with progress_bar("reading", expected) as read:
            found = with_progress(runs(database, asked, options.queue), read)
            past = recording(found, ranking(app))
    if past is None:
        raise CommandError(
            f"no task ran from {iso(asked[0])} to {iso(asked[1])}. rts status shows whether "
            "records are waiting, and --since looks further back"
        )
    return Workload(
        jobs=past.jobs,
        met=past.met,
        slots=past.slots,
        pools=past.pools,
        held_per_slot=held_per_slot(app.conf),
        settings=settings,
        conditions=Conditions(options.speed, options.k, _overheads(options, past.overheads)),
        origin=f"ended from {iso(asked[0])} to {iso(asked[1])}",
        window=asked,
    )


def _from_trace(options: WorkloadOptions, settings: Settings, path: str) -> Workload:
    if (options.until, options.queue) != (None, None):
        raise click.UsageError("--trace excludes --until and --queue")
    if options.since is not None:
        click.echo("Note: --since has no effect on a trace", err=True)
    try:
        jobs = read_trace(path)
    except (ValueError, OSError) as exc:
        raise click.UsageError(str(exc)) from None
    return Workload(
        jobs=jobs,
        settings=with_types(settings, jobs),
        conditions=Conditions(options.speed, options.k, _overheads(options)),
        origin=f"of {path}",
    )


def _overheads(options: WorkloadOptions, recorded: Sequence[float] = ()) -> Sequence[float]:
    """Return the seconds between two runs of a slot: as asked for, or as *recorded*."""
    if options.overhead is not None:
        return (options.overhead,)
    return recorded or (OVERHEAD_S,)


def held_per_slot(conf: Mapping[str, Any]) -> float:
    """Return how many messages a stock worker holds per slot, beside those that run."""
    ahead = prefetch_per_slot(
        int(conf.get("worker_prefetch_multiplier", 4)),
        late=bool(conf.get("task_acks_late")),
        disabled=bool(conf.get("worker_disable_prefetch")),
    )
    return math.inf if ahead is None else float(ahead)
