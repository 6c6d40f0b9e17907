"""A companion's work for its own worker: beat, and end the runs that cannot do so."""

from __future__ import annotations

import json
import math
import socket
import threading

from rts.companion.attempts import attempt
from rts.companion.final_runs import FinalRuns
from rts.companion.host_chores import HostChores
from rts.ledger.heartbeat import Heartbeat
from rts.ledger.in_flight import InFlightRuns
from rts.ledger.instructions import Instructions
from rts.ledger.janitor import Orphans
from rts.ledger.notes import NoteBoard
from rts.ledger.postmortem import PostMortem
from rts.ledger.sink import SpoolRunSink
from rts.link.scripts import pack
from rts.load.sampler import Probes, real_probes, take_sample


class WorkerChores:
    """The chores for the worker that sent *instructions*, over the connections of *host*."""

    def __init__(self, instructions: Instructions, host: HostChores) -> None:
        settings = instructions.settings
        self._instructions = instructions
        self._host = host
        self._queues = instructions.queues
        self._workers_key = settings.keys.workers
        self._probes: Probes | None = None
        self._board = NoteBoard(instructions.board_slots, instructions.board_fd)
        sink = SpoolRunSink(host.spool, host.link, settings)
        self._orphans = Orphans(self._board, sink, host.clock)
        self._in_flight = InFlightRuns(host.link, settings, self._board, instructions.instance)
        postmortem = PostMortem(self._board, sink, host.clock, instructions)
        self._final_runs = FinalRuns(postmortem, self._in_flight)

    def prepare_load(self) -> None:
        """Read the load a first time: CPU usage is measured between samples."""
        probes = real_probes()
        take_sample(probes)
        self._probes = probes

    def set_queues(self, line: bytes) -> None:
        """Take over the queues that the worker consumes from now on, as a line of JSON."""
        self._queues = tuple(json.loads(line))

    def beat(self) -> None:
        """Beat along with the host's chores; then bring clock and runs in flight up to date.

        Raises:
            StoreUnavailable: Redis is unavailable.
        """
        beat = self._heartbeat()
        self._host.beat(pack("HSET", self._workers_key, beat.instance, beat.to_json()))
        self._board.clock_offset_s[0] = self._host.clock.offset_s
        self._in_flight.step()

    def deregister(self) -> None:
        """Remove the worker's heartbeat, and publish its runs that go on."""
        remove = pack("HDEL", self._workers_key, self._instructions.instance)
        attempt("removing the heartbeat", lambda: self._host.link.call(remove))
        self._final_runs.publish()

    def end_orphans(self) -> None:
        """End the runs of this worker whose process is gone."""
        self._orphans.step()

    def settle_final_runs(self, stop: threading.Event) -> None:
        """Wait for *stop*, the worker's end; then settle its last runs."""
        stop.wait()
        self._final_runs.settle()

    def _heartbeat(self) -> Heartbeat:
        instructions, slots = self._instructions, self._board.worker_slots[0]
        return Heartbeat(
            instance=instructions.instance,
            seen_at=self._host.clock.now(),
            worker=instructions.worker,
            # One sample per beat: the worker itself samples for its tasks.
            load={} if self._probes is None else take_sample(self._probes).as_dict(),
            host=socket.gethostname(),
            pid=instructions.pid,
            slots=slots,
            queues=self._queues,
            ahead=math.inf if instructions.ahead is None else slots * instructions.ahead,
            received=self._board.received.encoded(),
        )
