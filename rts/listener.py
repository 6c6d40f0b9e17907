"""Passes events of the fleet to the app's receivers of rts.signals, each in one worker.

Runs in the main process of a worker that has such receivers when it starts: a thread
with a connection of its own. All workers with receivers of one signal share a consumer
group, so each event is handled once; another worker claims what a dead one had in hand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rts import health, signals
from rts.errors import StoreUnavailable
from rts.forks import ForkGate
from rts.keys import LISTENERS
from rts.link.link import Link
from rts.link.scripts import NEXT_EVENT, pack
from rts.notices import SloBurning, TaskOverdue
from rts.settings import Settings
from rts.validation import json_object

#: Seconds between polls for events, unless there was one.
POLL_S = 1.0
#: Seconds after which an event that another worker has not handled is claimed.
TAKEOVER_S = 300.0
#: Seconds for which the fleet knows that somebody listens, and between renewals.
LISTENING_TTL_S, RENEW_S = 60, 20.0
#: Seconds of silence after which a worker that was killed is removed from the group.
GONE_S = 600.0

#: Receivers are the app's: they may hold any lock that the tasks of a child need.
_gate = ForkGate()


class Listener:
    """Passes events to the app's receivers. Never raises into the worker."""

    def __init__(self, settings: Settings, consumer: str) -> None:
        self._settings = settings
        self._events = settings.keys.events
        self._consumer = consumer
        self._stop = threading.Event()

    def start(self) -> None:
        """Start, if there are receivers."""
        wanted = [name for name, kind in _KINDS.items() if kind.signal.receivers]
        if wanted:
            threading.Thread(
                target=self._run, args=(wanted,), name="rts-listener", daemon=True
            ).start()

    def stop(self) -> None:
        """Stop, without waiting for a server or a receiver."""
        self._stop.set()

    def _run(self, wanted: Sequence[str]) -> None:
        link = Link(self._settings)
        renew_at = 0.0
        handled = dict.fromkeys(wanted, "")
        while not self._stop.is_set():
            found = False
            try:
                renew = time.monotonic() >= renew_at
                if renew:
                    if signals.slo_burning.receivers:  # have the leader evaluate objectives
                        key = self._settings.keys.listening
                        link.call(pack("SET", key, "1", "EX", LISTENING_TTL_S))
                    renew_at = time.monotonic() + RENEW_S
                for name in wanted:
                    handled[name], notice = self._next(link, name, handled[name], renew)
                    found = found or bool(handled[name])
                    if notice is not None:
                        _send(name, notice)
            except StoreUnavailable:
                found = False  # logged already; what was handled is acknowledged later
            except BaseException as exc:  # noqa: BLE001  also SystemExit, gevent.Timeout, …
                health.hook_failed("listener", exc)
            if not found:
                self._stop.wait(POLL_S)
        self._leave(link, handled)

    def _next(
        self, link: Link, name: str, handled: str, tidy: bool
    ) -> tuple[str, Notice | None]:
        """Acknowledge the *handled* event; return the id of the next one, '' for none, and
        its notice. With *tidy*, remove dead workers from the group.
        """
        gone_ms = int(GONE_S * 1000) if tidy else ""
        arguments = (group_of(name), self._consumer, handled, int(TAKEOVER_S * 1000), gone_ms)
        (reply,) = link.call(NEXT_EVENT.pack([self._events], arguments))
        if not reply:
            return "", None
        entry_id, *rest = reply
        fields = dict(zip(rest[::2], rest[1::2], strict=True))
        kind, notice = _KINDS[name], None
        try:
            if kind.field in fields:
                notice = read_notice(kind.notice, fields[kind.field])
        except (ValueError, TypeError) as exc:  # of another version
            health.warn_once("event", "rts: an event cannot be understood: %s", exc)
        return entry_id.decode(), notice

    def _leave(self, link: Link, handled: Mapping[str, str]) -> None:
        try:
            for name, event_id in handled.items():
                if event_id:
                    link.call(pack("XACK", self._events, group_of(name), event_id))
        except StoreUnavailable:
            pass  # another worker claims what it had in hand
        link.close()


def group_of(name: str) -> str:
    """Return the consumer group of the workers with receivers of a signal.

    >>> group_of("task_overdue")
    'workers:task_overdue'
    """
    return f"{LISTENERS}:{name}"


def _send(name: str, notice: Notice) -> None:
    kind = _KINDS[name]
    with _gate.no_fork():
        kind.signal.send(getattr(notice, kind.sender), notice=notice)


Notice = TaskOverdue | SloBurning


def read_notice(cls: type[Notice], text: bytes) -> Notice:
    """Return the notice in *text*, a JSON object; fields of newer versions are ignored.

    Raises:
        ValueError, TypeError: it is something else.
    """
    values = json_object(text, "a notice")
    return cls(**{name: values[name] for name in cls.__slots__ if name in values})


class _Kind(NamedTuple):
    signal: signals.Notices
    #: The field of an event's entry that holds its notice; an event of another kind has none.
    field: bytes
    notice: type[Notice]
    #: The field of the notice that is the signal's sender.
    sender: str


_KINDS = {
    "task_overdue": _Kind(signals.task_overdue, b"e", TaskOverdue, "name"),
    "slo_burning": _Kind(signals.slo_burning, b"n", SloBurning, "objective"),
}
