"""Events of the fleet for the app's receivers of rts.signals, in one worker each.

Runs in the main process of a worker that has such receivers when it starts: a thread
with a connection of its own. All such workers share a consumer group, so each event
is handled once; what a worker that died had in hand another one handles later.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

from rts import health, signals
from rts.errors import StoreUnavailable
from rts.keys import LISTENERS
from rts.link.link import Link
from rts.link.scripts import LEAVE, Script, pack
from rts.notices import SloBurning, TaskOverdue
from rts.settings import Settings

HEAR = Script.load("hear")

#: Seconds between looks for events, unless there was one.
POLL_S = 1.0
#: Seconds after which an event that another worker took is handled here.
TAKEOVER_S = 300.0
#: Seconds for which it is known that somebody listens, and between saying so.
KNOWN_S, SAY_S = 60, 20.0


class Listener:
    """Hands events to the app's receivers. Never raises into the worker."""

    def __init__(self, settings: Settings, consumer: str) -> None:
        self._settings = settings
        self._keys = settings.keys
        self._consumer = consumer
        self._stop: threading.Event | None = None

    def start(self) -> None:
        """Begin, where anybody is to be told; again changes nothing."""
        wanted = signals.task_overdue.receivers or signals.slo_burning.receivers
        if self._stop is None and wanted:
            self._stop = threading.Event()
            threading.Thread(
                target=self._run, args=(self._stop,), name="rts-listener", daemon=True
            ).start()

    def stop(self) -> None:
        """End; waits for no server and no receiver."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _run(self, stop: threading.Event) -> None:
        link = Link(self._settings)
        say_at, handled = 0.0, ""
        while not stop.is_set():
            try:
                if time.monotonic() >= say_at:
                    self._say(link)
                    say_at = time.monotonic() + SAY_S
                event_id, values = self._hear(link, handled)
                handled = event_id
                if event_id:
                    self._tell(values)
                    continue
            except StoreUnavailable:
                pass  # logged already; what was handled is said so later
            except Exception as exc:  # noqa: BLE001  the next event may go better
                health.hook_failed("listener", exc)
            stop.wait(POLL_S)
        self._leave(link, handled)

    def _say(self, link: Link) -> None:
        """Have the leader look at the objectives, where anybody is to be told of them."""
        if signals.slo_burning.receivers:
            link.call(pack("SET", self._keys.listening, "1", "EX", KNOWN_S))

    def _hear(self, link: Link, handled: str) -> tuple[str, Sequence[bytes]]:
        arguments: list[str | bytes | float] = [
            *(LISTENERS, self._consumer, handled, int(TAKEOVER_S * 1000))
        ]
        (reply,) = link.call(HEAR.pack([self._keys.events], arguments))
        return (reply[0].decode(), reply[1:]) if reply else ("", ())

    def _tell(self, values: Sequence[bytes]) -> None:
        fields = dict(zip(values[::2], values[1::2], strict=True))
        if b"n" in fields:
            burning = SloBurning(**json.loads(fields[b"n"]))
            signals.slo_burning.send(burning.objective, notice=burning)
        elif b"e" in fields:
            overdue = _overdue(json.loads(fields[b"e"]))
            if overdue is not None:
                signals.task_overdue.send(overdue.name, notice=overdue)

    def _leave(self, link: Link, handled: str) -> None:
        try:
            if handled:
                link.call(pack("XACK", self._keys.events, LISTENERS, handled))
            link.call(LEAVE.pack([self._keys.events], [LISTENERS, self._consumer]))
        except StoreUnavailable:
            pass  # what it had in hand is taken over
        link.close()


def _overdue(event: Any) -> TaskOverdue | None:
    """Return the notice of an event of the stream; ``None`` for another kind."""
    if event.get("kind") != "overdue":
        return None
    return TaskOverdue(
        event["task_id"],
        event["name"],
        event["task_type"],
        event["queue"],
        event["arrival"],
        event["deadline"],
        event["at"],
    )
