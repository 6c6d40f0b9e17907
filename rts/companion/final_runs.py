"""Settles the last runs of a worker that has ended, whichever servers are unavailable.

The ends of runs that died with the worker are written to disk at once. Runs that go on
(only the main process was killed) are published in Redis for the other companions; if
that fails, their ends are written to disk as well, and replaced by their own.
"""

from __future__ import annotations

import threading
import time

from rts.companion.attempts import attempt
from rts.companion.postmortem import PostMortem
from rts.unfinished.in_flight import InFlightRuns

#: Seconds for processes killed with the worker to exit, and for the runs that go on to be
#: published.
EXIT_S, PUBLISH_S = 1.0, 2.0
#: Seconds between checks and attempts in these.
POLL_S = 0.05


class FinalRuns:
    """Works in two threads: one settles and asks no server, in which the other may hang."""

    def __init__(self, postmortem: PostMortem, in_flight: InFlightRuns) -> None:
        self._postmortem = postmortem
        self._in_flight = in_flight
        self._settled = threading.Event()
        self._published = threading.Event()

    def settle(self) -> None:
        """Write the ends; returns once every run has ended, was published or given up."""
        give_up_at = time.monotonic() + EXIT_S
        while True:
            attempt("settling the last runs", self._postmortem.settle)
            if not self._postmortem.has_runs() or time.monotonic() >= give_up_at:
                break
            time.sleep(POLL_S)
        self._settled.set()
        if self._postmortem.has_runs() and not self._published.wait(PUBLISH_S):
            attempt("settling the last runs", self._postmortem.give_up)

    def publish(self) -> None:
        """Publish the runs that go on, once it is known which do."""
        give_up_at = time.monotonic() + EXIT_S + PUBLISH_S
        self._settled.wait(EXIT_S)
        # By time, not by count: attempts fail at once while the link's breaker is open.
        while not attempt("publishing the last runs", self._in_flight.step):
            if time.monotonic() >= give_up_at:
                return
            time.sleep(POLL_S)
        self._published.set()
