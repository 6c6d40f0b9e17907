"""The plan on OpenTelemetry spans and Sentry tags, where the app uses these libraries.

rts neither depends on them nor imports them: it uses the modules that the app has
loaded. Each process looks for them once, when it first publishes or runs a task; where
neither is loaded, that is all they cost.

=================  ====================================  ===========================
when               OpenTelemetry: the current span       Sentry: the task's scope
=================  ====================================  ===========================
a task is          rts.task_type, rts.tau_s,             nothing: a web request that
published          rts.deadline, rts.laxity_s            publishes is not a task
a run starts       the same                              the same, as tags
a run ends         rts.deadline_missed                   rts.deadline_missed
=================  ====================================  ===========================

Deadlines are epoch seconds; laxity is deadline − now − tau, at the publish or start.

OpenTelemetry's CeleryInstrumentor starts and ends its spans in receivers of the same
signals. Ours for the end of a publish and of a run go first in the list, so that its
span is still open whichever was connected first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery import signals

from rts import health
from rts.fields import plain
from rts.lifecycle.outcomes import end_state
from rts.lifecycle.runs import run_of
from rts.lifecycle.soft_time_limit import hook_in_task_failed
from rts.records import NOT_FINAL

if TYPE_CHECKING:
    from rts.parts import Parts

_UID = "rts.tracing"


class TracingBridge:
    """The tracing libraries that this process has loaded."""

    def __init__(self) -> None:
        #: False once none was found.
        self.enabled = True
        self._detected = False
        self._tracing: Any = None
        self._sentry: Any = None
        self._parts_of: Callable[[Any], Parts | None]
        self._publisher: Callable[[str], Parts | None]

    def connect(
        self, parts_of: Callable[[Any], Parts | None], publisher: Callable[[str], Parts | None]
    ) -> None:
        """Set how an app's parts are found. Looks for no library yet."""
        self._parts_of, self._publisher = parts_of, publisher

    def disconnect(self) -> None:
        """Undo :meth:`connect`, and disconnect what :meth:`detect` has connected."""
        signals.after_task_publish.disconnect(dispatch_uid=_UID)
        signals.task_postrun.disconnect(dispatch_uid=_UID)
        self.reset()

    def reset(self) -> None:
        """Detect again at the next task: many apps set up tracing in the pool child."""
        self.enabled, self._detected = True, False

    def detect(self) -> None:
        """Look for the libraries, once per process, and connect receivers for the ends."""
        if self._detected:
            return
        self._detected = True
        self._tracing = None
        # It may be None (its import is blocked), half imported, or an old version.
        tracing: Any = sys.modules.get("opentelemetry.trace")
        if hasattr(tracing, "get_tracer_provider") and not isinstance(
            tracing.get_tracer_provider(), tracing.ProxyTracerProvider
        ):
            self._tracing = tracing  # else it is loaded but no tracer provider is set
        sentry = sys.modules.get("sentry_sdk")
        self._sentry = sentry if hasattr(sentry, "get_isolation_scope") else None
        self.enabled = self._tracing is not None or self._sentry is not None
        if self._tracing is not None:
            _connect_first(signals.after_task_publish, self._published)
        if self.enabled:
            _connect_first(signals.task_postrun, self._ended)

    def started(self, task: Any) -> None:
        """Annotate the span and the scope of a run that starts."""
        self.detect()
        run = run_of(task.request)
        if not self.enabled or run is None:
            return
        plan, now = run.plan, run.started_at
        attributes = _attributes(plan.task_type, plan.tau, plan.deadline, now)
        # An instrumentor that was connected after us has no span yet: _ended annotates it.
        self._annotate_span(attributes)
        self._set_tags({**attributes, "rts.deadline_missed": now > plan.deadline})

    def _published(self, sender: Any = None, headers: Any = None, **_: Any) -> None:
        """Runs in whatever process publishes, once the message is sent."""
        try:
            parts = self._publisher(plain(sender))
            tau, deadline = headers.get("rts_tau"), headers.get("rts_deadline")
            if parts is not None and tau is not None and deadline is not None:
                now = parts.clock.now()
                self._annotate_span(_attributes(headers["task_type"], tau, deadline, now))
        except Exception as exc:  # noqa: BLE001  the message is sent
            hook_in_task_failed("tracing", exc)

    def _ended(self, task: Any = None, state: Any = None, retval: Any = None, **_: Any) -> None:
        """Runs in the process that ran the task, before all other receivers."""
        try:
            run, parts = run_of(task.request), self._parts_of(task.app)
            if run is None or parts is None:
                return
            plan, now = run.plan, parts.clock.now()
            attributes = _attributes(plan.task_type, plan.tau, plan.deadline, run.started_at)
            final = end_state(task, state, retval) not in NOT_FINAL
            verdict = {"rts.deadline_missed": now > plan.deadline} if final else {}
            self._annotate_span({**attributes, **verdict})
            self._set_tags(verdict)
        except Exception as exc:  # noqa: BLE001  the task has run
            health.hook_failed("tracing", exc)

    def _annotate_span(self, attributes: Mapping[str, str | float | bool]) -> None:
        if self._tracing is not None:
            span = self._tracing.get_current_span()
            if span.is_recording():
                span.set_attributes(attributes)

    def _set_tags(self, tags: Mapping[str, str | float | bool]) -> None:
        if self._sentry is not None and tags and self._sentry.get_client().is_active():
            scope = self._sentry.get_isolation_scope()
            for name, value in tags.items():
                # Tags are strings.
                scope.set_tag(
                    name, str(value).lower() if isinstance(value, bool) else str(value)
                )


TRACING = TracingBridge()
os.register_at_fork(after_in_child=TRACING.reset)


def _attributes(task_type: str, tau: float, deadline: float, now: float) -> dict[str, Any]:
    return {
        "rts.task_type": task_type,
        "rts.tau_s": tau,
        "rts.deadline": deadline,
        "rts.laxity_s": deadline - now - tau,
    }


def _connect_first(signal: Any, receiver: Callable[..., None]) -> None:
    """Connect *receiver* ahead of the others: Celery calls them in the order of its list."""
    signal.connect(receiver, weak=False, dispatch_uid=_UID)
    with signal.lock:
        entries = signal.receivers
        (mine,) = [entry for entry in entries if entry[0][0] == _UID]
        entries.remove(mine)
        entries.insert(0, mine)
