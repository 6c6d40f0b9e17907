"""Signals for the app's own receivers: missed deadlines, and alerts.

They work like Celery's. A receiver gets ``sender`` and ``notice``, a frozen record of
:mod:`rts.notices`, and must accept further keyword arguments::

    @rts.signals.deadline_missed.connect
    def tell(sender, notice, **_): ...

===============  ==============  =====================================================
signal           sender          sent
===============  ==============  =====================================================
deadline_missed  the task's      in the process that ends the run: the one that ran it
                 name            (a pool child with prefork), after the run; the
                                 worker's main process for runs that are killed,
                                 timed out, revoked, expired or unknown
task_overdue     the task's      in the main process of one worker of the fleet, in a
                 name            thread of rts, once per task
slo_burning      the objective   the same, once when it starts and once when it is over
===============  ==============  =====================================================

An exception in a receiver is counted, and logged once; the other receivers are still
called, and the task is not affected.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery.utils.dispatch import Signal

from rts import health
from rts.notices import DeadlineMissed
from rts.records import Execution, sla_success

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Receiver = TypeVar("Receiver", bound=Callable[..., Any])


class Notices(Signal):  # type: ignore[misc]  # Celery has no type information
    """A signal whose receivers cannot disturb the sender."""

    if TYPE_CHECKING:  # Celery's own is untyped, so that receivers would lose their types

        @overload
        def connect(
            self,
            receiver: Receiver,
            /,
            *,
            sender: str | None = None,
            weak: bool = True,
            dispatch_uid: Hashable = None,
        ) -> Receiver: ...

        @overload
        def connect(
            self, *, sender: str | None = None, weak: bool = True, dispatch_uid: Hashable = None
        ) -> Callable[[Receiver], Receiver]: ...

        def connect(self, *args: Any, **kwargs: Any) -> Any: ...

    def send(self, sender: Any, **named: Any) -> list[tuple[Any, Any]]:
        """Call all receivers; return each one with what it returned or raised."""
        answers: list[tuple[Any, Any]] = []
        for receiver in self._live_receivers(sender) if self.receivers else ():
            try:
                answer = receiver(signal=self, sender=sender, **named)
            except Exception as exc:  # noqa: BLE001  whatever an app's receiver raises
                answer = exc
                health.count("receiver_errors")
                health.warn_once(
                    f"receiver:{self.name}:{_name(receiver)}:{type(exc).__name__}",
                    "rts: %s, a receiver of rts.signals.%s, raised %s; the others are still "
                    "called. This is logged once",
                    _name(receiver),
                    self.name,
                    type(exc).__name__,
                    exc_info=True,
                )
            answers.append((receiver, answer))
        return answers

    send_robust = send


deadline_missed = Notices(name="deadline_missed")
task_overdue = Notices(name="task_overdue")
slo_burning = Notices(name="slo_burning")


def _after_fork() -> None:
    """Replace the locks, which a thread of the parent may have held."""
    for signal in (deadline_missed, task_overdue, slo_burning):
        signal.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def run_ended(ended: Execution) -> None:
    """Send :data:`deadline_missed` if *ended* is a miss. Never raises."""
    if sla_success(ended) is False:
        deadline_missed.send(ended.name, notice=DeadlineMissed.of(ended))


def _name(receiver: object) -> str:
    name = getattr(receiver, "__qualname__", None) or type(receiver).__qualname__
    return f"{getattr(receiver, '__module__', None) or '?'}.{name}"
