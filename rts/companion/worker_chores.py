"""A companion's work for its own worker: beat, and end the runs that cannot do so."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from typing import Any

from rts.companion.attempts import attempt
from rts.companion.host_chores import HostChores
from rts.companion.instructions import Instructions
from rts.companion.postmortem import PostMortem
from rts.ledger.sink import SpoolRunSink
from rts.link.scripts import pack
from rts.unfinished.heartbeat import BEAT_S, Heartbeat
from rts.unfinished.in_flight import InFlightRuns
from rts.unfinished.janitor import Orphans
from rts.unfinished.shared_memory import SharedMemory

#: The oldest load that a heartbeat has, seconds. The worker samples it far more often, unless
#: the driver of a GPU hangs, or a task keeps all threads or greenlets of its process waiting.
MAX_LOAD_AGE_S = 5 * BEAT_S


class WorkerChores:
    """The chores for the worker that sent *instructions*, over the connections of *host*."""

    def __init__(self, instructions: Instructions, host: HostChores) -> None:
        settings = instructions.settings
        self._instructions = instructions
        self._host = host
        self._queues = instructions.queues
        self._workers_key = settings.keys.workers
        self._memory = SharedMemory(instructions.note_slots, instructions.memory_fd)
        notes = self._memory.notes
        sink = SpoolRunSink(host.spool, host.link, settings)
        #: Ends the runs of this worker whose process is gone.
        self.orphans = Orphans(notes, sink, host.clock, instructions.pool_waits_s)
        self._in_flight = InFlightRuns(host.link, settings, notes, instructions.instance)
        self._postmortem = PostMortem(
            self._memory, sink, host.clock, instructions, self._in_flight.publish
        )

    def set_queues(self, line: bytes) -> None:
        """Take over the queues that the worker consumes from now on, as a line of JSON."""
        self._queues = tuple(json.loads(line))

    def beat(self) -> None:
        """Beat along with the host's chores; then bring clock and runs in flight up to date."""
        beat = self._heartbeat()
        self._host.beat(pack("HSET", self._workers_key, beat.instance, beat.to_json()))
        self._memory.clock_offset_s[0] = self._host.clock.offset_s
        self._in_flight.step()

    def deregister(self) -> None:
        """Remove the worker's heartbeat, and publish its runs that go on."""
        remove = pack("HDEL", self._workers_key, self._instructions.instance)
        attempt("removing the heartbeat", lambda: self._host.link.call(remove))
        self._postmortem.publish()

    def settle_last_runs(self, stop: threading.Event) -> None:
        """Wait for *stop*, the worker's end; then settle its last runs."""
        stop.wait()
        self._postmortem.settle()

    def _heartbeat(self) -> Heartbeat:
        instructions, slots = self._instructions, self._memory.worker_slots[0]
        return Heartbeat(
            instance=instructions.instance,
            seen_at=self._host.clock.now(),
            worker=instructions.worker,
            load=self._load(),
            host=socket.gethostname(),
            pid=instructions.pid,
            slots=slots,
            queues=self._queues,
            ahead=math.inf if instructions.ahead is None else slots * instructions.ahead,
            received=self._memory.received.encoded(),
            ordered=instructions.settings.scheduler == "edf",
        )

    def _load(self) -> dict[str, Any]:
        sample, now = self._memory.load.read(), time.monotonic()
        if sample is None or now - sample.sampled_at > MAX_LOAD_AGE_S:
            return {}
        return sample.as_dict(now)
