"""What becomes known of the last runs of a worker that has ended, whatever server is away.

What has died with the worker gets its end on disk, at once. What goes on (the main process
alone was killed) is told to other companions by Redis; where that cannot be done, it gets an
end on disk as well, which its own one replaces.
"""

from __future__ import annotations

import threading
import time

from rts.companion.attempts import attempt
from rts.ledger.in_flight import InFlightRuns
from rts.ledger.postmortem import PostMortem

#: Seconds that what was killed with the worker gets to die; and those in which Redis
#: must have been told of what goes on.
DYING_S, TELLING_S = 1.0, 2.0
#: Seconds between looks and attempts in these.
LOOK_S = 0.05


class FinalRuns:
    """Two threads at work: one settles and asks no server, in which the other may hang."""

    def __init__(self, postmortem: PostMortem, in_flight: InFlightRuns) -> None:
        self._postmortem = postmortem
        self._in_flight = in_flight
        self._settled = threading.Event()
        self._told = threading.Event()

    def settle(self) -> None:
        """Write the ends. Takes as long as it takes to die, or to tell of what goes on."""
        give_up_at = time.monotonic() + DYING_S
        while True:
            attempt("settling the last runs", self._postmortem.settle)
            if not self._postmortem.left() or time.monotonic() >= give_up_at:
                break
            time.sleep(LOOK_S)
        self._settled.set()
        if self._postmortem.left() and not self._told.wait(TELLING_S):
            attempt("settling the last runs", self._postmortem.give_up)

    def tell(self) -> None:
        """Tell of what goes on, once it is known what does."""
        give_up_at = time.monotonic() + DYING_S + TELLING_S
        self._settled.wait(DYING_S)
        # Not a few times: attempts come to nothing as long as the link's breaker is open.
        while not attempt("telling of the last runs", self._in_flight.step):
            if time.monotonic() >= give_up_at:
                return
            time.sleep(LOOK_S)
        self._told.set()
