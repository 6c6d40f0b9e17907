"""Events of the fleet for the app's receivers of rts.signals, in one worker each.

Runs in the main process of a worker that has such receivers when it starts: a thread
with a connection of its own. All workers with receivers of one signal share a consumer
group, so each event is handled once; what a worker that died had in hand another one
handles later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rts import health, signals
from rts.errors import StoreUnavailable
from rts.keys import LISTENERS
from rts.ledger.events import OVERDUE, Event
from rts.link.link import Link
from rts.link.scripts import LEAVE, Script, pack
from rts.notices import SloBurning, TaskOverdue
from rts.settings import Settings
from rts.validation import json_object

HEAR = Script.load("hear")

#: Seconds between looks for events, unless there was one.
POLL_S = 1.0
#: Seconds after which an event that another worker took is handled here.
TAKEOVER_S = 300.0
#: Seconds for which it is known that somebody listens, and between saying so.
KNOWN_S, SAY_S = 60, 20.0
#: Seconds of silence after which a worker that was killed is taken off the group.
GONE_S = 600.0


class Listener:
    """Hands events to the app's receivers. Never raises into the worker."""

    def __init__(self, settings: Settings, consumer: str) -> None:
        self._settings = settings
        self._keys = settings.keys
        self._consumer = consumer
        self._stop: threading.Event | None = None

    def start(self) -> None:
        """Begin, where anybody is to be told; again changes nothing."""
        wanted = [name for name, signal in _SIGNALS.items() if signal.receivers]
        if self._stop is None and wanted:
            self._stop = threading.Event()
            threading.Thread(
                target=self._run, args=(wanted, self._stop), name="rts-listener", daemon=True
            ).start()

    def stop(self) -> None:
        """End; waits for no server and no receiver."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _run(self, wanted: Sequence[str], stop: threading.Event) -> None:
        link = Link(self._settings)
        say_at = 0.0
        handled = dict.fromkeys(wanted, "")
        while not stop.is_set():
            found = False
            try:
                tidy = time.monotonic() >= say_at
                if tidy:
                    self._say(link)
                    say_at = time.monotonic() + SAY_S
                for name in wanted:
                    handled[name], notice = self._hear(link, name, handled[name], tidy)
                    found = found or bool(handled[name])
                    if notice is not None:
                        _SIGNALS[name].send(_SENDER[name](notice), notice=notice)
            except StoreUnavailable:
                found = False  # logged already; what was handled is said so later
            except Exception as exc:  # noqa: BLE001  the next event may go better
                health.hook_failed("listener", exc)
            if not found:
                stop.wait(POLL_S)
        self._leave(link, handled)

    def _say(self, link: Link) -> None:
        """Have the leader look at the objectives, where anybody is to be told of them."""
        if signals.slo_burning.receivers:
            link.call(pack("SET", self._keys.listening, "1", "EX", KNOWN_S))

    def _hear(
        self, link: Link, name: str, handled: str, tidy: bool
    ) -> tuple[str, Notice | None]:
        """Return the id of the next event, '' where there is none, and what it tells; take
        workers that are gone off the group where it is time to *tidy*.
        """
        arguments: list[str | bytes | float] = [
            *(group_of(name), self._consumer, handled, int(TAKEOVER_S * 1000)),
            int(GONE_S * 1000) if tidy else "",
        ]
        (reply,) = link.call(HEAR.pack([self._keys.events], arguments))
        if not reply:
            return "", None
        fields = dict(zip(reply[1::2], reply[2::2], strict=True))
        try:
            return reply[0].decode(), _READ[name](fields)
        except (ValueError, TypeError) as exc:  # of another version
            health.warn_once("event", "rts: an event cannot be understood: %s", exc)
            return reply[0].decode(), None

    def _leave(self, link: Link, handled: Mapping[str, str]) -> None:
        try:
            for name, event_id in handled.items():
                group = group_of(name)
                if event_id:
                    link.call(pack("XACK", self._keys.events, group, event_id))
                link.call(LEAVE.pack([self._keys.events], [group, self._consumer]))
        except StoreUnavailable:
            pass  # what it had in hand is taken over
        link.close()


def group_of(name: str) -> str:
    """Return the consumer group of the workers with receivers of a signal.

    >>> group_of("task_overdue")
    'workers:task_overdue'
    """
    return f"{LISTENERS}:{name}"


def _overdue(fields: Mapping[bytes, bytes]) -> TaskOverdue | None:
    if b"e" not in fields:
        return None
    event = Event.from_json(fields[b"e"])
    if event.kind != OVERDUE:
        return None
    return TaskOverdue(
        event.task_id,
        event.name,
        event.task_type,
        event.queue,
        event.worker,
        event.arrival,
        event.deadline,
        event.at,
    )


def _burning(fields: Mapping[bytes, bytes]) -> SloBurning | None:
    if b"n" not in fields:
        return None
    told = json_object(fields[b"n"], "a notice")  # of a newer version: with more fields
    return SloBurning(**{name: told[name] for name in SloBurning.__slots__ if name in told})


Notice = TaskOverdue | SloBurning
_SIGNALS = {"task_overdue": signals.task_overdue, "slo_burning": signals.slo_burning}
_READ: Mapping[str, Callable[[Mapping[bytes, bytes]], Notice | None]] = {
    "task_overdue": _overdue,
    "slo_burning": _burning,
}
_SENDER: Mapping[str, Callable[[Any], str]] = {
    "task_overdue": lambda notice: notice.name,
    "slo_burning": lambda notice: notice.objective,
}
