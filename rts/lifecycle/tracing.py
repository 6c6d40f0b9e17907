"""OpenTelemetry and Sentry, where the app uses them: the plan on their spans and tags.

rts neither depends on them nor imports them: it takes the modules that the app has
loaded. They are looked for once in each process, when it first publishes or runs a
task. Where neither is there, that is all that they cost.

=================  ====================================  ===========================
where              OpenTelemetry, the current span       Sentry, the task's scope
=================  ====================================  ===========================
a task is          rts.task_type, rts.tau_s,             nothing: a request that
published          rts.deadline, rts.laxity_s            publishes is no task
a run starts       the same                              the same, as tags
a run ends         rts.deadline_missed                   rts.deadline_missed
=================  ====================================  ===========================

Deadlines are epoch seconds; laxity is deadline − now − tau, at the publish or start.

OpenTelemetry's CeleryInstrumentor makes and ends its spans in receivers of the same
signals. Ours for the end of a publish and of a run are put before all others, so that
its span still lives, whoever was connected first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from celery import signals

from rts import health
from rts.lifecycle.runs import run_of
from rts.lifecycle.soft_time_limit import hook_failed
from rts.records import NOT_FINAL

#: Returns the fleet's time for a task of an app, or of a name that is published;
#: ``None`` where that app does not have rts.
NowOf = Callable[[Any], "float | None"]

_UID = "rts.tracing"


class TracingBridge:
    """The tracing libraries beside rts in this process."""

    def __init__(self) -> None:
        #: Whether there may be one: nobody has looked yet, or one is there.
        self.maybe = True
        self._looked = False
        self._tracing: Any = None
        self._sentry: Any = None
        self._now_published: NowOf | None = None
        self._now_run: NowOf | None = None

    def connect(self, now_published: NowOf, now_run: NowOf) -> None:
        """Say where the time comes from. Looks for nothing yet."""
        self._now_published, self._now_run = now_published, now_run

    def disconnect(self) -> None:
        """Undo :meth:`connect` and what a look has connected."""
        signals.after_task_publish.disconnect(dispatch_uid=_UID)
        signals.task_postrun.disconnect(dispatch_uid=_UID)
        self._now_published = self._now_run = None
        self.look_again()

    def look_again(self) -> None:
        """Look once more at the next task. In a child: many apps set up tracing there."""
        self.maybe, self._looked = True, False

    def look(self) -> None:
        """Look for them, once in each process, and connect what tells them of ends."""
        if self._looked:
            return
        self._looked = True
        self._tracing = None
        # None in sys.modules forbids an import; a module may be half imported, or old.
        tracing: Any = sys.modules.get("opentelemetry.trace")
        if hasattr(tracing, "get_tracer_provider") and not isinstance(
            tracing.get_tracer_provider(), tracing.ProxyTracerProvider
        ):
            self._tracing = tracing  # else some library has loaded it, and nobody traces
        sentry = sys.modules.get("sentry_sdk")
        self._sentry = sentry if hasattr(sentry, "get_isolation_scope") else None
        self.maybe = self._tracing is not None or self._sentry is not None
        if self._tracing is not None:
            _connect_first(signals.after_task_publish, self._published)
        if self.maybe:
            _connect_first(signals.task_postrun, self._ended)

    def started(self, task: Any) -> None:
        """Tell them of a run that starts."""
        self.look()
        run = run_of(task.request)
        if not self.maybe or run is None:
            return
        plan, now = run.plan, run.started_at
        facts = _facts(plan.task_type, plan.tau, plan.deadline, now)
        # An instrumentor that comes after us has no span yet; _ended makes up for it.
        self._span(facts)
        self._tags({**facts, "rts.deadline_missed": now > plan.deadline})

    def _published(self, sender: Any = None, headers: Any = None, **_: Any) -> None:
        """Runs in whatever process publishes, once a message is sent."""
        try:
            now = None if self._now_published is None else self._now_published(str(sender))
            tau, deadline = headers.get("rts_tau"), headers.get("rts_deadline")
            if now is not None and tau is not None and deadline is not None:
                self._span(_facts(headers["task_type"], tau, deadline, now))
        except Exception as exc:  # noqa: BLE001  the message is sent
            hook_failed("tracing", exc)

    def _ended(self, task: Any = None, state: Any = None, **_: Any) -> None:
        """Runs in the process that ran the task, before all other receivers."""
        try:
            run = run_of(task.request)
            now = None if self._now_run is None else self._now_run(task.app)
            if run is None or now is None:
                return
            plan = run.plan
            facts = _facts(plan.task_type, plan.tau, plan.deadline, run.started_at)
            verdict = {"rts.deadline_missed": now > plan.deadline}
            told = {} if state in NOT_FINAL else verdict
            self._span({**facts, **told})
            self._tags(told)
        except Exception as exc:  # noqa: BLE001  the task has run
            health.hook_failed("tracing", exc)

    def _span(self, facts: Mapping[str, str | float | bool]) -> None:
        if self._tracing is not None:
            span = self._tracing.get_current_span()
            if span.is_recording():
                span.set_attributes(facts)

    def _tags(self, facts: Mapping[str, str | float | bool]) -> None:
        if self._sentry is not None and facts and self._sentry.get_client().is_active():
            scope = self._sentry.get_isolation_scope()
            for name, value in facts.items():
                # Tags are texts.
                scope.set_tag(
                    name, str(value).lower() if isinstance(value, bool) else str(value)
                )


TRACING = TracingBridge()
os.register_at_fork(after_in_child=TRACING.look_again)


def _facts(task_type: str, tau: float, deadline: float, now: float) -> dict[str, Any]:
    return {
        "rts.task_type": task_type,
        "rts.tau_s": tau,
        "rts.deadline": deadline,
        "rts.laxity_s": deadline - now - tau,
    }


def _connect_first(signal: Any, receiver: Callable[..., None]) -> None:
    """Connect *receiver* before those that are there, whose list Celery keeps in order."""
    signal.connect(receiver, weak=False, dispatch_uid=_UID)
    with signal.lock:
        entries = signal.receivers
        (mine,) = [entry for entry in entries if entry[0][0] == _UID]
        entries.remove(mine)
        entries.insert(0, mine)
