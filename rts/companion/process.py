"""The process beside a worker: heartbeat, spool, drain, lost runs, overdue tasks,
alerts, snapshots of the taus.

``main`` reads one line of JSON on standard input (what
to do, with the settings), and others when the worker's queues change, and goes on
until standard input ends, which it does when the worker ends, however that happens.

A process of its own, because no process of the host app shall hold pymongo: pool
children that are forked later would inherit it, its threads do not go with
greenlets, and the main process is the bottleneck of every prefork worker.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from rts.companion.attempts import attempt
from rts.companion.loop import run
from rts.companion.upkeep import Upkeep
from rts.ledger.instructions import Instructions

#: Seconds after the worker's end in which this process ends, whatever hangs. It
#: may: nothing is acknowledged that is not done. In steps of so many seconds, which
#: are counted: while this process is stopped, or gets no turn, they do not pass.
LAST_S, STEP_S = 5.0, 0.1
#: Tasks go first where they and the drain want the same core.
NICENESS = 5


def set_up_logging(instructions: Instructions) -> None:
    """Log where the worker logs, as it does; to standard error where that fails."""
    handler: logging.Handler = logging.StreamHandler()
    if instructions.logfile:
        try:
            handler = logging.handlers.WatchedFileHandler(instructions.logfile)
        except OSError:
            pass
    logging.basicConfig(
        level=instructions.loglevel,
        format="[%(asctime)s: %(levelname)s/rts] %(message)s",
        handlers=[handler],
    )
    # What cannot be read here, the worker cannot read either, and says so.
    logging.getLogger("rts.load").setLevel(max(instructions.loglevel, logging.WARNING))


def main() -> int:
    """Run beside a worker. Returns the exit status."""
    parent = os.getppid()
    # Python writes the number of a signal into this pipe. A handler that sets the
    # event itself could find its lock held by the very thread it interrupts.
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    signal.set_wakeup_fd(wake_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Byte by byte: what follows is read by another thread.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as told:
        line = told.readline()
    if not line.endswith(b"\n"):
        return 0  # the worker died before it had said what to do
    instructions = Instructions.from_json(line.decode())
    set_up_logging(instructions)
    stop = threading.Event()
    upkeep = Upkeep(instructions.settings, instructions)
    try:
        os.nice(NICENESS)
    except OSError:
        pass  # a sandbox may forbid it; nothing depends on it
    gc.freeze()  # what was imported stays for good
    # A batch is many objects without cycles among them: nothing to look for so often.
    gc.set_threshold(50_000, 10, 10)
    watching = (parent, wake, stop, upkeep.hear)
    threading.Thread(target=watch, args=watching, daemon=True).start()
    run(upkeep, stop)
    return 0


def watch(parent: int, wake: int, stop: threading.Event, hear: Callable[[bytes], None]) -> None:
    """Set *stop* when the worker ends: standard input closes, or the parent changes
    (pool children that were forked since may hold the pipe open). Or on SIGTERM.
    Until then let *hear* have each line that comes.

    Ends the process the hard way where it does not end by itself.
    """
    stdin, heard = sys.stdin.fileno(), b""
    while os.getppid() == parent:
        ready, _, _ = select.select([stdin, wake], [], [], 1.0)
        if wake in ready:
            break
        if ready:
            data = os.read(stdin, 4096)
            if not data:
                break
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                attempt("reading the worker's queues", partial(hear, line))
    stop.set()
    for _ in range(round(LAST_S / STEP_S)):
        time.sleep(STEP_S)
    os._exit(1)
